"""Rows of any kind in one run: pairs, thumbs, scores and plain answers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from lit_ift.data.batch.collate import Batch, collate
from lit_ift.data.batch.collate_feedback import collate_feedback
from lit_ift.data.batch.dataset import EncodedDataset, first_answers
from lit_ift.data.batch.sampler import LengthGroupedBatchSampler
from lit_ift.data.modules.conversation import Split, require_type
from lit_ift.data.modules.instruction import InstructionDataModule
from lit_ift.data.requirements import RowParts, check_match, parts_of, route
from lit_ift.data.rows import ROW_KINDS, EncodedRow, RowKind
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError


class Indexed(NamedTuple):
    """A batch and the indices that it was made of."""

    batch: Any
    indices: list[int]


class FeedbackBatches(Dataset[Any]):
    """Batches by lists of indices, as `LengthGroupedBatchSampler` yields them, for a `FeedbackLoader`.

    Where the rows go to parts of a mixed objective, there is a batch for each part that has rows in the split, by name
    and in the order of the module. If none of the rows goes to a part, its shortest one does as a dummy, so that all
    processes run the same passes.

    Args:
        dataset: the rows.
        collate: `collate_feedback` with its options set.
    """

    def __init__(self, dataset: EncodedDataset, collate: Callable[[Sequence[EncodedRow]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate
        self.stand_ins = {} if dataset.parts is None else dataset.parts.shortest(dataset.lengths)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: list[int]) -> Indexed | dict[str, Indexed]:
        parts = self.dataset.parts
        if parts is None:
            return self._batch(indices)
        members: dict[str, list[int]] = {name: [] for name in parts.names}
        for index in indices:
            members[parts.names[parts.of_rows[index if index >= 0 else ~index]]].append(index)
        return {name: self._batch(members[name] or [~row]) for name, row in self.stand_ins.items()}

    def _batch(self, indices: list[int]) -> Indexed:
        return Indexed(self.collate(self.dataset[indices]), indices)

    def finish(self, made: Indexed | dict[str, Indexed]) -> Any:
        """The batch, or batches by part, with the reference log-probabilities if there are any by now."""
        if isinstance(made, dict):
            return {name: self.finish(batch) for name, batch in made.items()}
        logps = self.dataset.reference_logps_of(made.indices)
        return made.batch if logps is None else {**made.batch, "reference_logps": torch.cat(logps)}


class FeedbackLoader(DataLoader[Any]):
    """Loads `FeedbackBatches` and finishes them in the process that iterates.

    Lightning starts the workers before training, perhaps before there are reference log-probabilities.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Not a generator, for the workers must start anew at once.
        return map(cast(FeedbackBatches, self.dataset).finish, super().__iter__())


class FeedbackDataModule(InstructionDataModule):
    """Pairs, thumbs, scores and instruction rows, mixed as the weights of their sources say.

    Its batches have `FeedbackColumns`: their examples are the answers of all rows. For a module that mixes objectives
    (attribute ``parts``) a batch is a mapping from the name of each part to such a batch. A row goes to the part that
    the option ``part`` of its source names, by default to the one named as its kind.

    Rows that the trainer's module does not train on are refused in `setup`. A module that compares answers with
    mismatched ones (``needs_mismatched``) gets one as a further side of each unpaired row and of each pair.

    With `tokens_per_batch` and without `packing`, every row counts as if it had as many answers as the row with the
    most, for all answers of a batch are padded alike. If rows have different numbers of answers, `packing` is the
    better choice.

    Batches of predict have no such columns: they hold the first side of each row, which has its prompt.

    Args:
        interleave_parts: for a module that mixes objectives: give each optimizer step rows of one part alone, and let
            the parts take turns. A part has as many steps as its rows fill, which its sources' weights say: 6,000
            instruction rows and 2,000 pairs give three steps on instructions, then one on pairs, and so on. Every row
            comes as often as without. Batches still have a dummy for each other part. Needs `batch_size`.
        *args: see `InstructionDataModule`.
        **kwargs: see `InstructionDataModule`.

    Raises:
        UserError: arguments out of range or in contradiction.
    """

    kinds: frozenset[RowKind] = frozenset(ROW_KINDS)

    def __init__(self, *args: Any, interleave_parts: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_type("interleave_parts", interleave_parts, bool, "true or false")
        if interleave_parts and self.tokens_per_batch is not None:
            raise UserError(
                "data.interleave_parts counts the rows of a step, which data.tokens_per_batch leaves open. Set "
                "data.batch_size instead."
            )
        self.interleave_parts = interleave_parts

    def train_parts(self) -> Sequence[int] | None:
        """Number of each training row's part with `interleave_parts`; else None."""
        parts = self._dataset("train").parts
        return parts.of_rows.tolist() if self.interleave_parts and parts is not None else None

    def _check_interleaving(self, module: L.LightningModule, parts: RowParts | None) -> None:
        """Refuse what would have no effect."""
        if parts is None:
            raise UserError(
                f"data.interleave_parts has no effect on {type(module).__name__}, which has no parts. Leave it out."
            )
        weighted = [name for name, weight in getattr(module, "part_weights", {}).items() if weight != 1]
        if weighted:
            raise UserError(
                f"The weight of the part {weighted[0]!r} has no effect with data.interleave_parts, which gives every "
                "step one part alone. Leave it out; the weights of the sources say how many steps a part has."
            )

    def _match(self, split: Split, module: L.LightningModule) -> None:
        if split == "predict":
            return
        rows, sources, parts = self.datasets[split].rows, self.parts(split), parts_of(module)
        found: RowParts | None = None
        if parts is None:
            check_match(split, rows, sources, module)
            judged = [np.arange(len(rows))] if getattr(module, "needs_mismatched", False) else []
        else:
            kept = self.reports[split].sources
            counted = [(part, kept[part.name].rows) for part in sources if part.name in kept]
            found = route(split, rows, counted, parts, needs_all=split == "train")
            judged = [found.rows_of(name) for name in found.names if getattr(parts[name], "needs_mismatched", False)]
        try:
            partners = mismatched_partners(split, rows, judged)
        except UserError as error:
            if not self.may_be_empty(split):
                raise
            self._leave_out(split, error)
            return
        if not np.array_equal(partners, self.datasets[split].partners):
            self.datasets[split] = EncodedDataset(rows, partners=partners, max_length=self.max_length)
        self.datasets[split].parts = found
        if split == "train" and self.interleave_parts:
            self._check_interleaving(module, found)

    def _lengths(self, split: Split, packing: bool) -> Sequence[int]:
        dataset = self._dataset(split)
        # Of so many rows each, batches have the same ones whether they are packed or padded.
        fills_a_budget = packing and self.tokens_per_batch is not None
        return dataset.lengths if fills_a_budget else dataset.padded_lengths(self.pad_to_multiple_of)

    def _batch_options(self, split: Split, packing: bool) -> dict[str, Any]:
        options = super()._batch_options(split, packing)
        budget = options["tokens_per_batch"]
        if budget is None:
            return options
        dataset, lengths = self._dataset(split), self._lengths(split, packing)
        shortest = {} if dataset.parts is None else dataset.parts.shortest(dataset.lengths)
        stand_ins = [lengths[row] for row in shortest.values()] or [0]
        # A batch has a row of one part at least; of every other one it may have a stand-in.
        reserve = sum(stand_ins) - min(stand_ins)
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] + reserve > budget:
            answers = "" if packing else f", for up to {int(dataset.side_counts.max())} answers padded alike"
            others = f", and {reserve} are set aside for stand-ins of other parts" if reserve else ""
            raise UserError(
                f"data.{split}: {dataset.rows[longest].row_id} takes {lengths[longest]} tokens{answers}{others}, which "
                f"is more than data.tokens_per_batch={budget}. Raise tokens_per_batch, or lower data.max_length."
            )
        return {**options, "tokens_per_batch": budget - reserve}

    def _loader(
        self,
        split: Split,
        sampler: LengthGroupedBatchSampler,
        packing: bool,
        loader_class: type[DataLoader[Any]] = FeedbackLoader,
    ) -> DataLoader[Any]:
        return super()._loader(split, sampler, packing, loader_class if split != "predict" else DataLoader)

    def _batches(self, split: Split, packing: bool) -> tuple[Dataset[Any], Callable[[Any], Any]]:
        dataset = self._dataset(split)
        options: dict[str, Any] = {
            "pad_token_id": self._pad_token_id(),
            "pad_to_multiple_of": self.pad_to_multiple_of,
        }
        if split == "predict":
            return dataset, partial(_collate_first_side, **options)
        one_row = packing and self._one_row()
        batches = FeedbackBatches(dataset, partial(collate_feedback, **options, packing=packing, one_row=one_row))
        return batches, _as_it_is


def mismatched_partners(split: str, rows: StoredRows, groups: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """For each row the answer that its prompt is put before as ``mismatched``; -1 for none, (R,).

    Args:
        split: for messages.
        rows: of the split.
        groups: rows whose thumbs and pairs are combined with each other, ascending. Each gets an answer of the next
            one, the last one of the first; pairs give their chosen and their rejected answer by turns.

    Returns:
        Numbers of answers, as `EncodedDataset` counts those of the stored rows.

    Raises:
        UserError: a group has a single thumb or pair.
    """
    partners = np.full(len(rows), -1, dtype=np.int64)
    pair = ROW_KINDS.index("preference")
    for group in groups:
        judged = group[np.isin(rows.kinds[group], [ROW_KINDS.index("unpaired"), pair])]
        if len(judged) == 1:
            raise UserError(
                f"data.{split}: {rows[int(judged[0])].row_id} is the only row with a judged answer, but the module "
                "compares each answer with that of another row. Add rows."
            )
        by_turns = (np.arange(len(judged)) % 2) * (rows.kinds[judged] == pair)
        partners[judged] = np.roll(first_answers(rows)[judged] + by_turns, -1)
    return partners


def _collate_first_side(rows: list[EncodedRow], *, pad_token_id: int, pad_to_multiple_of: int | None) -> Batch:
    examples = [next(iter(row.sides.values())) for row in rows]
    return collate(examples, pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of)


def _as_it_is(batch: Any) -> Any:
    return batch
