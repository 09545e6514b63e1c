"""Instruction data from files, dataset folders and the Hugging Face hub."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from lightning.pytorch.utilities import rank_zero_warn

from lit_ift.data.modules.conversation import ConversationDataModule, Split, require_type
from lit_ift.data.parse.layouts import check_columns, check_layout
from lit_ift.data.pipeline import Part
from lit_ift.data.read.known_datasets import KnownDataset, known_dataset
from lit_ift.data.read.records import OnRowError, Record, raise_row_error
from lit_ift.data.read.sources import KINDS_WITH_SPLITS, Source, as_plain, as_sources, is_number
from lit_ift.data.report.account import DataReport
from lit_ift.data.rows import Row
from lit_ift.errors import UserError

DEFAULT_SPLITS: Final[dict[Split, str]] = {
    "train": "train",
    "val": "validation",
    "test": "test",
    "predict": "test",
}
"""Split taken from a source that has several."""


def _label(source: Source) -> str:
    """Tells the sources of one split apart."""
    parts = [
        source.path,
        *(f"{name}={value}" for name, value in (("name", source.name), ("split", source.split)) if value),
    ]
    return ", ".join(parts)


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
        val_fraction: float = 0.0,
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
        if not is_number(val_fraction) or not 0.0 <= val_fraction < 1.0:
            raise UserError(f"data.val_fraction={val_fraction!r} must be at least 0 and below 1.")
        if val_fraction and self.sources["val"]:
            raise UserError("data.val and data.val_fraction are both set. Keep one of them.")
        if val_fraction and not self.sources["train"]:
            raise UserError("data.val_fraction takes rows from data.train, which is not set.")
        require_type("revision", revision, str, "a string")
        for split, name in self.split_names.items():
            require_type(f"{split}_split", name, str, "a string")
        for split, name in self.split_names.items():
            if name is not None and not self.sources[split]:
                raise UserError(f"data.{split}_split={name!r} is set, but data.{split} is not.")
        for chosen in (layout, *(source.layout for sources in self.sources.values() for source in sources)):
            if chosen is not None:
                check_layout(chosen)
        check_columns(columns, "data.columns")
        for source in (source for sources in self.sources.values() for source in sources):
            check_columns(source.columns, f"{source.path}: columns")
        self.layout = layout
        self.columns = columns
        self.val_fraction = val_fraction
        self.revision = revision
        self._warn_of_training_rows()

    def has_split(self, split: Split) -> bool:
        """Whether sources were given for the split, or a share of the training rows."""
        return bool(self._sources_of(split))

    def records(self, split: Split, on_row_error: OnRowError = raise_row_error) -> Iterator[Record]:
        """The rows of all the split's sources, one source after the other, `max_rows` of each."""
        for part in self._source_parts(split):
            yield from part.read(on_row_error)

    def parts(self, split: Split) -> list[Part]:
        """One for each source of the split; the one of `records` if a subclass gives the rows itself."""
        gives_rows_itself = type(self).records is not InstructionDataModule.records
        return super().parts(split) if gives_rows_itself else self._source_parts(split)

    def _source_parts(self, split: Split) -> list[Part]:
        self._check_options_used("train" if self._is_share(split) else split)
        self._check_read_once(split)
        return [
            Part(
                name=_label(source),
                read=partial(self._read, source, split),
                layout=self._layout_of(source),
                columns=self._columns_of(source),
                score_range=source.score_range,
                preference_scale=source.preference_scale,
                weight=source.weight,
                part=source.part,
            )
            for source in self._sources_of(split)
        ]

    def fingerprint(self, split: Split) -> dict[str, Any]:
        """The contents of the split's sources, and all that decides which rows are taken and how they are read."""
        sources = self._sources_of(split)
        return {
            "sources": [source.fingerprint(self._split_of(source, split)) for source in sources],
            "labels": [_label(source) for source in sources],  # The report counts by them.
            "layouts": [self._layout_of(source) for source in sources],
            "columns": [self._columns_of(source) for source in sources],
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

    def _sources_of(self, split: Split) -> list[Source]:
        """The split's sources, with the options that the data module has for all of them."""
        sources = self.sources["train" if self._is_share(split) else split]
        if self.revision is None:
            return sources
        return [
            replace(source, revision=self.revision) if source.kind == "hub" and source.revision is None else source
            for source in sources
        ]

    def _is_share(self, split: Split) -> bool:
        """Whether the split is a share of the training rows."""
        return split == "val" and self.val_fraction > 0

    def _split_of(self, source: Source, split: Split) -> str:
        """Which of the source's splits to take if it has several and the source itself does not say."""
        wanted: Split = "train" if self._is_share(split) else split
        known = known_dataset(source.path)
        of_known = (
            known.splits.get("test" if wanted == "predict" else wanted)
            if known is not None and source.kind == "hub"
            else None
        )
        return self.split_names[wanted] or of_known or DEFAULT_SPLITS[wanted]

    def _layout_of(self, source: Source) -> str | None:
        known = _known(source)
        return source.layout or self.layout or (None if known is None else known.layout)

    def _columns_of(self, source: Source) -> dict[str, str | None] | None:
        return self.columns if source.columns is None else source.columns

    def _read(self, source: Source, split: Split, on_row_error: OnRowError) -> Iterator[Record]:
        return self.first_rows(source.records(self._split_of(source, split), on_row_error))

    def _check_options_used(self, split: Split) -> None:
        name = self.split_names[split]
        if name is not None and not any(source.kind in KINDS_WITH_SPLITS for source in self.sources[split]):
            raise UserError(f"data.{split}_split={name!r} is set, but no source of data.{split} has splits. Remove it.")
        every_source = [source for sources in self.sources.values() for source in sources]
        if self.revision is not None and not any(source.kind == "hub" for source in every_source):
            raise UserError(f"data.revision={self.revision!r} is set, but no source is on the hub. Remove it.")

    def _read_as(self, source: Source, split: Split) -> tuple[str, str | None, str | None]:
        """What tells the rows of two sources apart: path, configuration and the split that is read."""
        return source.path, source.name, source.split_in(self._split_of(source, split))

    def _check_read_once(self, split: Split) -> None:
        """Refuse a data set that is listed with its split and again without, where that is the split taken."""
        seen: set[tuple[str, str | None, str | None]] = set()
        for source in self._sources_of(split):
            key = self._read_as(source, split)
            if key in seen:
                raise UserError(
                    f"The split {key[2]!r} of the source {source.path} is listed twice. Name each split once; to use "
                    "its rows more often, set its weight."
                )
            seen.add(key)

    def _warn_of_training_rows(self) -> None:
        """Say it if rows that measure the model are trained on."""
        trained = {self._read_as(source, "train") for source in self.sources["train"]}
        for split in ("val", "test"):
            for source in self.sources[split]:
                if self._read_as(source, split) in trained:
                    rank_zero_warn(
                        f"data.{split} takes the rows of {source.path} that data.train takes: what is measured on them "
                        "says nothing of new rows. To set a part of them aside, use data.val_fraction."
                    )


def _known(source: Source) -> KnownDataset | None:
    return known_dataset(source.path) if source.kind == "hub" else None


def in_validation(row: Row, val_fraction: float) -> bool:
    """Whether the hash of the row's question falls into the lowest `val_fraction` of all hashes."""
    digest = hashlib.sha256(row.key.encode()).digest()
    return int.from_bytes(digest[:8]) < val_fraction * 2**64
