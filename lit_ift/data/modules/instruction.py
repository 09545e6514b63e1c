"""Instruction data from files, dataset folders and the Hugging Face hub."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final

from lightning.pytorch.utilities import rank_zero_warn

from lit_ift.data.modules.conversation import ConversationDataModule, Split
from lit_ift.data.parse.layouts import check_columns, check_layout
from lit_ift.data.pipeline import ResolvedSource
from lit_ift.data.read.known_datasets import known_dataset
from lit_ift.data.read.readers import OnRowError, Record, raise_row_error
from lit_ift.data.read.sources import KINDS_WITH_SPLITS, Source, as_plain, as_sources
from lit_ift.data.report.account import DataReport
from lit_ift.data.rows import Row
from lit_ift.errors import UserError
from lit_ift.options import Range

DEFAULT_SPLITS: Final[dict[Split, str]] = {
    "train": "train",
    "val": "validation",
    "test": "test",
    "predict": "test",
}
"""Split taken from a source that has several."""


class InstructionDataModule(ConversationDataModule):
    """Conversations to learn from, in any layout of `lit_ift.data.parse.layouts.LAYOUTS` that gives instruction rows.

    Args:
        train: training data: a file, a folder, a glob pattern, a hub id, a `Source` with options of its own, or a list
            of such.
        val: validation data, alike.
        test: test data, alike.
        predict: data for predict, alike.
        layout: how rows are laid out; by default recognised from the columns of each source, or known of a hub id.
        columns: what columns are, where their names do not say it: a column that is read to the one that it is in the
            data, as in ``{prompt: Question, completion: Answer}``, or a column to null, which says that it means
            nothing, as in ``{rating: null}``. A source with ``columns`` of its own goes by those alone.
        val_fraction: share of the training rows set aside for validation, instead of `val`. It goes by a hash of the
            first user turn, so that equal questions stay on one side and the split outlasts added rows. Rows that
            cannot be read count in the reports of both parts.
        revision: commit, tag or branch of the hub sources that name none.
        train_split: split of the `train` sources that have several; by default ``train``.
        val_split: the same for `val`; by default ``validation``.
        test_split: the same for `test`; by default ``test``.
        predict_split: the same for `predict`; by default ``test``.
        **kwargs: see `ConversationDataModule`.

    Raises:
        UserError: arguments out of range or in contradiction.
    """

    def __init__(
        self,
        train: str | Source | list[str | Source] | None = None,
        val: str | Source | list[str | Source] | None = None,
        test: str | Source | list[str | Source] | None = None,
        predict: str | Source | list[str | Source] | None = None,
        *,
        layout: str | None = None,
        columns: dict[str, str | None] | None = None,
        val_fraction: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        revision: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        predict_split: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for split in DEFAULT_SPLITS:
            self.hparams[split] = as_plain(self.hparams[split])
        self._looked_up: dict[Split, list[ResolvedSource]] = {}
        self.sources: dict[Split, list[Source]] = {
            "train": as_sources(train, "data.train"),
            "val": as_sources(val, "data.val"),
            "test": as_sources(test, "data.test"),
            "predict": as_sources(predict, "data.predict"),
        }
        self.split_names: dict[Split, str | None] = {
            "train": train_split,
            "val": val_split,
            "test": test_split,
            "predict": predict_split,
        }
        if not any(self.sources.values()):
            raise UserError("No data: set at least one of data.train, data.val, data.test and data.predict.")
        if val_fraction and self.sources["val"]:
            raise UserError("data.val and data.val_fraction are both set. Keep one of them.")
        if val_fraction and not self.sources["train"]:
            raise UserError("data.val_fraction takes rows from data.train, which is not set.")
        for split, name in self.split_names.items():
            if name is not None and not self.sources[split]:
                raise UserError(f"data.{split}_split={name!r} is set, but data.{split} is not.")
        if layout is not None:
            check_layout(layout)
        check_columns(columns, "data.columns")
        for source in (source for sources in self.sources.values() for source in sources):
            if source.layout is not None:
                check_layout(source.layout)
            check_columns(source.columns, f"{source.path}: columns")
        self.layout = layout
        self.columns = columns
        self.val_fraction = val_fraction
        self.revision = revision
        self._warn_of_training_rows()

    def has_split(self, split: Split) -> bool:
        """Whether sources were given for the split, or a share of the training rows."""
        return bool(self.sources[self._given_as(split)])

    def records(self, split: Split, on_row_error: OnRowError = raise_row_error) -> Iterator[Record]:
        """The rows of all the split's sources, one source after the other, `max_rows` of each."""
        for source in self._sources(split):
            yield from source.read(on_row_error)

    def resolve_sources(self, split: Split) -> Sequence[ResolvedSource]:
        """Those of the configuration; the one of `records` if a subclass gives the rows itself."""
        gives_rows_itself = type(self).records is not InstructionDataModule.records
        return super().resolve_sources(split) if gives_rows_itself else self._sources(split)

    def fingerprint(self, split: Split) -> dict[str, Any]:
        """The contents of the split's sources, and all that decides which rows are taken and how they are read."""
        return {
            "sources": [source.fingerprint() for source in self._sources(split) if source.fingerprint is not None],
            "max_rows": self.max_rows,
            "val_fraction": self.val_fraction if split in ("train", "val") else 0.0,
            "is_share": self._is_share(split),
        }

    def takes(self, split: Split, row: Row) -> bool:
        """With `val_fraction`, whether the hash of the row's question puts it into this part of the training rows."""
        if not self.val_fraction or split not in ("train", "val"):
            return True
        return in_validation(row, self.val_fraction) == (split == "val")

    def may_be_empty(self, split: Split) -> bool:
        """Of few rows, a share may be none."""
        return self._is_share(split)

    def no_usable_row(self, split: Split, report: DataReport) -> UserError:
        """Says it if it was `val_fraction` that left nothing."""
        if self.val_fraction and split in ("train", "val") and not report.rows_skipped and not report.unread:
            return UserError(
                f"data.val_fraction={self.val_fraction} leaves no row for {split}. Change it, or name a data.val."
            )
        return super().no_usable_row(split, report)

    def _is_share(self, split: Split) -> bool:
        """Whether the split is a share of the training rows."""
        return split == "val" and self.val_fraction > 0

    def _given_as(self, split: Split) -> Split:
        """The option that names the sources of a split."""
        return "train" if self._is_share(split) else split

    def _sources(self, split: Split) -> Sequence[ResolvedSource]:
        """The split's sources, looked up once.

        Raises:
            UserError: an option has no effect on any of them, or two are the same.
        """
        given_as = self._given_as(split)
        if given_as not in self._looked_up:
            self._check_options_used(given_as)
            self._looked_up[given_as] = [self._resolve(source, given_as) for source in self.sources[given_as]]
            _check_read_once(self._looked_up[given_as])
        return self._looked_up[given_as]

    def _resolve(self, source: Source, split: Split) -> ResolvedSource:
        """A source with the options that the data module has for all of them, and what is known of a hub id."""
        known = known_dataset(source.path) if source.kind == "hub" else None
        of_known = None if known is None else known.splits.get("test" if split == "predict" else split)
        taken = source.split_in(self.split_names[split] or of_known or DEFAULT_SPLITS[split])
        if source.kind == "hub" and source.revision is None and self.revision is not None:
            source = replace(source, revision=self.revision)
        layout = source.layout or self.layout or (None if known is None else known.layout)
        columns = self.columns if source.columns is None else source.columns
        # The report tells the sources of a split apart by it.
        named = [f"{key}={value}" for key, value in (("name", source.name), ("split", source.split)) if value]
        label = ", ".join([source.path, *named])
        return ResolvedSource(
            name=label,
            read=partial(self._read, source, taken),
            layout=layout,
            columns=columns,
            score_range=source.score_range,
            preference_scale=source.preference_scale,
            weight=source.weight,
            part=source.part,
            place=(source.path, source.name, taken),
            fingerprint=partial(source.fingerprint, taken, label=label, layout=layout, columns=columns),
        )

    def _read(self, source: Source, split: str | None, on_row_error: OnRowError) -> Iterator[Record]:
        return self.first_rows(source.records(split, on_row_error))

    def _check_options_used(self, split: Split) -> None:
        name = self.split_names[split]
        if name is not None and not any(source.kind in KINDS_WITH_SPLITS for source in self.sources[split]):
            raise UserError(f"data.{split}_split={name!r} is set, but no source of data.{split} has splits. Remove it.")
        every_source = [source for sources in self.sources.values() for source in sources]
        if self.revision is not None and not any(source.kind == "hub" for source in every_source):
            raise UserError(f"data.revision={self.revision!r} is set, but no source is on the hub. Remove it.")

    def _warn_of_training_rows(self) -> None:
        """Say it if rows that measure the model are trained on."""
        trained = {self._resolve(source, "train").place for source in self.sources["train"]}
        for split in ("val", "test"):
            for source in self.sources[split]:
                if self._resolve(source, split).place in trained:
                    rank_zero_warn(
                        f"data.{split} takes the rows of {source.path} that data.train takes: what is measured on them "
                        "says nothing of new rows. To set a part of them aside, use data.val_fraction."
                    )


def _check_read_once(sources: Iterable[ResolvedSource]) -> None:
    """Refuse a data set that is listed with its split and again without, where that is the split taken."""
    places = [source.place for source in sources if source.place is not None]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(
            f"The split {twice[2]!r} of the source {twice[0]} is listed twice. Name each split once; to use its rows "
            "more often, set its weight."
        )


def in_validation(row: Row, val_fraction: float) -> bool:
    """Whether the hash of the row's question falls into the lowest `val_fraction` of all hashes."""
    digest = hashlib.sha256(row.key.encode()).digest()
    return int.from_bytes(digest[:8]) < val_fraction * 2**64
