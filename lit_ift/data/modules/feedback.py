"""Rows of any kind in one run: pairs, thumbs, scores and plain answers."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from lit_ift.data.batch.collate import collate_feedback
from lit_ift.data.batch.dataset import EncodedDataset, first_answers
from lit_ift.data.modules.batches import BatchOptions, SplitBatches
from lit_ift.data.modules.conversation import Split
from lit_ift.data.modules.instruction import InstructionDataModule
from lit_ift.data.requirements import RowParts, check_match, parts_of, route
from lit_ift.data.rows import ROW_KINDS, RowKind
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError


class Indexed(NamedTuple):
    """A batch and the indices that it was made of."""

    batch: Any
    indices: list[int]


class FeedbackBatches(SplitBatches):
    """Batches with `FeedbackColumns`, of all answers of their rows.

    Where the rows go to parts of a mixed objective, there is a batch for each part that has rows in the split, by name
    and in the order of the module. If none of the rows goes to a part, its shortest one does as a dummy, so that all
    processes run the same passes.

    Args:
        dataset: the rows.
        options: see `BatchOptions`.
        split: for messages.
    """

    def __init__(self, dataset: EncodedDataset, options: BatchOptions, split: str) -> None:
        super().__init__(dataset, options)
        self.split = split
        self.stand_ins = {} if dataset.parts is None else dataset.parts.shortest(dataset.lengths)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of all answers of a row, as many as they count for where they are padded alike."""
        # Of so many rows each, batches have the same ones whether they are packed or padded.
        if self.options.packing and self.options.tokens_per_batch is not None:
            return self.dataset.lengths
        return self.dataset.padded_lengths(self.options.pad_to_multiple_of)

    @cached_property
    def tokens_per_batch(self) -> int | None:
        """What is left beside stand-ins.

        Raises:
            UserError: a row is longer than that.
        """
        budget = self.options.tokens_per_batch
        if budget is None:
            return None
        lengths = self.lengths
        stand_ins = [lengths[row] for row in self.stand_ins.values()] or [0]
        # A batch has a row of one part at least; of every other one it may have a stand-in.
        reserve = sum(stand_ins) - min(stand_ins)
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] + reserve > budget:
            most = int(self.dataset.side_counts.max())
            answers = "" if self.options.packing else f", for up to {most} answers padded alike"
            others = f", and {reserve} are set aside for stand-ins of other parts" if reserve else ""
            raise UserError(
                f"data.{self.split}: {self.dataset.rows[longest].row_id} takes {lengths[longest]} tokens{answers}"
                f"{others}, which is more than data.tokens_per_batch={budget}. Raise tokens_per_batch, or lower "
                "data.max_length."
            )
        return budget - reserve

    def loader(self, **options: Any) -> DataLoader[Any]:
        """A loader that adds reference log-probabilities to the batches."""
        return FeedbackLoader(_Batches(self), batch_size=None, collate_fn=_as_it_is, **options)

    def of(self, indices: list[int]) -> Indexed | dict[str, Indexed]:
        """The batch of the rows, or the batches by part."""
        parts = self.dataset.parts
        if parts is None:
            return self._batch(indices)
        members: dict[str, list[int]] = {name: [] for name in parts.names}
        for index in indices:
            members[parts.names[parts.of_rows[index if index >= 0 else ~index]]].append(index)
        return {name: self._batch(members[name] or [~row]) for name, row in self.stand_ins.items()}

    def _batch(self, indices: list[int]) -> Indexed:
        how = self.options
        batch = collate_feedback(
            self.dataset[indices],
            pad_token_id=how.pad_token_id,
            pad_to_multiple_of=how.pad_to_multiple_of,
            packing=how.packing,
            one_row=how.one_row,
        )
        return Indexed(batch, indices)

    def finished(self, made: Indexed | dict[str, Indexed]) -> Any:
        """The batch, or batches by part, with the reference log-probabilities if there are any by now."""
        if isinstance(made, dict):
            return {name: self.finished(batch) for name, batch in made.items()}
        logps = self.dataset.reference_logps_of(made.indices)
        return made.batch if logps is None else {**made.batch, "reference_logps": torch.cat(logps)}


class _Batches(Dataset[Any]):
    """`FeedbackBatches` by lists of indices, for worker processes."""

    def __init__(self, batches: FeedbackBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches.dataset)

    def __getitem__(self, indices: list[int]) -> Indexed | dict[str, Indexed]:
        return self.batches.of(indices)


class FeedbackLoader(DataLoader[Any]):
    """Loads `FeedbackBatches` and finishes them in the process that iterates.

    Lightning starts the workers before training, perhaps before there are reference log-probabilities.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Not a generator, for the workers must start anew at once.
        return map(cast(_Batches, self.dataset).batches.finished, super().__iter__())


class FeedbackDataModule(InstructionDataModule):
    """Pairs, thumbs, scores and instruction rows, mixed as the weights of their sources say.

    Its batches have `FeedbackColumns`: their examples are the answers of all rows. For a module that mixes objectives
    (attribute ``parts``) a batch is a mapping from the name of each part to such a batch. A row goes to the part that
    the option ``part`` of its source names, by default to the one named as its kind.

    Rows that the trainer's module does not train on are refused in `setup`. A module that compares answers with
    mismatched ones (``needs_mismatched``) gets one as a further side of each unpaired row and of each pair.

    For a module that trains one part in each step (attribute ``choice``, an option ``schedule``) every optimizer step
    has rows of every part, in proportion; it needs `batch_size`, and no `interleave_parts`.

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
        if interleave_parts and self.tokens_per_batch is not None:
            raise UserError(
                "data.interleave_parts counts the rows of a step, which data.tokens_per_batch leaves open. Set "
                "data.batch_size instead."
            )
        self.interleave_parts = interleave_parts
        self._in_every_step = False

    def train_parts(self) -> Sequence[int] | None:
        """Number of each training row's part with `interleave_parts` or a module's schedule; else None."""
        parts = self.datasets["train"].parts
        wanted = self.interleave_parts or self._in_every_step
        return parts.of_rows.tolist() if wanted and parts is not None else None

    @property
    def parts_in_every_step(self) -> bool:
        """Whether the module trains one part in each step, which it chooses."""
        return self._in_every_step

    def _check_schedule(self) -> None:
        """Refuse what a module cannot choose in."""
        if self.interleave_parts:
            raise UserError(
                "data.interleave_parts gives an optimizer step rows of one part, and model.schedule chooses among the "
                "parts in each. Set one of them."
            )
        if self.tokens_per_batch is not None:
            raise UserError(
                "model.schedule needs rows of every part in each step, which data.tokens_per_batch leaves open. Set "
                "data.batch_size instead."
            )

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

    def fit_to_module(self, split: Split, module: L.LightningModule) -> None:
        """Refuse rows that the module does not train on, send them to its parts, and give them mismatched answers."""
        rows, sources, parts = self.datasets[split].rows, self.sources_of(split), parts_of(module)
        found: RowParts | None = None
        if parts is None:
            check_match(split, rows, sources, module)
            judged = [np.arange(len(rows))] if getattr(module, "needs_mismatched", False) else []
        else:
            kept = self.reports[split].sources
            counted = [(source, kept[source.name].rows) for source in sources if source.name in kept]
            found = route(split, rows, counted, parts, needs_all=split == "train")
            judged = [found.rows_of(name) for name in found.names if getattr(parts[name], "needs_mismatched", False)]
        try:
            partners = mismatched_partners(split, rows, judged)
        except UserError as error:
            if not self.may_be_empty(split):
                raise
            self.leave_out(split, error)
            return
        if not np.array_equal(partners, self.datasets[split].partners):
            self.datasets[split] = EncodedDataset(rows, partners=partners, max_length=self.max_length)
        self.datasets[split].parts = found
        if split != "train":
            return
        self._in_every_step = getattr(module, "choice", None) is not None
        if self._in_every_step:
            self._check_schedule()
        elif self.interleave_parts:
            self._check_interleaving(module, found)

    def batches(self, split: Split, options: BatchOptions) -> SplitBatches:
        """All answers of the rows; of predict their first one, which has the prompt."""
        if split == "predict":
            return super().batches(split, options)
        return FeedbackBatches(self.datasets[split], options, split)


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


def _as_it_is(batch: Any) -> Any:
    return batch
