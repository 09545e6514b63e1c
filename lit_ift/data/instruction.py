"""Instruction data from files, dataset folders and the Hugging Face hub."""

import hashlib
from collections.abc import Iterator
from typing import Any, Final

from lit_ift.data.datamodule import ConversationDataModule, Split
from lit_ift.data.encode import ParsedRows
from lit_ift.data.layouts import check_layout
from lit_ift.data.messages import Conversation, prompt_key
from lit_ift.data.records import OnRowError, Record, SourceKind, raise_row_error, read_records, source_kind
from lit_ift.errors import UserError

DEFAULT_SPLITS: Final[dict[Split, str]] = {
    "train": "train",
    "val": "validation",
    "test": "test",
    "predict": "test",
}
"""Split taken from a source that has several."""

KINDS_WITH_SPLITS: Final[tuple[SourceKind, ...]] = ("hub", "dataset_dict")


class InstructionDataModule(ConversationDataModule):
    """Conversations to learn from, in any layout of `lit_ift.data.layouts.LAYOUTS`.

    Args:
        train: training data: a file, a folder of ``datasets.save_to_disk``, a hub id, or a list of such.
        val: validation data, alike.
        test: test data, alike.
        predict: data for predict, alike.
        layout: how rows are laid out; by default recognised row by row from the columns.
        val_fraction: share of the training rows set aside for validation, instead of `val`. It goes by a hash of the
            first user turn, so that equal questions stay on one side and the split outlasts added rows.
        revision: commit, tag or branch of the hub sources.
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
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        *,
        layout: str | None = None,
        val_fraction: float = 0.0,
        revision: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        predict_split: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sources: dict[Split, list[str]] = {
            "train": _as_list(train),
            "val": _as_list(val),
            "test": _as_list(test),
            "predict": _as_list(predict),
        }
        self.split_names: dict[Split, str | None] = {
            "train": train_split,
            "val": val_split,
            "test": test_split,
            "predict": predict_split,
        }
        if not any(self.sources.values()):
            raise UserError("No data: set at least one of data.train, data.val, data.test and data.predict.")
        if not 0.0 <= val_fraction < 1.0:
            raise UserError(f"data.val_fraction={val_fraction} must be at least 0 and below 1.")
        if val_fraction and self.sources["val"]:
            raise UserError("data.val and data.val_fraction are both set. Keep one of them.")
        if val_fraction and not self.sources["train"]:
            raise UserError("data.val_fraction takes rows from data.train, which is not set.")
        for split, name in self.split_names.items():
            if name is not None and not self.sources[split]:
                raise UserError(f"data.{split}_split={name!r} is set, but data.{split} is not.")
        if layout is not None:
            check_layout(layout)
        self.layout = layout
        self.val_fraction = val_fraction
        self.revision = revision

    def has_split(self, split: Split) -> bool:
        """Whether sources were given for the split, or a share of the training rows."""
        return bool(self.sources[split]) or (split == "val" and self.val_fraction > 0)

    def records(self, split: Split, on_row_error: OnRowError = raise_row_error) -> Iterator[Record]:
        """The rows of all the split's sources, one source after the other, `max_rows` of each."""
        kinds = {source: source_kind(source) for source in self.sources[split]}
        self._check_options_used(split, kinds)
        for source, kind in kinds.items():
            rows = read_records(
                source,
                split=(self.split_names[split] or DEFAULT_SPLITS[split]) if kind in KINDS_WITH_SPLITS else None,
                revision=self.revision if kind == "hub" else None,
                on_row_error=on_row_error,
            )
            yield from self.first_rows(rows)

    def parse_splits(self, splits: list[Split]) -> dict[Split, ParsedRows]:
        """Read the rows; with `val_fraction` the training rows are read once and divided."""
        if not self.val_fraction:
            return super().parse_splits(splits)
        parsed = super().parse_splits([split for split in splits if split not in ("train", "val")])
        if "train" in splits or "val" in splits:
            train, val = divide_rows(self._parse("train"), self.val_fraction)
            if not val.rows or not train.rows:
                raise UserError(
                    f"data.val_fraction={self.val_fraction} leaves {len(train.rows)} rows for training and puts "
                    f"{len(val.rows)} into validation. Change it, or name a data.val."
                )
            parsed |= {split: rows for split, rows in (("train", train), ("val", val)) if split in splits}
        return parsed

    def _check_options_used(self, split: Split, kinds: dict[str, SourceKind]) -> None:
        name = self.split_names[split]
        if name is not None and not any(kind in KINDS_WITH_SPLITS for kind in kinds.values()):
            raise UserError(f"data.{split}_split={name!r} is set, but no source of data.{split} has splits. Remove it.")
        every_source = [source for sources in self.sources.values() for source in sources]
        if self.revision is not None and not any(source_kind(source) == "hub" for source in every_source):
            raise UserError(f"data.revision={self.revision!r} is set, but no source is on the hub. Remove it.")


def divide_rows(rows: ParsedRows, val_fraction: float) -> tuple[ParsedRows, ParsedRows]:
    """Training and validation part of `rows`; rows that could not be parsed are reported with the training part."""
    train, val = ParsedRows(errors=rows.errors), ParsedRows()
    for conversation, origin in rows.rows:
        part = val if in_validation(conversation, val_fraction) else train
        part.rows.append((conversation, origin))
    return train, val


def in_validation(conversation: Conversation, val_fraction: float) -> bool:
    """Whether the hash of the conversation's question falls into the lowest `val_fraction` of all hashes."""
    digest = hashlib.sha256(prompt_key(conversation).encode()).digest()
    return int.from_bytes(digest[:8]) < val_fraction * 2**64


def _as_list(sources: str | list[str] | None) -> list[str]:
    if sources is None:
        return []
    listed = [sources] if isinstance(sources, str) else list(sources)
    twice = sorted({source for source in listed if listed.count(source) > 1})
    if twice:
        raise UserError(f"The source {twice[0]} is listed twice. Name each source once.")
    return listed
