"""The loaders of a data module whose splits are set up."""

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from lit_ift.data.batch.cursor import TrainingCursor
from lit_ift.data.batch.dataset import EncodedDataset
from lit_ift.data.batch.sampler import LengthGroupedBatchSampler, SequentialBatchSampler
from lit_ift.data.modules.batches import BatchOptions, SplitBatches
from lit_ift.errors import UserError
from lit_ift.models.packing_check import packs_into_one_row

if TYPE_CHECKING:
    from lit_ift.data.modules.conversation import ConversationDataModule, Split


class Loaders:
    """Makes loaders as the options of a data module say, and lets a resumed run begin where it was."""

    def __init__(self, data: "ConversationDataModule") -> None:
        self._data = data
        self.cursor = TrainingCursor(data)

    def train(self) -> DataLoader[Any]:
        """Shuffled batches from where the run is."""
        data = self._data
        batches = self.split_batches("train", data.packing)
        if data.trainer is not None and data.trainer.overfit_batches:  # type: ignore[attr-defined]
            # The same first batches must come back in every epoch.
            sampler: LengthGroupedBatchSampler = SequentialBatchSampler(
                batches.lengths, **batches.sampler_options(), group_by_length=False
            )
        else:
            sampler = LengthGroupedBatchSampler(
                batches.lengths,
                **batches.sampler_options(),
                accumulate=1 if data.trainer is None else data.trainer.accumulate_grad_batches,
                group_by_length=data.group_by_length,
                groups=data.train_groups(),
                parts=data.train_parts(),
                in_every_step=data.parts_in_every_step,
                seed=data.order_seed,
            )
        self.cursor.prepare(sampler)
        loader = self._loader(batches, sampler)
        self.cursor.follow(loader)
        return loader

    def evaluation(self, split: "Split", command: str) -> Any:
        """Batches of another split by falling length, or as they come for predict; none where none is asked for."""
        data = self._data
        asked = data.trainer is not None and data.trainer.state.fn == command
        if not asked and not (data.has_split(split) and len(self._dataset(split))):
            return []
        if not len(self._dataset(split)):
            raise data.no_usable_row(split, data.reports[split])
        is_measured = split != "predict"
        batches = self.split_batches(split, data.packing and is_measured)
        by_length = data.group_by_length is not False and is_measured
        sampler = SequentialBatchSampler(batches.lengths, **batches.sampler_options(), group_by_length=by_length)
        return self._loader(batches, sampler)

    def _dataset(self, split: "Split") -> EncodedDataset:
        if not self._data.has_split(split):
            raise UserError(f"There is no {split} data. Set {self._data.split_option(split)}.")
        if split not in self._data.datasets:
            raise UserError(f"The {split} data is not set up. Call setup() before asking for its loader.")
        return self._data.datasets[split]

    def split_batches(self, split: "Split", packing: bool) -> SplitBatches:
        """The batches of a split, packed or padded."""
        self._dataset(split)
        data = self._data
        given = None if split == "train" else data.eval_batch_size
        options = BatchOptions(
            batch_size=given or data.batch_size,
            tokens_per_batch=None if given else data.tokens_per_batch,
            packing=packing,
            one_row=packing and self._one_row(),
            pad_to_multiple_of=data.pad_to_multiple_of,
            pad_token_id=self._pad_token_id(),
        )
        return data.batches(split, options)

    def _loader(self, batches: SplitBatches, sampler: LengthGroupedBatchSampler) -> DataLoader[Any]:
        return batches.loader(
            sampler=sampler,
            num_workers=self._data.num_workers,
            persistent_workers=self._data.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Making an iterator draws a seed; from the global generator it would change the model's dropout.
            generator=torch.Generator().manual_seed(self._data.order_seed),
        )

    def _one_row(self) -> bool:
        """Whether packed batches are one row: where it is asked for, or the model's attention wants it."""
        wanted = packs_into_one_row(getattr(self._data.module, "model", None))
        if wanted and self._data.padding_free is False:
            raise UserError(
                "data.padding_free=false: the model's flash attention tells packed examples apart only in a single "
                "row. Leave padding_free out, or set model.attn_implementation to sdpa."
            )
        return wanted if self._data.padding_free is None else self._data.padding_free

    def _pad_token_id(self) -> int:
        # Padding is masked by position, so any id that the embedding knows will do.
        for token_id in (self._data.tokenizer.pad_token_id, self._data.tokenizer.eos_token_id):
            if token_id is not None:
                return int(token_id)
        raise UserError("The tokenizer has neither a pad_token nor an eos_token. Set one of them on it.")


def check_batching(data: "ConversationDataModule") -> None:
    """Refuse options of batches that contradict each other, or of which one has no effect."""
    grouped, by_tokens = data.group_by_length, data.tokens_per_batch is not None
    given = "data.packing" if data.packing else "data.tokens_per_batch without data.packing"
    does = "samples all lengths" if data.packing else "always groups rows by length"
    problems = {
        f"data.batch_size={data.batch_size} and data.tokens_per_batch={data.tokens_per_batch} both say how large a "
        "batch is. Leave one of them out.": data.batch_size is not None and by_tokens,
        f"data.padding_free={data.padding_free} has no effect without data.packing. Leave it out.": (
            data.padding_free is not None and not data.packing
        ),
        f"data.group_by_length={grouped} has no effect: {given} {does}. Leave it out.": (
            by_tokens and grouped not in (None, not data.packing)
        ),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise UserError(problem)
