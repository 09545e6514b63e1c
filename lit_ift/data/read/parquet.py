"""Rows of .parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lit_ift.data.read.record import MAX_TEXT_CHARS, ReadRow, Record, check_values, unreadable
from lit_ift.data.read.text_files import HEAD_BYTES, ExpandedSize, cannot_open
from lit_ift.errors import RowError, UserError, told_as

BATCH_ROWS: Final = 1024
BATCH_BYTES: Final = 64 * 2**20
"""Most rows, and about how many bytes, that are in memory at once."""

INDEX_BYTES: Final = 4
"""What a value takes in memory whatever it is, as the number of its entry in a dictionary."""


def read_parquet(path: Path) -> Iterator[ReadRow]:
    """The rows of a Parquet file, some at a time.

    Raises:
        UserError: the file cannot be opened, is damaged, has two columns of one name, or stands for far more data than
            a file of its size can.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    with told_as(OSError, lambda error: cannot_open(path, error)):
        with path.open("rb") as raw:
            is_pointer = raw.read(HEAD_BYTES).startswith(b"version https://git-lfs")
        expanded = ExpandedSize(path)
    if is_pointer:
        raise UserError(f"{path}: the file is a Git LFS pointer, not the data. Run git lfs pull.")
    index = 0
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        _check_metadata(metadata, ExpandedSize(path))
        # A dictionary holds each text once, however often it comes: so the batches are read, and measured before the
        # texts are repeated.
        columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{path}: there are two columns named '{twice}'. Rename or remove one.")
            for batch in file.iter_batches(batch_size=_batch_rows(metadata)):
                num_bytes = sum(map(_expanded_bytes, batch.columns))
                expanded.add(num_bytes)
                step = max(1, batch.num_rows * BATCH_BYTES // max(BATCH_BYTES, num_bytes))
                for first in range(0, batch.num_rows, step):
                    yield from _batch_records(batch.slice(first, step), path, index + first)
                index += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}#{index}: not a readable Parquet file from here on ({error}). Copy or write the file again."
        ) from error


def _check_metadata(metadata: Any, expanded: ExpandedSize) -> None:
    """Refuse a file that by its own account holds too much, before any of it is read."""
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        values = sum(group.column(i).num_values for i in range(group.num_columns))
        expanded.add(max(group.total_byte_size, INDEX_BYTES * max(values, group.num_rows)))


def _expanded_bytes(array: Any) -> int:
    """What an array takes once its dictionaries are written out."""
    import pyarrow
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if isinstance(array, pyarrow.DictionaryArray):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(pc.take(lengths, array.indices)).as_py() or 0) + INDEX_BYTES * len(array)
    if isinstance(array, pyarrow.StructArray):
        return sum(map(_expanded_bytes, array.flatten()))
    if isinstance(array, pyarrow.MapArray):
        return _expanded_bytes(array.keys) + _expanded_bytes(array.items)
    if isinstance(array, pyarrow.ListArray | pyarrow.LargeListArray):
        return _expanded_bytes(array.flatten()) + INDEX_BYTES * len(array)
    return int(array.nbytes)


def _batch_rows(metadata: Any) -> int:
    """How many rows to decode at once, by the row group with the longest rows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1.0, row_bytes))))


def _batch_records(batch: Any, path: Path, first: int) -> Iterator[ReadRow]:
    may_be_too_long = sum(map(_expanded_bytes, batch.columns)) > MAX_TEXT_CHARS
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = None  # One of the rows cannot be converted; find it below.
    for index in range(batch.num_rows):
        origin = f"{path}#{first + index}"
        try:
            row = rows[index] if rows is not None else _convert(batch, index, origin)
            if may_be_too_long:
                check_values(row, origin)
            yield Record(row, origin, has_gaps=True)
        except RowError as error:
            yield error


def _convert(batch: Any, index: int, origin: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except (ValueError, OverflowError) as error:
            raise unreadable(
                origin, f"the value cannot be read ({error})", "Write it as UTF-8 text or as a number", field=name
            ) from error
    return row
