"""The rows of one split and their report: from the cache, or read and encoded now."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_ift.data.cache import DamagedEntryError, code_version
from lit_ift.data.pipeline import EncodingOptions, encode_sources
from lit_ift.data.report.account import DataReport, unusable
from lit_ift.data.report.builder import ReportBuilder
from lit_ift.data.rows import EncodedRow
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError

if TYPE_CHECKING:
    from lit_ift.data.modules.conversation import ConversationDataModule, Split

logger = logging.getLogger("lit_ift")


class SplitRows:
    """All that decides the rows of a split.

    Args:
        data: the data module, which says where the rows come from and how they become token ids.
        split: which one.
        depends_on: what they depend on beside its options, as plain values; None if they are not cached.
        tokenizer_digest: the hash of what encodes them.
    """

    def __init__(
        self,
        data: "ConversationDataModule",
        split: "Split",
        depends_on: Mapping[str, Any] | None,
        tokenizer_digest: str | None,
    ) -> None:
        self.data, self.split = data, split
        self.sources = data.sources_of(split)
        needs_answer = split != "predict"
        self.options = EncodingOptions(
            tokenizer=data.tokenizer,
            max_length=data.max_length,
            truncation=data.truncation,
            kinds=data.kinds,
            needs_answer=needs_answer,
            train_on=data.train_on,
            on_bad_row=data.on_bad_row,
        )
        self.key: dict[str, Any] | None = None
        if depends_on is not None:
            self.key = {
                "rows": depends_on,
                "needs_answer": needs_answer,
                "tokenizer": tokenizer_digest,
                "max_length": data.max_length,
                "truncation": data.truncation,
                "train_on": data.train_on,
                "on_bad_row": data.on_bad_row,
                "kinds": sorted(data.kinds),
                "code": code_version(),
            }
        # With a trainer, this process verifies in `prepare_data`, while the others of the machine wait.
        self.may_write = self.key is None or data.trainer is None or data.trainer.local_rank == 0

    def fill_cache(self) -> None:
        """Encode the rows into the cache, unless they are there or are not cached."""
        if self.key is not None and self._cached() is None:
            self._add()

    def obtain(self) -> tuple[StoredRows, DataReport]:
        """The rows and what became of them.

        Raises:
            UserError: rows cannot be used.
        """
        if self.key is None:
            builder = self._builder()
            return StoredRows.in_memory(self._encode(builder)), self._finish(builder)
        found = self._cached()
        if found is None:
            self._add()
            found = self._cached()
        assert found is not None
        rows, report = found
        # Weights take no part in the key, for they change no row.
        weights = self._weights
        sources = {name: replace(count, weight=weights[name]) for name, count in report.sources.items()}
        return rows, replace(report, sources=sources)

    @property
    def _weights(self) -> dict[str, float]:
        return {source.name: source.weight for source in self.sources}

    def _cached(self) -> tuple[StoredRows, DataReport] | None:
        """What the cache holds, verified once; a damaged entry is taken away, to be made again."""
        assert self.key is not None
        try:
            found = self.data.cache.load(self.split, self.key, verify=self.may_write)
            return None if found is None else (found[0], DataReport.from_dict(found[1]))
        except (DamagedEntryError, KeyError, TypeError, AttributeError) as error:
            entry = self.data.cache.entry(self.split, self.key)
            if not self.may_write:
                raise error if isinstance(error, UserError) else DamagedEntryError(entry, error) from error
            logger.warning("The cached data in %s is damaged, so its rows are tokenized again: %s", entry, error)
            self.data.cache.remove(self.split, self.key)
            return None

    def _add(self) -> None:
        assert self.key is not None
        builder = self._builder()
        self.data.cache.add(self.split, self.key, self._encode(builder), lambda: self._finish(builder).as_dict())

    def _builder(self) -> ReportBuilder:
        return ReportBuilder(
            self.split,
            self.options.tokenizer,
            max_length=self.options.max_length,
            truncation=self.options.truncation,
            weights=self._weights,
            check=self.data.check,
        )

    def _encode(self, builder: ReportBuilder) -> Iterator[EncodedRow]:
        progress = f"encode {self.split}" if self.data.speaks else None
        takes = partial(self.data.takes, self.split)
        return encode_sources(self.sources, self.options, builder, takes=takes, progress=progress)

    def _finish(self, builder: ReportBuilder) -> DataReport:
        report = builder.build()
        if unusable(report) and (report.unread or not self.data.may_be_empty(self.split)):
            raise self.data.no_usable_row(self.split, report)
        return report
