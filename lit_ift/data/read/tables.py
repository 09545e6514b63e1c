"""Rows of .csv, .tsv and .parquet files."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lit_ift.data.read.record import MAX_TEXT_CHARS, OnRowError, Record, check_values, unreadable
from lit_ift.data.read.text_files import (
    HEAD_BYTES,
    MAX_LINE_BYTES,
    cannot_open,
    decode,
    open_bytes,
    read_lines,
)
from lit_ift.errors import RowError, UserError

PARQUET_BATCH_ROWS: Final = 1024
PARQUET_BATCH_BYTES: Final = 64 * 2**20
"""Most rows, and about how many bytes, of a Parquet file that are in memory at once."""


class _CsvLines:
    """Lines for the csv module, which loses its place if one of them raises: faults wait for the end of the row."""

    def __init__(self, lines: Iterator[tuple[int, bytes | None]], path: Path) -> None:
        self._lines = lines
        self._path = path
        self.number = 0
        self.begin_row()

    def begin_row(self) -> None:
        """The next line starts a row."""
        self.start = self.number + 1
        self.fault: RowError | None = None
        self._row_bytes = 0

    @property
    def origin(self) -> str:
        """Where the row starts."""
        return f"{self._path}:{self.start}"

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        self._row_bytes += MAX_LINE_BYTES + 1 if line is None else len(line)
        if line is None or self._row_bytes > MAX_LINE_BYTES:
            raise UserError(
                f"{self.origin}: the row that starts here is longer than {MAX_LINE_BYTES // 2**20} MiB, or a quote in "
                f'it is not closed. Close it, or split the row; write a quote inside a quoted field twice ("").'
            )
        try:
            return decode(line, self._path, self.number)
        except RowError as error:
            self.fault = self.fault or error
            # Commas, quotes and line breaks are ASCII, so the row still ends where it ends.
            return line.decode("utf-8", errors="replace").replace("\0", "\ufffd")


def read_csv(path: Path, delimiter: str, on_row_error: OnRowError) -> Iterator[Record]:
    """The rows of a CSV or TSV file with a header; every value is a string, an empty field the empty string.

    Raises:
        UserError: the file cannot be opened, is damaged or cut off, has no usable header, or a quoting error, behind
            which rows cannot be told apart.
    """
    # The limit belongs to the whole process, so it is only ever raised; `_CsvLines` has a limit of its own.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    with open_bytes(path) as file:
        lines = _CsvLines(read_lines(file, path), path)
        rows = _csv_rows(lines, delimiter)
        header = next(rows, None)
        if header is None:
            return
        if lines.fault is not None:
            raise lines.fault
        _check_header(header, lines.origin)
        for fields in rows:
            try:
                yield Record(_csv_row(header, fields, lines), lines.origin)
            except RowError as error:
                on_row_error(error)


def _csv_rows(lines: _CsvLines, delimiter: str) -> Iterator[list[str]]:
    """The fields of each row that is not blank."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{lines.origin}: the row that starts here has a quoting error in line {lines.number} ({error}). Write "
                'a quote inside a quoted field twice ("") and close every quote. The rows behind it cannot be told '
                "apart, so the file is not read on."
            ) from error
        if fields:
            yield fields


def _check_header(names: list[str], origin: str) -> None:
    if "" in names:
        raise UserError(
            f"{origin}: column {names.index('') + 1} of the header has no name (columns: {names}). Name it, or leave "
            "it out (in pandas: to_csv(index=False))."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{origin}: the header names the column '{twice}' more than once. Rename or remove one.")


def _csv_row(header: list[str], fields: list[str], lines: _CsvLines) -> dict[str, Any]:
    if lines.fault is not None:
        raise lines.fault
    if len(fields) != len(header):
        missing = header[len(fields)] if len(fields) < len(header) else ""
        raise unreadable(
            lines.origin,
            f"the row has {len(fields)} fields, but the header has {len(header)}",
            "Put fields with delimiters or line breaks in them into double quotes",
            field=missing,
        )
    row = dict(zip(header, fields, strict=True))
    if sum(map(len, fields)) > MAX_TEXT_CHARS:
        check_values(row, lines.origin)
    return row


def read_parquet(path: Path, on_row_error: OnRowError) -> Iterator[Record]:
    """The rows of a Parquet file, some at a time.

    Raises:
        UserError: the file cannot be opened, is damaged, or has two columns of one name.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with path.open("rb") as raw:
            is_pointer = raw.read(HEAD_BYTES).startswith(b"version https://git-lfs")
    except OSError as error:
        raise cannot_open(path, error) from error
    if is_pointer:
        raise UserError(f"{path}: the file is a Git LFS pointer, not the data. Run git lfs pull.")
    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{path}: there are two columns named '{twice}'. Rename or remove one.")
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                yield from _batch_records(batch, path, index, on_row_error)
                index += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}#{index}: not a readable Parquet file from here on ({error}). Copy or write the file again."
        ) from error


def _batch_rows(metadata: Any) -> int:
    """How many rows to decode at once, by the row group with the longest rows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(PARQUET_BATCH_ROWS, int(PARQUET_BATCH_BYTES / max(1.0, row_bytes))))


def _batch_records(batch: Any, path: Path, first: int, on_row_error: OnRowError) -> Iterator[Record]:
    may_be_too_long = batch.nbytes > MAX_TEXT_CHARS
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
        except RowError as error:
            on_row_error(error)
            continue
        yield Record(row, origin, has_gaps=True)


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
