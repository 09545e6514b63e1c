"""The rows of a run as far as they are known without reading all of them, and the largest batch that they give."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.dataset import EncodedDataset
from lit_ift.data.cache import tokenizer_digest
from lit_ift.data.modules.conversation import ConversationDataModule
from lit_ift.data.modules.split_rows import SplitRows
from lit_ift.data.rows import ROW_KINDS, SIDES, EncodedRow, RowKind
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError
from lit_ift.modules.base import CausalLMModule

SAMPLE: Final = 200
"""Rows of each source that are encoded where the cache does not hold them."""

TRAINED: Final = 0.5
"""Share of trained tokens of rows that cannot be read."""


@dataclass(frozen=True)
class PlannedRows:
    """What an epoch consists of.

    Attributes:
        how: where the numbers are from, in words.
        exact: whether all rows were seen.
        rows: of an epoch; None if not known.
        tokens: input tokens of an epoch; None if not known.
        mean_square: mean of the squared lengths over the mean length, of the answers [tokens].
        dataset: rows to make batches of.
    """

    how: str
    exact: bool
    rows: float | None
    tokens: float | None
    mean_square: float
    dataset: EncodedDataset


def planned_rows(data: ConversationDataModule, module: CausalLMModule, *, tokenizes: bool = True) -> PlannedRows:
    """Rows from the cache, else of a sample, else made up.

    Args:
        data: the data module, which knows a tokenizer; its training split is set up for the plan.
        module: that is to train on them; its model need not be loaded.
        tokenizes: whether the data module's tokenizer is a real one.

    Raises:
        UserError: the module does not train on rows of their kind.
    """
    try:
        folder = data.cache_folder("train") if data.uses_cache and tokenizes else None
        if folder is not None and folder.exists():
            depends_on = data._fingerprints(["train"])["train"]
            found = _of_report(data, *SplitRows(data, "train", depends_on, tokenizer_digest(data.tokenizer)).obtain())
        elif tokenizes:
            found = _of_sample(data, module)
        else:
            found = _made_up(data, module, "there is no tokenizer here")
    except UserError as error:
        if not isinstance(error.__cause__, ConnectionError):
            raise
        found = _made_up(data, module, "the hub cannot be reached")
    data.datasets["train"] = found.dataset
    if "train" in data.reports:
        data.fit_to_module("train", module)
    return found


def _of_report(data: ConversationDataModule, stored: StoredRows, report: Any) -> PlannedRows:
    data.reports["train"] = report
    dataset = EncodedDataset(stored)
    rows = sum(source.rows * source.weight for source in report.sources.values())
    return PlannedRows("account of the tokenized rows", True, rows, report.tokens_per_epoch, _square(dataset), dataset)


def _of_sample(data: ConversationDataModule, module: CausalLMModule) -> PlannedRows:
    most, skips = data.max_rows, data.on_bad_row
    data.max_rows, data.on_bad_row = min(SAMPLE, most or SAMPLE), "skip"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            stored, report = SplitRows(data, "train", None, None).obtain()
    finally:
        data.max_rows, data.on_bad_row = most, skips
    if not report.rows_kept:
        raise data.no_usable_row("train", report)
    found = _of_report(data, stored, report)
    ends = all(source.rows < SAMPLE for source in report.sources.values()) and report.rows_read < SAMPLE
    if ends or (most is not None and most <= SAMPLE):
        return PlannedRows("all rows", True, found.rows, found.tokens, found.mean_square, found.dataset)
    total = _counted(data, most)
    longest = _longest(data, next(iter(stored[0:1])), report.target_tokens / max(report.tokens, 1))
    scale = None if total is None or not found.rows else total / report.rows_read
    return PlannedRows(
        f"estimate from the first {report.rows_read} rows",
        False,
        None if scale is None or found.rows is None else found.rows * scale,
        None if scale is None or found.tokens is None else found.tokens * scale,
        found.mean_square,
        EncodedDataset(StoredRows.in_memory([*_rows(stored), *longest])),
    )


def _made_up(data: ConversationDataModule, module: CausalLMModule, reason: str) -> PlannedRows:
    kind: RowKind = next(kind for kind in ROW_KINDS if kind in module.kinds)
    example = Example([0] * 2, [IGNORE_INDEX, 0], "row 0")
    score = 1.0 if kind in ("unpaired", "scored") else None
    rows = _longest(data, EncodedRow(kind, "row 0", dict.fromkeys(SIDES[kind], example), score), TRAINED)
    total = _counted(data, data.max_rows)
    tokens = None if total is None else total * len(SIDES[kind]) * data.max_length
    how = f"estimate: all rows of {data.max_length} tokens, half of them trained, because {reason}"
    return PlannedRows(how, False, total, tokens, data.max_length, EncodedDataset(StoredRows.in_memory(rows)))


def _longest(data: ConversationDataModule, like: EncodedRow, share: float) -> list[EncodedRow]:
    """A batch of rows of the greatest length, of the kind of another one."""
    length = data.max_length
    prompt = min(length - 1, max(1, round(length * (1 - share))))
    size = data.batch_size or -(-(data.tokens_per_batch or length) // length)
    made = []
    for number in range(size):
        name = f"longest row {number}"
        example = Example([1] * length, [IGNORE_INDEX] * prompt + [1] * (length - prompt), name)
        made.append(EncodedRow(like.kind, name, dict.fromkeys(like.sides, example), like.score))
    return made


def _rows(stored: StoredRows) -> Iterator[EncodedRow]:
    return (stored[i] for i in range(len(stored)))


def _square(dataset: EncodedDataset) -> float:
    lengths = np.asarray(dataset._side_lengths, dtype=np.float64)
    return float(np.square(lengths).mean() / lengths.mean()) if len(lengths) else 0.0


def _counted(data: ConversationDataModule, most: int | None) -> float | None:
    """Rows of all sources, where they are files whose rows can be counted without reading them."""
    total = 0.0
    for source in getattr(data, "sources", {}).get("train", []):
        count = _count(Path(source.path))
        limits = [limit for limit in (count, source.max_rows, most) if limit is not None]
        if count is None and source.max_rows is None and most is None:
            return None
        total += min(limits)
    return total or None


def _count(path: Path) -> int | None:
    if path.suffix == ".parquet" and path.is_file():
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

        return int(ParquetFile(path).metadata.num_rows)
    if path.suffix in (".jsonl", ".ndjson") and path.is_file():
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return None


def largest_batch(data: ConversationDataModule) -> Mapping[str, Any]:
    """The batch of the longest rows of a data module whose training split is set up, as a loader gives it."""
    dataset = data.datasets["train"]
    dataset.reference_logps = np.zeros(dataset.num_answers, dtype=np.float32)  # No harm where none is asked for.
    batches = data._loaders.split_batches("train", data.packing)
    lengths = batches.lengths
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    rows = data.batch_size or max(1, (batches.tokens_per_batch or 1) // max(lengths[order[0]], 1))
    chosen = [order[number % len(order)] for number in range(rows)]
    batch: Mapping[str, Any] = next(iter(batches.loader(sampler=[chosen])))
    return batch
