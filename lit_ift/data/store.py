"""Encoded rows in Arrow: one format for rows in memory and for those in a file that every process maps.

A file is written row by row and read through a memory map, so neither needs memory for all rows.
"""

import gc
import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import ROW_KINDS, SIDES, EncodedRow

SCHEMA: Final = pa.schema(
    [
        ("row_id", pa.string()),
        ("kind", pa.uint8()),
        ("score", pa.float64()),
        # One entry a side.
        ("length", pa.list_(pa.int32())),
        ("num_cut", pa.list_(pa.int32())),
        ("num_split_starts", pa.list_(pa.int32())),
        ("num_lookalikes", pa.list_(pa.int32())),
        ("num_dropped_thoughts", pa.list_(pa.int32())),
        # The tokens of all sides, one side after the other.
        ("input_ids", pa.list_(pa.int32())),
        ("is_target", pa.list_(pa.uint8())),
        # How much each of them counts; null where all tokens of the row count 1.
        ("weight", pa.list_(pa.float32())),
    ]
)

BATCH: Final = 1024
"""Most rows written at once."""

BATCH_TOKENS: Final = 2**21
"""Tokens of rows from which on no more rows are written with them, for long rows take much memory until then."""

PER_SIDE: Final = ("num_cut", "num_split_starts", "num_lookalikes", "num_dropped_thoughts")


def write_rows(rows: Iterable[EncodedRow], sink: Path | pa.NativeFile) -> int:
    """Write rows as they come and return their number.

    Args:
        rows: encoded rows; a label must be its token or IGNORE_INDEX.
        sink: a file to make, or an Arrow stream.
    """
    iterator, num_rows = iter(rows), 0
    with _older_objects_left_alone(), pa.ipc.new_file(str(sink) if isinstance(sink, Path) else sink, SCHEMA) as writer:
        while batch := _next_batch(iterator):
            writer.write_batch(_to_arrow(batch))
            num_rows += len(batch)
    return num_rows


@contextmanager
def _older_objects_left_alone() -> Iterator[None]:
    """Keep the garbage collector from walking again and again through all that is in memory already.

    Rows come with so many short-lived objects that this is a sixth of the time in which they are encoded.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _next_batch(rows: Iterator[EncodedRow]) -> list[EncodedRow]:
    batch: list[EncodedRow] = []
    num_tokens = 0
    for row in rows:
        batch.append(row)
        num_tokens += row.num_tokens
        if len(batch) >= BATCH or num_tokens >= BATCH_TOKENS:
            break
    return batch


def _to_arrow(rows: Sequence[EncodedRow]) -> Any:
    sides = [list(row.sides.values()) for row in rows]
    columns: dict[str, Any] = {
        "row_id": [row.row_id for row in rows],
        "kind": [ROW_KINDS.index(row.kind) for row in rows],
        "score": [row.score for row in rows],
        "weight": [_weights(examples) for examples in sides],
        "length": [[len(example.input_ids) for example in examples] for examples in sides],
        **{name: [[getattr(example, name) for example in examples] for examples in sides] for name in PER_SIDE},
    }
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    ids = _concatenated([example.input_ids for examples in sides for example in examples])
    labels = _concatenated([example.labels for examples in sides for example in examples])
    ends = accumulate((row.num_tokens for row in rows), initial=0)
    offsets = pa.array(ends, pa.int32())
    arrays["input_ids"] = pa.ListArray.from_arrays(offsets, pa.array(ids))
    arrays["is_target"] = pa.ListArray.from_arrays(offsets, pa.array((labels != IGNORE_INDEX).astype(np.uint8)))
    return pa.record_batch([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def _weights(examples: Sequence[Example]) -> list[float] | None:
    """Those of the tokens of a row's sides; None if all are 1."""
    if all(example.weights is None for example in examples):
        return None
    return [weight for example in examples for weight in example.weights or [1.0] * len(example.input_ids)]


def _concatenated(lists: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    total = sum(map(len, lists))
    return np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=total)


def _digest(batches: "Iterable[Sequence[npt.NDArray[Any]]]") -> str:
    """SHA-256 of the columns of all record batches.

    One hash for each column, so that it makes no difference how the rows are cut into batches.
    """
    hashes: list[Any] = []
    for columns in batches:
        hashes = hashes or [hashlib.sha256() for _ in columns]
        for hasher, values in zip(hashes, columns, strict=True):
            hasher.update(np.ascontiguousarray(values).data)
    return hashlib.sha256(b"".join(hasher.digest() for hasher in hashes)).hexdigest()


class StoredRows(Sequence[EncodedRow]):
    """Rows that `write_rows` wrote, read when asked for.

    Args:
        source: the file, which is memory-mapped, or a buffer that holds one.
    """

    def __init__(self, source: "Path | pa.Buffer") -> None:
        self._source = source
        reader = pa.ipc.open_file(pa.memory_map(str(source)) if isinstance(source, Path) else source)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        columns = [_Columns(batch) for batch in self._batches]
        self._columns = columns
        empty = np.zeros(0, dtype=np.int64)
        self.lengths: npt.NDArray[np.int64] = np.concatenate([empty, *(np.diff(c.token_ends) for c in columns)])
        """Input tokens of each row, all sides together."""
        self.kinds: npt.NDArray[np.int64] = np.concatenate([empty, *(c.kinds for c in columns)])
        """Index into ``ROW_KINDS`` of each row."""
        self.scored: npt.NDArray[np.bool_] = np.concatenate([empty.astype(bool), *(c.scored for c in columns)])
        """Whether each row has a score."""
        self.side_counts: npt.NDArray[np.int64] = np.concatenate([empty, *(c.side_counts for c in columns)])
        """Sides of each row."""
        self.side_lengths: npt.NDArray[np.int64] = np.concatenate([empty, *(c.side_lengths for c in columns)])
        """Input tokens of each side, row by row."""
        self.weighted: npt.NDArray[np.bool_] = np.concatenate([empty.astype(bool), *(c.weighted for c in columns)])
        """Whether some tokens of each row count for more or less than others."""

    @cached_property
    def first_targets(self) -> npt.NDArray[np.int64]:
        """Tokens of each side before its first target, row by row; all where there is none. Looks at every token."""
        empty = np.zeros(0, dtype=np.int64)
        return np.concatenate([empty, *(c.first_targets() for c in self._columns)])

    @property
    def row_ids(self) -> list[str]:
        """Of all rows, in their order."""
        return [row_id for batch in self._batches for row_id in batch.column("row_id").to_pylist()]

    @cached_property
    def target_counts(self) -> npt.NDArray[np.int64]:
        """Trained positions of each row: targets but for the first token of a side. Looks at every token, (R,)."""
        empty = np.zeros(0, dtype=np.int64)
        return np.concatenate([empty, *(c.target_counts() for c in self._columns)])

    def largest_id(self) -> tuple[int, int]:
        """The first row with the largest token id, and that id. Looks at every token.

        Raises:
            ValueError: there are no tokens.
        """
        found = [(int(c.tokens.max()), -batch) for batch, c in enumerate(self._columns) if len(c.tokens)]
        largest, negative = max(found)
        columns = self._columns[-negative]
        token = int(columns.tokens.argmax()) + int(columns.token_ends[0])
        row = int(np.searchsorted(columns.token_ends, token, side="right")) - 1
        return row + (self._ends[-negative - 1] if negative else 0), largest

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 of ids, kinds, tokens and targets of all rows. Looks at every token."""
        return _digest([*columns.content(), *self._weights(columns)] for columns in self._columns)

    @cached_property
    def training_digest(self) -> str:
        """SHA-256 of what is trained on: kinds, scores, tokens and targets of all rows. Looks at every token.

        Ids take no part, so that the rows' files may move.
        """
        return _digest([*c.content()[2:], c.scores(), *self._weights(c)] for c in self._columns)

    def _weights(self, columns: "_Columns") -> "list[npt.NDArray[Any]]":
        """Of rows without weights nothing, so that their digests are those of earlier releases."""
        return columns.weights() if self.weighted.any() else []

    @classmethod
    def in_memory(cls, rows: Iterable[EncodedRow]) -> "StoredRows":
        """Hold `rows` in memory, in far less than their Python objects take."""
        sink = pa.BufferOutputStream()
        write_rows(rows, sink)
        return cls(sink.getvalue())

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredRows, (self._source,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        batch = bisect_right(self._ends, position)
        return self._columns[batch].row(position - (self._ends[batch - 1] if batch else 0))


class _Columns:
    """The columns of one record batch as arrays."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        input_ids, is_target = batch.column("input_ids"), batch.column("is_target")
        self.token_ends: npt.NDArray[np.int64] = input_ids.offsets.to_numpy().astype(np.int64)
        # `values` is the whole child array, which the offsets index.
        self.input_ids: npt.NDArray[np.int32] = input_ids.values.to_numpy()
        self.is_target: npt.NDArray[np.bool_] = is_target.values.to_numpy().view(np.bool_)
        lengths = batch.column("length")
        self.kinds: npt.NDArray[np.int64] = batch.column("kind").to_numpy().astype(np.int64)
        self.scored: npt.NDArray[np.bool_] = batch.column("score").is_valid().to_numpy(zero_copy_only=False)
        self.side_counts: npt.NDArray[np.int64] = np.diff(lengths.offsets.to_numpy()).astype(np.int64)
        self.side_lengths: npt.NDArray[np.int64] = lengths.values.to_numpy().astype(np.int64)
        self.weighted: npt.NDArray[np.bool_] = batch.column("weight").is_valid().to_numpy(zero_copy_only=False)

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Token ids of all rows, one after the other."""
        return self.input_ids[self.token_ends[0] : self.token_ends[-1]]

    def first_targets(self) -> npt.NDArray[np.int64]:
        ends = self.token_ends[0] + np.cumsum(self.side_lengths)
        starts = ends - self.side_lengths
        targets = np.append(np.flatnonzero(self.is_target), self.token_ends[-1])
        found: npt.NDArray[np.int64] = np.minimum(targets[np.searchsorted(targets, starts)], ends) - starts
        return found

    def target_counts(self) -> npt.NDArray[np.int64]:
        starts = self.token_ends[0] + np.cumsum(self.side_lengths) - self.side_lengths
        targets = self.is_target.astype(np.int64)
        targets[starts] = 0  # Nothing predicts it.
        sums = np.concatenate([[0], np.cumsum(targets)])
        return np.diff(sums[self.token_ends])

    def content(self) -> "list[npt.NDArray[Any]]":
        """Arrays that tell these rows from all others."""
        ids = self.batch.column("row_id")
        text = np.frombuffer("".join(ids.to_pylist()).encode(), dtype=np.uint8)
        id_lengths = pc.binary_length(ids).to_numpy()
        own = (id_lengths, text, self.kinds, self.side_counts, self.side_lengths, self.input_ids, self.is_target)
        return list(own)

    def weights(self) -> "list[npt.NDArray[Any]]":
        """Arrays that tell the weights of these rows from all others."""
        column = self.batch.column("weight")
        return [self.weighted, column.flatten().to_numpy()]

    def scores(self) -> "npt.NDArray[np.float64]":
        """The score of each row, NaN where it has none."""
        found: npt.NDArray[np.float64] = self.batch.column("score").to_numpy(zero_copy_only=False)
        return found

    def row(self, i: int) -> EncodedRow:
        row_id = self.batch.column("row_id")[i].as_py()
        kind = ROW_KINDS[self.batch.column("kind")[i].as_py()]
        start, end = self.token_ends[i], self.token_ends[i + 1]
        ids = self.input_ids[start:end]
        labels = np.where(self.is_target[start:end], ids, IGNORE_INDEX)
        lengths = self.batch.column("length")[i].as_py()
        counts = {name: self.batch.column(name)[i].as_py() for name in PER_SIDE}
        weights = self.batch.column("weight")[i].as_py()
        names = (*SIDES[kind], "gold")[: len(lengths)]
        sides, first = {}, 0
        for k, (name, length) in enumerate(zip(names, lengths, strict=True)):
            sides[name] = Example(
                input_ids=ids[first : first + length].tolist(),
                labels=labels[first : first + length].tolist(),
                row_id=row_id,
                weights=weights and weights[first : first + length],
                **{name: values[k] for name, values in counts.items()},
            )
            first += length
        return EncodedRow(kind, row_id, sides, self.batch.column("score")[i].as_py())
