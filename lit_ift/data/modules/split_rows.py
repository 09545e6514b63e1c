"""The rows of one split and their report: from the cache, or read and encoded now."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_ift.data.cache import DamagedEntryError, RowCache
from lit_ift.data.pipeline import EncodingOptions, ResolvedSource, encode_sources
from lit_ift.data.report.account import DataReport, unusable
from lit_ift.data.report.builder import Check, ReportBuilder
from lit_ift.data.rows import EncodedRow, Row
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError

logger = logging.getLogger("lit_ift")


@dataclass(frozen=True)
class SplitRows:
    """All that decides the rows of a split.

    Args:
        split: train, val, test or predict.
        sources: where the rows come from.
        options: how they become token ids.
        takes: whether a row belongs to the split.
        cache: where they are kept.
        key: what they depend on, as plain values; None if they are not cached.
        check: set if rows are only looked at.
        may_be_empty: whether a run goes without the split if it has no usable row.
        no_usable_row: makes the error for a split of which no row, or not every file, can be used.
        may_write: whether this process verifies entries of the cache and mends them.
        progress: text of a progress bar; None for none.
    """

    split: str
    sources: Sequence[ResolvedSource]
    options: EncodingOptions
    takes: Callable[[Row], bool]
    cache: RowCache
    key: Mapping[str, Any] | None
    check: Check | None
    may_be_empty: bool
    no_usable_row: Callable[[DataReport], UserError]
    may_write: bool
    progress: str | None

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
            found = self.cache.load(self.split, self.key, verify=self.may_write)
            return None if found is None else (found[0], DataReport.from_dict(found[1]))
        except (DamagedEntryError, KeyError, TypeError, AttributeError) as error:
            entry = self.cache.entry(self.split, self.key)
            if not self.may_write:
                raise error if isinstance(error, UserError) else DamagedEntryError(entry, error) from error
            logger.warning("The cached data in %s is damaged, so its rows are tokenized again: %s", entry, error)
            self.cache.remove(self.split, self.key)
            return None

    def _add(self) -> None:
        assert self.key is not None
        builder = self._builder()
        self.cache.add(self.split, self.key, self._encode(builder), lambda: self._finish(builder).as_dict())

    def _builder(self) -> ReportBuilder:
        return ReportBuilder(
            self.split,
            self.options.tokenizer,
            max_length=self.options.max_length,
            truncation=self.options.truncation,
            weights=self._weights,
            check=self.check,
        )

    def _encode(self, builder: ReportBuilder) -> Iterator[EncodedRow]:
        return encode_sources(self.sources, self.options, builder, takes=self.takes, progress=self.progress)

    def _finish(self, builder: ReportBuilder) -> DataReport:
        report = builder.build()
        if unusable(report) and (report.unread or not self.may_be_empty):
            raise self.no_usable_row(report)
        return report
