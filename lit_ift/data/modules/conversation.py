"""The part of a LightningDataModule that all conversation data shares: encode, batch, report."""

import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from lit_ift.chat.encoder import is_built_in_template, resolve_chat_template, with_bos
from lit_ift.chat.example import Example
from lit_ift.chat.templates import check_fast, plain_marks, tokenizer_name
from lit_ift.data.batch.collate import Batch, PackedBatch, collate, collate_packed
from lit_ift.data.batch.cursor import TrainingCursor
from lit_ift.data.batch.dataset import EncodedDataset
from lit_ift.data.batch.sampler import LengthGroupedBatchSampler, SequentialBatchSampler
from lit_ift.data.cache import DamagedEntryError, RowCache, code_version, default_cache_dir, tokenizer_digest
from lit_ift.data.pipeline import EncodingOptions, OnBadRow, Part, encode_parts
from lit_ift.data.read.records import OnRowError, Record, raise_row_error
from lit_ift.data.report.account import DataReport, NoUsableRowError, announce, announce_missing_bos, unusable
from lit_ift.data.report.builder import Check, ReportBuilder
from lit_ift.data.requirements import check_match
from lit_ift.data.rows import EncodedRow, Row, RowKind
from lit_ift.data.store import StoredRows
from lit_ift.data.train_on import TrainOn
from lit_ift.data.truncation import Truncation
from lit_ift.errors import UserError
from lit_ift.models.added_tokens import ZEPHYR
from lit_ift.models.load import load_tokenizer
from lit_ift.models.packing_check import packs_into_one_row

logger = logging.getLogger("lit_ift")

T = TypeVar("T")
DEFAULT_BATCH_SIZE: Final = 8
"""Rows a process and batch where nothing is said of the size of batches."""

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

    A subclass says where rows come from (`records`) and which splits there are (`has_split`). If it also says what they
    depend on (`fingerprint`), they are tokenized once into a cache; otherwise every process encodes them itself and
    gets the same result. After `setup`, `reports` tells what became of the rows.

    A run that is resumed from a checkpoint goes on with the batch after the last one that the checkpoint was trained
    on, also inside an epoch.

    Rows of the split ``predict`` need no answer: those that end with a question are encoded as a prompt.

    Args:
        tokenizer: folder or hub id of a tokenizer, or a tokenizer; by default the module's ``tokenizer``.
        chat_template: built-in name (chatml, zephyr), file or jinja text to set on the tokenizer. A built-in one
            writes the bos_token first if the tokenizer by itself starts a text with it.
        max_length: longest row [tokens].
        truncation: what happens to longer rows: they lose their end (``right``), the start of their prompt first
            (``left_of_prompt``), are left out (``drop``) or, if they are texts, split into pieces (``split``). By
            default texts are split and conversations lose their end. The report counts them.
        train_on: what of conversations is trained on: all turns of the assistant, its ``last`` turn alone, or ``all``
            of it, prompts and what the chat template writes too. Turns that a row marks as not to be trained on are
            left out in any case. For instruction rows; other answers are trained as they were judged.
        batch_size: training rows a process and batch; 8 unless `tokens_per_batch` is given.
        tokens_per_batch: input tokens a process and batch at most, instead of `batch_size`; padding counts, unless
            rows are packed. All epochs have equally many batches. Without `packing` rows of similar length share a
            batch, with it each batch is a random sample of all lengths.
        eval_batch_size: rows a process and batch of the other splits; by default as for training.
        pad_to_multiple_of: pad batches to a multiple of so many tokens; by default to the longest row.
        packing: put the examples of a batch one after the other into as few rows as are needed, each as long as the
            longest example. Which examples a batch has, their losses and gradients stay the same; only padding is
            saved, so it serves where `group_by_length` is off. Rows to be answered (predict) are never packed.
        padding_free: pack all examples of a batch into one row; by default where the model's attention is made for
            it (flash attention). Elsewhere one long row costs time and memory quadratic in its length.
        group_by_length: put rows of similar length into one batch; by default True, but with `tokens_per_batch` it
            is for `packing` to say.
        num_workers: processes that collate batches; 0 does it in the main one.
        on_bad_row: stop at the first row that cannot be used, or skip and report such rows.
        max_rows: use only so many rows of each source, the first ones.
        cache: keep tokenized rows on disk, where their source can be told apart (files, folders, hub). They are then
            tokenized once, by one process a machine, and read through a memory map, so they may be larger than memory.
        cache_dir: folder for them; by default ``$LIT_IFT_DATA_CACHE``, else ``checkpoints/data``.
        seed: of the order of the training rows.
    """

    kinds: frozenset[RowKind] = frozenset({"instruction"})
    """Rows that this data module takes."""

    def __init__(
        self,
        *,
        tokenizer: str | Any | None = None,
        chat_template: str | None = None,
        max_length: int = 1024,
        truncation: Truncation | None = None,
        train_on: TrainOn = "assistant",
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        eval_batch_size: int | None = None,
        pad_to_multiple_of: int | None = None,
        packing: bool = False,
        padding_free: bool | None = None,
        group_by_length: bool | None = None,
        num_workers: int = 0,
        on_bad_row: OnBadRow = "error",
        max_rows: int | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require("max_length", max_length, minimum=2, may_be_none=False)
        _require("batch_size", batch_size, minimum=1)
        _require("tokens_per_batch", tokens_per_batch, minimum=1)
        _require("eval_batch_size", eval_batch_size, minimum=1)
        _require("pad_to_multiple_of", pad_to_multiple_of, minimum=1)
        _require("num_workers", num_workers, minimum=0, may_be_none=False)
        _require("max_rows", max_rows, minimum=1)
        _require("seed", seed, may_be_none=False)
        if not -(2**63) <= seed < 2**63:
            raise UserError(f"data.seed={seed} must fit 64 bits.")
        for option, flag in (
            ("packing", packing),
            ("padding_free", padding_free),
            ("group_by_length", group_by_length),
            ("cache", cache),
        ):
            require_type(option, flag, bool, "true or false")
        require_type("cache_dir", cache_dir, (str, Path), "a folder")
        require_type("chat_template", chat_template, str, "a built-in name, a file or jinja text")
        if tokenizer is not None and not isinstance(tokenizer, str) and not hasattr(tokenizer, "get_vocab"):
            raise UserError(f"data.tokenizer={tokenizer!r} must be a folder, a hub id or a tokenizer.")
        for option, value, choices in (
            ("on_bad_row", on_bad_row, get_args(OnBadRow)),
            ("truncation", truncation, get_args(Truncation)),
            ("train_on", train_on, get_args(TrainOn)),
        ):
            if value not in choices and not (option == "truncation" and value is None):
                raise UserError(f"data.{option}={value!r} must be one of {', '.join(choices)}.")
        _check_batching(batch_size, tokens_per_batch, packing, padding_free, group_by_length)
        # Checkpoints are loaded with weights_only, which takes plain values and no tokenizer object.
        plain = tokenizer is None or isinstance(tokenizer, str)
        self.save_hyperparameters(ignore=[] if plain else ["tokenizer"], logger=False)
        self.tokenizer_source = tokenizer
        self.chat_template = None if chat_template is None else resolve_chat_template(chat_template)
        self.template_is_built_in = chat_template is not None and is_built_in_template(chat_template)
        self.max_length = max_length
        self.truncation: Truncation | None = truncation
        self.train_on: TrainOn = train_on
        self.batch_size = DEFAULT_BATCH_SIZE if batch_size is None and tokens_per_batch is None else batch_size
        self.tokens_per_batch = tokens_per_batch
        self.eval_batch_size = eval_batch_size
        self.pad_to_multiple_of = pad_to_multiple_of
        self.packing = packing
        self.padding_free = padding_free
        self.group_by_length = group_by_length
        self.num_workers = num_workers
        self.on_bad_row: OnBadRow = on_bad_row
        self.max_rows = max_rows
        self.cache = RowCache(default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser())
        self.uses_cache = cache
        self.seed = seed
        self.reports: dict[str, DataReport] = {}
        self.datasets: dict[Split, EncodedDataset] = {}
        self._tokenizer: Any = None
        self._loaded_tokenizer: Any = None
        self._encoded_with: str | None = None
        self.check: Check | None = None
        self._cursor = TrainingCursor(self)

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

    def parts(self, split: Split) -> list[Part]:
        """Where the rows of a split come from; by default all from `records`, in any known layout."""
        return [Part(type(self).__name__, lambda on_row_error: self.records(split, on_row_error))]

    def fingerprint(self, split: Split) -> dict[str, Any] | None:
        """Plain values that change whenever the rows of a split could; None if they are not to be cached.

        Rows of a subclass outside this package are cached only if it says here what they depend on.
        """
        return None

    def takes(self, split: Split, row: Row) -> bool:
        """Whether a row of `parts` belongs to the split; by default every one does."""
        return True

    def split_option(self, split: Split) -> str:
        """The option that gives a split its rows, for messages."""
        return f"data.{split}"

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

    def prepare_data(self) -> None:
        """Tokenize into the cache what the coming stage needs; done by one process a machine, before `setup`."""
        stage = None if self.trainer is None else self.trainer.state.fn
        for split, key in self._cache_keys(self._splits_of(stage)).items():
            if key is not None and self._cached(split, key) is None:
                self._fill_cache(split, key)

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the splits that `stage` needs (all of them for None), once each.

        They are encoded again if another model has come that has another vocabulary or chat template.

        Raises:
            UserError: rows cannot be used, or the trainer's module does not take rows of their kind.
        """
        if stage == "fit":
            self._cursor.clear()
        speaks = self._speaks
        if self.datasets:
            self._drop_what_another_tokenizer_encoded(speaks)
        missing = [split for split in self._splits_of(stage) if split not in self.datasets]
        keys = self._cache_keys(missing)
        if missing:
            self._encoded_with = tokenizer_digest(self.tokenizer)
        for split, key in keys.items():
            rows, report = self._obtain(split, key)
            self.datasets[split] = EncodedDataset(rows)
            self.reports[split] = report
            if not report.rows_kept:
                self._leave_out(split, self.no_usable_row(split, report))
            elif speaks:
                announce(report)
        if speaks:
            announce_missing_bos(self.reports[split] for split in missing)
        module = None if self.trainer is None else self.trainer.lightning_module
        if module is not None:
            for split in self._splits_of(stage):
                self._match(split, module)

    def may_be_empty(self, split: Split) -> bool:
        """Whether a run goes without the split if it has no row that can be used; by default none may."""
        return False

    def _leave_out(self, split: Split, reason: UserError) -> None:
        """Go on without a split that `may_be_empty`."""
        self.datasets[split] = EncodedDataset(StoredRows.in_memory([]))
        if self._speaks:
            logger.warning("%s The run goes without validation.", reason)

    def _match(self, split: Split, module: L.LightningModule) -> None:
        """Refuse rows that the module does not train on. Predict has prompts alone, which every module takes."""
        if split != "predict":
            check_match(split, self.datasets[split].rows, self.parts(split), module)

    def cache_folder(self, split: Split) -> Path | None:
        """Where the tokenized rows of a split are kept, or will be; None if they are not."""
        key = self._cache_keys([split])[split]
        return None if key is None else self.cache.entry(split, key)

    def _splits_of(self, stage: str | None) -> list[Split]:
        needed = SPLITS if stage is None else STAGE_SPLITS[stage]
        return [split for split in needed if self.has_split(split)]

    @property
    def _speaks(self) -> bool:
        return self.trainer is None or self.trainer.is_global_zero

    def _obtain(self, split: Split, key: dict[str, Any] | None) -> tuple[StoredRows, DataReport]:
        if key is None:
            builder = self._report_builder(split)
            return StoredRows.in_memory(self._encode(split, builder)), self._finish(split, builder)
        found = self._cached(split, key)
        if found is None:
            self._fill_cache(split, key)
            found = self._cached(split, key)
        assert found is not None
        rows, report = found
        # Weights take no part in the key, for they change no row.
        weights = {part.name: part.weight for part in self.parts(split)}
        sources = {name: replace(count, weight=weights[name]) for name, count in report.sources.items()}
        return rows, replace(report, sources=sources)

    def _cached(self, split: Split, key: dict[str, Any]) -> tuple[StoredRows, DataReport] | None:
        """What the cache holds of a split, verified once; a damaged entry is taken away, to be made again."""
        # With a trainer, this process verifies in `prepare_data`, while the others of the machine wait.
        may_write = self.trainer is None or self.trainer.local_rank == 0
        try:
            found = self.cache.load(split, key, verify=may_write)
            return None if found is None else (found[0], DataReport.from_dict(found[1]))
        except (DamagedEntryError, KeyError, TypeError, AttributeError) as error:
            entry = self.cache.entry(split, key)
            if not may_write:
                raise error if isinstance(error, UserError) else DamagedEntryError(entry, error) from error
            logger.warning("The cached data in %s is damaged, so its rows are tokenized again: %s", entry, error)
            self.cache.remove(split, key)
            return None

    def _fill_cache(self, split: Split, key: dict[str, Any]) -> None:
        builder = self._report_builder(split)
        rows = self._encode(split, builder)
        self.cache.add(split, key, rows, lambda: self._finish(split, builder).as_dict())

    def _cache_keys(self, splits: Sequence[Split]) -> dict[Split, dict[str, Any] | None]:
        """What the rows of each split depend on; None where they are not cached."""
        is_cached = self.uses_cache and self._speaks_for_its_rows
        of_rows = {split: self.fingerprint(split) if is_cached else None for split in splits}
        if all(rows is None for rows in of_rows.values()):
            return dict.fromkeys(splits)
        shared = {
            "tokenizer": tokenizer_digest(self.tokenizer),  # Large vocabularies take a second, so once for all splits.
            "max_length": self.max_length,
            "truncation": self.truncation,
            "train_on": self.train_on,
            "on_bad_row": self.on_bad_row,
            "kinds": sorted(self.kinds),
            "code": code_version(),
        }
        return {
            split: None if rows is None else {"rows": rows, "needs_answer": split != "predict", **shared}
            for split, rows in of_rows.items()
        }

    @property
    def _speaks_for_its_rows(self) -> bool:
        """Whether no class from elsewhere, which may take or change rows as it likes, comes before `fingerprint`."""
        for kind in type(self).__mro__:
            if "fingerprint" in vars(kind):
                return True
            if kind.__module__.partition(".")[0] != __name__.partition(".")[0]:
                return False
        return False

    def _report_builder(self, split: Split) -> ReportBuilder:
        weights = {part.name: part.weight for part in self.parts(split)}
        return ReportBuilder(
            split,
            self.tokenizer,
            max_length=self.max_length,
            truncation=self.truncation,
            weights=weights,
            check=self.check,
        )

    def _encode(self, split: Split, builder: ReportBuilder) -> Iterator[EncodedRow]:
        return encode_parts(
            self.parts(split),
            EncodingOptions(
                self.tokenizer, self.max_length, self.truncation, self.kinds, split != "predict", self.train_on
            ),
            builder,
            on_bad_row=self.on_bad_row,
            takes=partial(self.takes, split),
            progress=f"encode {split}" if self._speaks else None,
        )

    def _finish(self, split: Split, builder: ReportBuilder) -> DataReport:
        report = builder.build()
        if unusable(report) and (report.unread or not self.may_be_empty(split)):
            raise self.no_usable_row(split, report)
        return report

    def no_usable_row(self, split: Split, report: DataReport) -> UserError:
        """The error for a split of which no row can be used, or not every file."""
        return NoUsableRowError(report)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the order is a pure function of seed, epoch and rows of an optimizer step."""
        lengths = self._lengths("train", self.packing)
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            # The same first batches must come back in every epoch.
            sampler: LengthGroupedBatchSampler = SequentialBatchSampler(
                lengths, **self._batch_options("train", self.packing), group_by_length=False
            )
        else:
            sampler = LengthGroupedBatchSampler(
                lengths,
                **self._batch_options("train", self.packing),
                accumulate=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
                group_by_length=self.group_by_length,
                groups=self.train_groups(),
                parts=self.train_parts(),
                seed=self.seed,
            )
        self._cursor.prepare(sampler)
        loader = self._loader("train", sampler, self.packing)
        self._cursor.follow(loader)
        return loader

    def train_groups(self) -> Sequence[tuple[int, float]] | None:
        """Number of training rows and weight of each part, in the order of the rows; None where all count once."""
        sources = self.reports["train"].sources
        groups = [(sources[part.name].rows, part.weight) for part in self.parts("train") if part.name in sources]
        return None if all(weight == 1 for _, weight in groups) else groups

    def train_parts(self) -> Sequence[int] | None:
        """Number of each training row's part where an optimizer step has rows of one part alone; else None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Where in the training rows the run is; empty if none is under way."""
        return self._cursor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the run was that wrote `state_dict`.

        Raises:
            UserError: it was inside an epoch, and the training rows now come in another order.
        """
        self._cursor.load_state_dict(state_dict)

    def val_dataloader(self) -> Any:
        """Batches by falling length; no loader if there is no validation data, so that fit goes without."""
        return self._eval_loader("val", "validate", self.group_by_length is not False, self.packing)

    def test_dataloader(self) -> Any:
        """Batches by falling length."""
        return self._eval_loader("test", "test", self.group_by_length is not False, self.packing)

    def predict_dataloader(self) -> Any:
        """Batches in the order of the source."""
        return self._eval_loader("predict", "predict", group_by_length=False, packing=False)

    def _dataset(self, split: Split) -> EncodedDataset:
        if not self.has_split(split):
            raise UserError(f"There is no {split} data. Set {self.split_option(split)}.")
        if split not in self.datasets:
            raise UserError(f"The {split} data is not set up. Call setup() before asking for its loader.")
        return self.datasets[split]

    def _eval_loader(self, split: Split, command: str, group_by_length: bool, packing: bool) -> Any:
        asked = self.trainer is not None and self.trainer.state.fn == command
        if not asked and not (self.has_split(split) and len(self._dataset(split))):
            return []
        if not len(self._dataset(split)):
            raise self.no_usable_row(split, self.reports[split])
        lengths = self._lengths(split, packing)
        options = self._batch_options(split, packing)
        sampler = SequentialBatchSampler(lengths, **options, group_by_length=group_by_length)
        return self._loader(split, sampler, packing)

    def _lengths(self, split: Split, packing: bool) -> Sequence[int]:
        """What each row counts for in a batch of the split [tokens], padding aside."""
        return self._dataset(split).lengths

    def _batch_options(self, split: Split, packing: bool) -> dict[str, Any]:
        given = None if split == "train" else self.eval_batch_size
        return {
            "batch_size": given or self.batch_size,
            "tokens_per_batch": None if given else self.tokens_per_batch,
            "packing": packing,
            "pad_to_multiple_of": self.pad_to_multiple_of,
        }

    def _loader(
        self,
        split: Split,
        sampler: LengthGroupedBatchSampler,
        packing: bool,
        loader_class: type[DataLoader[Any]] = DataLoader,
    ) -> DataLoader[Any]:
        dataset, collate_fn = self._batches(split, packing)
        return loader_class(
            dataset,
            sampler=sampler,
            batch_size=None,  # The sampler already yields batches.
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Making an iterator draws a seed; from the global generator it would change the model's dropout.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _batches(self, split: Split, packing: bool) -> tuple[Dataset[Any], Callable[[Any], Any]]:
        """What gives a value for the indices of a batch, and what makes the batch of it."""
        collate_fn: Any = partial(_collate_packed, one_row=self._one_row()) if packing else _collate
        options = {"pad_token_id": self._pad_token_id(), "pad_to_multiple_of": self.pad_to_multiple_of}
        return self._dataset(split), partial(collate_fn, **options)

    def _one_row(self) -> bool:
        """Whether packed batches are one row: where it is asked for, or the model's attention wants it."""
        module = None if self.trainer is None else self.trainer.lightning_module
        wanted = packs_into_one_row(getattr(module, "model", None))
        if wanted and self.padding_free is False:
            raise UserError(
                "data.padding_free=false: the model's flash attention tells packed examples apart only in a single "
                "row. Leave padding_free out, or set model.attn_implementation to sdpa."
            )
        return wanted if self.padding_free is None else self.padding_free

    def _pad_token_id(self) -> int:
        # Padding is masked by position, so any id that the embedding knows will do.
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return int(token_id)
        raise UserError("The tokenizer has neither a pad_token nor an eos_token. Set one of them on it.")

    def _drop_what_another_tokenizer_encoded(self, speaks: bool) -> None:
        self._tokenizer = self._resolve_tokenizer()
        if tokenizer_digest(self._tokenizer) == self._encoded_with:
            return
        if speaks:
            logger.info(
                "The model's tokenizer has another vocabulary or chat template than the one that the data was encoded "
                "with. It is encoded again."
            )
        self.datasets.clear()
        self.reports.clear()

    def _resolve_tokenizer(self) -> Any:
        module = None if self.trainer is None else self.trainer.lightning_module
        chosen = self.tokenizer_source
        if chosen is None:
            chosen = of_module = getattr(module, "tokenizer", None)
        else:
            if isinstance(chosen, str):
                self._loaded_tokenizer = chosen = self._loaded_tokenizer or load_tokenizer(chosen)
            of_module = _share_tokenizer(chosen, module)
        if chosen is None:
            raise UserError(
                "No tokenizer: neither data.tokenizer nor a tokenizer on the module. Set data.tokenizer to a folder "
                "or a hub id."
            )
        if of_module is not None and chosen.get_vocab() != of_module.get_vocab():
            raise UserError("data.tokenizer has another vocabulary than the model's tokenizer. Remove data.tokenizer.")
        template = self.chat_template
        if template is not None and self.template_is_built_in:
            template = with_bos(template, chosen)
        for tokenizer in (chosen, of_module):
            # The module's own copy is the one that is exported, and must export the template that was trained.
            if tokenizer is not None and template is not None:
                tokenizer.chat_template = template
        if of_module is not None and chosen.chat_template != of_module.chat_template:
            raise UserError(
                "data.tokenizer has another chat template than the model's tokenizer, which is the one that is "
                "exported. Set data.chat_template, or remove data.tokenizer."
            )
        check_fast(chosen)
        if template is not None and (marks := plain_marks(chosen)):
            raise UserError(
                f"The chat template ends turns with a mark that the tokenizer {tokenizer_name(chosen)} has no token "
                f"for, so it would be several plain ones. Set model.added_tokens to {json.dumps(marks)}, or use "
                f"{ZEPHYR}."
            )
        return chosen


def _share_tokenizer(tokenizer: Any, module: Any) -> Any:
    """The tokenizer of a module that has one; a `CausalLMModule` that knows none is given `tokenizer`."""
    if not getattr(module, "knows_tokenizer", True):
        module.tokenizer = tokenizer
    return getattr(module, "tokenizer", None)


def _collate(rows: list[EncodedRow], *, pad_token_id: int, pad_to_multiple_of: int | None) -> Batch:
    return collate(_answers(rows), pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of)


def _collate_packed(
    rows: list[EncodedRow], *, pad_token_id: int, pad_to_multiple_of: int | None, one_row: bool
) -> PackedBatch:
    return collate_packed(
        _answers(rows), pad_token_id=pad_token_id, pad_to_multiple_of=pad_to_multiple_of, one_row=one_row
    )


def _answers(rows: list[EncodedRow]) -> list[Example]:
    return [row.sides["answer"] for row in rows]


def _check_batching(
    batch_size: int | None,
    tokens_per_batch: int | None,
    packing: bool,
    padding_free: bool | None,
    group_by_length: bool | None,
) -> None:
    if batch_size is not None and tokens_per_batch is not None:
        raise UserError(
            f"data.batch_size={batch_size} and data.tokens_per_batch={tokens_per_batch} both say how large a batch "
            "is. Leave one of them out."
        )
    if padding_free is not None and not packing:
        raise UserError(f"data.padding_free={padding_free} has no effect without data.packing. Leave it out.")
    if tokens_per_batch is not None and group_by_length not in (None, not packing):
        given = "data.packing" if packing else "data.tokens_per_batch without data.packing"
        does = "samples all lengths" if packing else "always groups rows by length"
        raise UserError(f"data.group_by_length={group_by_length} has no effect: {given} {does}. Leave it out.")


def _require(name: str, value: Any, *, minimum: int | None = None, may_be_none: bool = True) -> None:
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"data.{name}={value!r} must be a whole number.")
    if minimum is not None and value < minimum:
        raise UserError(f"data.{name}={value} must be at least {minimum}.")


def require_type(name: str, value: Any, wanted: type | tuple[type, ...], what: str) -> None:
    """Raise a `UserError` that names the option if its value is neither None nor of a wanted type."""
    if value is not None and not isinstance(value, wanted):
        raise UserError(f"data.{name}={value!r} must be {what}.")
