"""The part of a LightningDataModule that all conversation data shares: encode, batch, report."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, Literal, TypeVar, get_args

import lightning as L
import torch
from torch.utils.data import DataLoader

from lit_ift.data.chat import check_tokenizer, resolve_chat_template
from lit_ift.data.collate import Batch, collate
from lit_ift.data.encode import (
    DataReport,
    EncodedDataset,
    OnBadRow,
    ParsedRows,
    announce,
    encode_rows,
    parse_records,
)
from lit_ift.data.records import OnRowError, Record, raise_row_error
from lit_ift.data.sampler import LengthGroupedBatchSampler, SequentialBatchSampler
from lit_ift.errors import UserError
from lit_ift.models.load import load_tokenizer

T = TypeVar("T")
Split = Literal["train", "val", "test", "predict"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

STAGE_SPLITS: Final[dict[str, tuple[Split, ...]]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
"""Which splits each of Lightning's stages needs."""


class ConversationDataModule(L.LightningDataModule):
    """Batches of tokenized conversations with labels on the assistant's turns.

    A subclass says where rows come from (`records`) and which splits there are (`has_split`). Every process reads and
    encodes the rows itself and gets the same result. After `setup`, `reports` tells what became of the rows.

    Args:
        tokenizer: folder or hub id of a tokenizer, or a tokenizer; by default the module's ``tokenizer``.
        chat_template: built-in name (chatml, zephyr), file or jinja text to set on the tokenizer.
        max_length: longest row [tokens]; longer ones lose their end.
        batch_size: training rows a process and batch.
        eval_batch_size: the same for the other splits; by default `batch_size`.
        group_by_length: put rows of similar length into one batch.
        num_workers: processes that collate batches; 0 does it in the main one.
        on_bad_row: stop at the first row that cannot be used, or skip and report such rows.
        max_rows: use only so many rows of each source, the first ones.
        seed: of the order of the training rows.
    """

    def __init__(
        self,
        *,
        tokenizer: str | Any | None = None,
        chat_template: str | None = None,
        max_length: int = 1024,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        group_by_length: bool = True,
        num_workers: int = 0,
        on_bad_row: OnBadRow = "error",
        max_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require("max_length", max_length, minimum=2)
        _require("batch_size", batch_size, minimum=1)
        _require("eval_batch_size", eval_batch_size, minimum=1)
        _require("num_workers", num_workers, minimum=0)
        _require("max_rows", max_rows, minimum=1)
        if on_bad_row not in get_args(OnBadRow):
            raise UserError(f"data.on_bad_row={on_bad_row!r} must be one of {', '.join(get_args(OnBadRow))}.")
        # Checkpoints are loaded with weights_only, which takes plain values and no tokenizer object.
        plain = tokenizer is None or isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=[] if plain else ["tokenizer"], logger=False)
        self.tokenizer_source = tokenizer
        self.chat_template = None if chat_template is None else resolve_chat_template(chat_template)
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.group_by_length = group_by_length
        self.num_workers = num_workers
        self.on_bad_row: OnBadRow = on_bad_row
        self.max_rows = max_rows
        self.seed = seed
        self.layout: str | None = None
        self.reports: dict[str, DataReport] = {}
        self.datasets: dict[Split, EncodedDataset] = {}
        self._tokenizer: Any = None

    @abstractmethod
    def has_split(self, split: Split) -> bool:
        """Whether `records` can give this split."""

    @abstractmethod
    def records(self, split: Split, on_row_error: OnRowError = raise_row_error) -> Iterator[Record]:
        """The rows of a split, in a fixed order.

        Args:
            split: one for which `has_split` is true.
            on_row_error: receives rows that cannot be read.
        """

    def first_rows(self, rows: Iterable[T]) -> Iterator[T]:
        """The first `max_rows` of the rows of one source; all of them for None."""
        return islice(rows, self.max_rows)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in use, with the chat template set.

        Raises:
            UserError: there is none, or it does not fit the model's.
        """
        if self._tokenizer is None:
            self._tokenizer = self._resolve_tokenizer()
        return self._tokenizer

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the splits that `stage` needs (all of them for None), once each."""
        needed = SPLITS if stage is None else STAGE_SPLITS[stage]
        missing = [split for split in needed if self.has_split(split) and split not in self.datasets]
        speaks = self.trainer is None or self.trainer.is_global_zero
        for split, parsed in self.parse_splits(missing).items():
            self.datasets[split], self.reports[split] = encode_rows(
                parsed,
                self.tokenizer,
                split=split,
                max_length=self.max_length,
                on_bad_row=self.on_bad_row,
                show_progress=speaks,
            )
            if speaks:
                announce(self.reports[split])

    def parse_splits(self, splits: list[Split]) -> dict[Split, ParsedRows]:
        """Read the rows of `splits` and turn them into conversations."""
        return {split: self._parse(split) for split in splits}

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the order is a pure function of seed, epoch and number of processes."""
        dataset = self._dataset("train")
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            # The same first batches must come back in every epoch.
            return self._loader(dataset, self._sequential(dataset, self.batch_size, group_by_length=False))
        sampler = LengthGroupedBatchSampler(
            dataset.lengths,
            batch_size=self.batch_size,
            group_by_length=self.group_by_length,
            seed=self.seed,
        )
        if self.trainer is not None:
            # Lightning sets the epoch only after it made the iterator, and worker processes prefetch at once.
            progress = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)  # type: ignore[attr-defined]
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> Any:
        """Batches by falling length; no loader if there is no validation data, so that fit goes without."""
        return self._eval_loader("val", "validate", self.group_by_length)

    def test_dataloader(self) -> Any:
        """Batches by falling length."""
        return self._eval_loader("test", "test", self.group_by_length)

    def predict_dataloader(self) -> Any:
        """Batches in the order of the source."""
        return self._eval_loader("predict", "predict", group_by_length=False)

    def _parse(self, split: Split) -> ParsedRows:
        rows = ParsedRows()
        on_row_error = rows.errors.append if self.on_bad_row == "skip" else raise_row_error
        return parse_records(self.records(split, on_row_error), rows, layout=self.layout, on_bad_row=self.on_bad_row)

    def _dataset(self, split: Split) -> EncodedDataset:
        if not self.has_split(split):
            raise UserError(f"There is no {split} data. Set data.{split} (for tasks: data.{split}_size).")
        if split not in self.datasets:
            raise UserError(f"The {split} data is not set up. Call setup() before asking for its loader.")
        return self.datasets[split]

    def _eval_loader(self, split: Split, command: str, group_by_length: bool) -> Any:
        asked = self.trainer is not None and self.trainer.state.fn == command
        if not self.has_split(split) and not asked:
            return []
        dataset = self._dataset(split)
        return self._loader(dataset, self._sequential(dataset, self.eval_batch_size, group_by_length))

    @staticmethod
    def _sequential(dataset: EncodedDataset, batch_size: int, group_by_length: bool) -> SequentialBatchSampler:
        return SequentialBatchSampler(dataset.lengths, batch_size=batch_size, group_by_length=group_by_length)

    def _loader(self, dataset: EncodedDataset, sampler: LengthGroupedBatchSampler) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # The sampler already yields batches.
            collate_fn=partial(_collate, pad_token_id=self._pad_token_id()),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Making an iterator draws a seed; from the global generator it would change the model's dropout.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _pad_token_id(self) -> int:
        # Padding is masked by position, so any id that the embedding knows will do.
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return int(token_id)
        raise UserError("The tokenizer has neither a pad_token nor an eos_token. Set one of them on it.")

    def _resolve_tokenizer(self) -> Any:
        module = None if self.trainer is None else self.trainer.lightning_module
        chosen = self.tokenizer_source
        if chosen is None:
            chosen = of_module = getattr(module, "tokenizer", None)
        else:
            chosen = load_tokenizer(chosen) if isinstance(chosen, str) else chosen
            of_module = _share_tokenizer(chosen, module)
        if chosen is None:
            raise UserError(
                "No tokenizer: neither data.tokenizer nor a tokenizer on the module. Set data.tokenizer to a folder "
                "or a hub id."
            )
        if of_module is not None and chosen.get_vocab() != of_module.get_vocab():
            raise UserError("data.tokenizer has another vocabulary than the model's tokenizer. Remove data.tokenizer.")
        for tokenizer in (chosen, of_module):
            # The module's own copy is the one that is exported, and must export the template that was trained.
            if tokenizer is not None and self.chat_template is not None:
                tokenizer.chat_template = self.chat_template
        if of_module is not None and chosen.chat_template != of_module.chat_template:
            raise UserError(
                "data.tokenizer has another chat template than the model's tokenizer, which is the one that is "
                "exported. Set data.chat_template, or remove data.tokenizer."
            )
        check_tokenizer(chosen)
        return chosen


def _share_tokenizer(tokenizer: Any, module: Any) -> Any:
    """The tokenizer of a module that has one; a `CausalLMModule` that knows none is given `tokenizer`."""
    if not getattr(module, "knows_tokenizer", True):
        module.tokenizer = tokenizer
    return getattr(module, "tokenizer", None)


def _collate(examples: list[Any], *, pad_token_id: int) -> Batch:
    return collate(examples, pad_token_id=pad_token_id)


def _require(name: str, value: int | None, *, minimum: int) -> None:
    if value is not None and value < minimum:
        raise UserError(f"data.{name}={value} must be at least {minimum}.")
