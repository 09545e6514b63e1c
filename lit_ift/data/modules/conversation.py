"""The part of a LightningDataModule that all conversation data shares: encode, batch, report."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import lightning as L
from torch.utils.data import DataLoader

from lit_ift.data.batch.dataset import EncodedDataset
from lit_ift.data.cache import RowCache, default_cache_dir, tokenizer_digest
from lit_ift.data.modules.batches import BatchOptions, SplitBatches
from lit_ift.data.modules.loaders import Loaders, check_batching
from lit_ift.data.modules.split_rows import SplitRows
from lit_ift.data.modules.tokenizer_choice import TokenizerChoice
from lit_ift.data.pipeline import OnBadRow, ResolvedSource
from lit_ift.data.read.readers import OnRowError, Record, raise_row_error
from lit_ift.data.report.account import DataReport, NoUsableRowError, announce, announce_missing_bos
from lit_ift.data.report.builder import Check
from lit_ift.data.requirements import check_match
from lit_ift.data.rows import Row, RowKind
from lit_ift.data.store import StoredRows
from lit_ift.data.train_on import TrainOn
from lit_ift.data.truncation import Truncation
from lit_ift.errors import UserError
from lit_ift.options import NonNegativeInt, PositiveInt, Range, check_options

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
        train_on: what of conversations is trained on: all turns of the assistant, its ``last`` turn alone, the
            ``completion`` with all that the chat template writes after its start, or ``all`` of it, prompts and what
            the chat template writes too. Turns that a row marks as not to be trained on are left out in any case. For
            instruction rows; other answers are trained as they were judged.
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
        order_seed: of that order alone, where `seed` decides other things too; `seed` by default.
    """

    kinds: frozenset[RowKind] = frozenset({"instruction"})
    """Rows that this data module takes."""

    def __init__(
        self,
        *,
        tokenizer: str | Any | None = None,
        chat_template: str | None = None,
        max_length: Annotated[int, Range(ge=2)] = 1024,
        truncation: Truncation | None = None,
        train_on: TrainOn = "assistant",
        batch_size: PositiveInt | None = None,
        tokens_per_batch: PositiveInt | None = None,
        eval_batch_size: PositiveInt | None = None,
        pad_to_multiple_of: PositiveInt | None = None,
        packing: bool = False,
        padding_free: bool | None = None,
        group_by_length: bool | None = None,
        num_workers: NonNegativeInt = 0,
        on_bad_row: OnBadRow = "error",
        max_rows: PositiveInt | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        seed: Annotated[int, Range(ge=-(2**63), lt=2**63)] = 0,
        order_seed: Annotated[int, Range(ge=-(2**63), lt=2**63)] | None = None,
    ) -> None:
        super().__init__()
        # Checkpoints are loaded with weights_only, which takes plain values and no tokenizer object.
        plain = tokenizer is None or isinstance(tokenizer, str)
        # Finds the options of the subclasses, too.
        self.save_hyperparameters(ignore=[] if plain else ["tokenizer"], logger=False)
        try:
            check_options(type(self), self.hparams, prefix="data.")
        except ValueError as error:
            raise UserError(f"{error}.") from None
        if not plain and not hasattr(tokenizer, "get_vocab"):
            raise UserError(f"data.tokenizer={tokenizer!r} must be a folder, a hub id or a tokenizer.")
        self.tokenizer_source = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self.train_on = train_on
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.eval_batch_size = eval_batch_size
        self.pad_to_multiple_of = pad_to_multiple_of
        self.packing = packing
        self.padding_free = padding_free
        self.group_by_length = group_by_length
        self.num_workers = num_workers
        self.on_bad_row = on_bad_row
        self.max_rows = max_rows
        self.cache = RowCache(default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser())
        self.uses_cache = cache
        self.seed = seed
        self.order_seed = seed if order_seed is None else order_seed
        check_batching(self)
        if batch_size is None and tokens_per_batch is None:
            self.batch_size = DEFAULT_BATCH_SIZE
        self.reports: dict[str, DataReport] = {}
        self.datasets: dict[Split, EncodedDataset] = {}
        self.check: Check | None = None
        self._choice = TokenizerChoice(chat_template)
        self._tokenizer: Any = None
        self._encoded_with: str | None = None
        self._resolved: dict[Split, Sequence[ResolvedSource]] = {}
        self._prepared: dict[Split, dict[str, Any]] = {}
        self._loaders = Loaders(self)

    # What a subclass says ----------------------------------------------------------------------------------------

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

    def resolve_sources(self, split: Split) -> Sequence[ResolvedSource]:
        """Where the rows of a split come from; by default all from `records`, in any known layout. Asked once."""
        return [ResolvedSource(type(self).__name__, partial(self.records, split))]

    def fingerprint(self, split: Split) -> dict[str, Any] | None:
        """Plain values that change whenever the rows of a split could; None if they are not to be cached.

        Rows of a subclass outside this package are cached only if it says here what they depend on.
        """
        return None

    def takes(self, split: Split, row: Row) -> bool:
        """Whether a row of the split's sources belongs to it; by default every one does."""
        return True

    def split_option(self, split: Split) -> str:
        """The option that gives a split its rows, for messages."""
        return f"data.{split}"

    def may_be_empty(self, split: Split) -> bool:
        """Whether a run goes without the split if it has no row that can be used; by default none may."""
        return False

    def no_usable_row(self, split: Split, report: DataReport) -> UserError:
        """The error for a split of which no row can be used, or not every file."""
        return NoUsableRowError(report)

    def fit_to_module(self, split: Split, module: L.LightningModule) -> None:
        """Refuse rows of a split that is set up, other than predict, if the module does not train on them."""
        check_match(split, self.datasets[split].rows, self.sources_of(split), module)

    def batches(self, split: Split, options: BatchOptions) -> SplitBatches:
        """How the rows of a split that is set up become batches."""
        return SplitBatches(self.datasets[split], options)

    @property
    def parts_in_every_step(self) -> bool:
        """Whether an optimizer step has rows of every part."""
        return False

    def train_parts(self) -> Sequence[int] | None:
        """Number of each training row's part where optimizer steps have rows of one part, or of all; else None."""
        return None

    # Rows --------------------------------------------------------------------------------------------------------

    def sources_of(self, split: Split) -> Sequence[ResolvedSource]:
        """What `resolve_sources` says of a split."""
        if split not in self._resolved:
            self._resolved[split] = self.resolve_sources(split)
        return self._resolved[split]

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
            self._tokenizer = self._choice.choose(self.tokenizer_source, self.module)
        return self._tokenizer

    def prepare_data(self) -> None:
        """Tokenize into the cache what the coming stage needs; done by one process a machine, before `setup`."""
        splits = self._splits_of(None if self.trainer is None else self.trainer.state.fn)
        self._prepared = self._fingerprints(splits)
        if self._prepared:
            digest = tokenizer_digest(self.tokenizer)
            for split, depends_on in self._prepared.items():
                SplitRows(self, split, depends_on, digest).fill_cache()

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the splits that `stage` needs (all of them for None), once each.

        They are encoded again if another model has come that has another vocabulary or chat template.

        Raises:
            UserError: rows cannot be used, or the trainer's module does not take rows of their kind.
        """
        if stage == "fit":
            self._loaders.cursor.clear()
        if self.datasets:
            self._drop_what_another_tokenizer_encoded()
        splits = self._splits_of(stage)
        missing = [split for split in splits if split not in self.datasets]
        # What `prepare_data` found out a moment ago is not looked up again.
        of_rows = {**self._fingerprints([split for split in missing if split not in self._prepared]), **self._prepared}
        self._prepared = {}
        if missing:
            self._encoded_with = tokenizer_digest(self.tokenizer)
        for split in missing:
            stored, report = SplitRows(self, split, of_rows.get(split), self._encoded_with).obtain()
            self.datasets[split], self.reports[split] = EncodedDataset(stored), report
            if not report.rows_kept:
                self.leave_out(split, self.no_usable_row(split, report))
            elif self.speaks:
                announce(report)
        if self.speaks:
            announce_missing_bos(self.reports[split] for split in missing)
        for split in splits:
            if self.module is not None and split != "predict":
                self.fit_to_module(split, self.module)

    def leave_out(self, split: Split, reason: UserError) -> None:
        """Go on without a split that `may_be_empty`."""
        self.datasets[split] = EncodedDataset(StoredRows.in_memory([]))
        if self.speaks:
            logger.warning("%s The run goes without validation.", reason)

    def cache_folder(self, split: Split) -> Path | None:
        """Where the tokenized rows of a split are kept, or will be; None if they are not."""
        depends_on = self._fingerprints([split]).get(split)
        rows = SplitRows(self, split, depends_on, tokenizer_digest(self.tokenizer))
        return None if rows.key is None else self.cache.entry(split, rows.key)

    @property
    def module(self) -> Any:
        """The module that the trainer trains; None without one."""
        return None if self.trainer is None else self.trainer.lightning_module

    @property
    def speaks(self) -> bool:
        """Whether this process is the one that tells the user."""
        return self.trainer is None or self.trainer.is_global_zero

    def _splits_of(self, stage: str | None) -> list[Split]:
        needed = SPLITS if stage is None else STAGE_SPLITS[stage]
        return [split for split in needed if self.has_split(split)]

    def _fingerprints(self, splits: Sequence[Split]) -> dict[Split, dict[str, Any]]:
        """What the rows of those splits depend on that are cached."""
        if not (self.uses_cache and _says_what_rows_depend_on(type(self))):
            return {}
        found = {split: self.fingerprint(split) for split in splits}
        return {split: of_rows for split, of_rows in found.items() if of_rows is not None}

    def _drop_what_another_tokenizer_encoded(self) -> None:
        self._tokenizer = self._choice.choose(self.tokenizer_source, self.module)
        if tokenizer_digest(self._tokenizer) == self._encoded_with:
            return
        if self.speaks:
            logger.info(
                "The model's tokenizer has another vocabulary or chat template than the one that the data was encoded "
                "with. It is encoded again."
            )
        self.datasets.clear()
        self.reports.clear()

    # Batches -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the order is a pure function of seed, epoch and rows of an optimizer step."""
        return self._loaders.train()

    def train_groups(self) -> Sequence[tuple[int, float]] | None:
        """Number of training rows and weight of each source, in the order of the rows; None where all count once."""
        counts = self.reports["train"].sources
        groups = [(counts[s.name].rows, s.weight) for s in self.sources_of("train") if s.name in counts]
        return None if all(weight == 1 for _, weight in groups) else groups

    def state_dict(self) -> dict[str, Any]:
        """Where in the training rows the run is; empty if none is under way."""
        return self._loaders.cursor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the run was that wrote `state_dict`.

        Raises:
            UserError: it was inside an epoch, and the training rows now come in another order.
        """
        self._loaders.cursor.load_state_dict(state_dict)

    def val_dataloader(self) -> Any:
        """Batches by falling length; no loader if there is no validation data, so that fit goes without."""
        return self._loaders.evaluation("val", "validate")

    def test_dataloader(self) -> Any:
        """Batches by falling length."""
        return self._loaders.evaluation("test", "test")

    def predict_dataloader(self) -> Any:
        """Batches in the order of the source."""
        return self._loaders.evaluation("predict", "predict")


def _says_what_rows_depend_on(kind: type) -> bool:
    """Whether no class from elsewhere, which may take or change rows as it likes, comes before `fingerprint`."""
    for base in kind.__mro__:
        if "fingerprint" in vars(base):
            return True
        if base.__module__.partition(".")[0] != __name__.partition(".")[0]:
            return False
    return False
