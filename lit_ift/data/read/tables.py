"""Rows of .csv and .tsv files."""

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from lit_ift.data.read.record import MAX_TEXT_CHARS, ReadRow, Record, check_values, unreadable
from lit_ift.data.read.text_files import (
    MAX_LINE_BYTES,
    decode,
    open_bytes,
    read_lines,
)
from lit_ift.errors import RowError, UserError

DELIMITER_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""Delimiters that are found without being told, and what they are called."""

SAMPLE_LINES: Final = 50
SAMPLE_BYTES: Final = 2**16
"""Lines at the start of a file, as far as they have so many bytes, that show the delimiter."""

_SEPARATOR_LINE: Final = re.compile(r'"?sep=([^"\w])"?\s*', re.IGNORECASE)
"""What Excel takes for the first line of a file that names its delimiter."""

NumberedLines = Iterator[tuple[int, bytes | None]]


class _CsvLines:
    """Lines for the csv module, which loses its place if one of them raises: faults wait for the end of the row."""

    def __init__(self, lines: NumberedLines, path: Path, before: int = 0) -> None:
        self._lines = lines
        self._path = path
        self.number = before
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


def read_csv(path: Path, usual: str) -> Iterator[ReadRow]:
    """The rows of a CSV or TSV file with a header; every value is a string, an empty field the empty string.

    Args:
        path: the file.
        usual: the delimiter where the file itself does not show another one.

    Raises:
        UserError: the file cannot be opened, is damaged or cut off, has no usable header, or a quoting error, behind
            which rows cannot be told apart.
    """
    # The limit belongs to the whole process, so it is only ever raised; `_CsvLines` has a limit of its own.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    with open_bytes(path) as file:
        numbered, declared = _without_separator_line(read_lines(file, path))
        numbered, sample = _with_sample(numbered)
        delimiter = declared or _delimiter(sample, usual)
        lines = _CsvLines(numbered, path, before=int(declared is not None))
        rows = _csv_rows(lines, delimiter)
        header = next(rows, None)
        if header is None:
            return
        if lines.fault is not None:
            raise lines.fault
        _check_header(header, lines.origin, declared)
        for fields in rows:
            try:
                yield Record(_csv_row(header, fields, lines, delimiter), lines.origin)
            except RowError as error:
                yield error


def _without_separator_line(lines: NumberedLines) -> tuple[NumberedLines, str | None]:
    """The lines behind a first one such as ``sep=;``, and the delimiter that it names."""
    number, first = next(lines, (0, None))
    if first is not None and (match := _SEPARATOR_LINE.fullmatch(_text(first))):
        return lines, match[1]
    return (chain([(number, first)], lines) if number else lines), None


class _Sample(NamedTuple):
    """The first lines of a file, and whether more follow, perhaps of the same row."""

    lines: list[str]
    is_cut: bool


def _with_sample(lines: NumberedLines) -> tuple[NumberedLines, _Sample]:
    """The lines, and a sample of them."""
    seen: list[tuple[int, bytes | None]] = []
    num_bytes = 0
    for number, line in lines:
        seen.append((number, line))
        num_bytes += MAX_LINE_BYTES if line is None else len(line)
        if len(seen) == SAMPLE_LINES or num_bytes > SAMPLE_BYTES:
            break
    is_cut = len(seen) == SAMPLE_LINES or num_bytes > SAMPLE_BYTES
    return chain(seen, lines), _Sample([_text(line) for _, line in seen if line is not None], is_cut)


def _text(line: bytes) -> str:
    return line[:SAMPLE_BYTES].decode("utf-8-sig", errors="replace")


def _delimiter(sample: _Sample, usual: str) -> str:
    """The delimiter that divides the header, and best into as many fields as the rows have; `usual` if none does."""
    found = {delimiter: _fit(sample, delimiter) for delimiter in DELIMITER_NAMES}
    dividing = [delimiter for delimiter, (_, columns) in found.items() if columns > 1]
    return max(dividing, key=lambda delimiter: (found[delimiter], delimiter == usual), default=usual)


def _fit(sample: _Sample, delimiter: str) -> tuple[float, int]:
    """The share of rows that a delimiter divides into as many fields as the header, and the number of these."""
    rows: list[list[str]] = []
    with suppress(csv.Error):  # What is wrong is said when the row is read; here the rows before it do.
        for row in csv.reader(sample.lines, delimiter=delimiter):
            rows += [row] if row else []
    if not rows:
        return 0.0, 0
    complete = rows[1:-1] if sample.is_cut else rows[1:]
    return sum(len(row) == len(rows[0]) for row in complete) / max(1, len(complete)), len(rows[0])


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


def _check_header(names: list[str], origin: str, declared: str | None) -> None:
    foreign = re.search(r"[|^~]", names[0])
    if len(names) == 1 and declared is None and foreign is not None:
        raise UserError(
            f"{origin}: no comma, semicolon or tab divides the header {names[0]!r}. If '{foreign[0]}' does, put the "
            f"line sep={foreign[0]} before it."
        )
    if "" in names:
        raise UserError(
            f"{origin}: column {names.index('') + 1} of the header has no name (columns: {names}). Name it, or leave "
            "it out (in pandas: to_csv(index=False))."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{origin}: the header names the column '{twice}' more than once. Rename or remove one.")


def _csv_row(header: list[str], fields: list[str], lines: _CsvLines, delimiter: str) -> dict[str, Any]:
    if lines.fault is not None:
        raise lines.fault
    if len(fields) != len(header):
        missing = header[len(fields)] if len(fields) < len(header) else ""
        raise unreadable(
            lines.origin,
            f"the row has {len(fields)} fields, but the header has {len(header)}",
            f"Put fields with delimiters ({DELIMITER_NAMES.get(delimiter, repr(delimiter))}) or line breaks in them "
            "into double quotes",
            field=missing,
        )
    row = dict(zip(header, fields, strict=True))
    if sum(map(len, fields)) > MAX_TEXT_CHARS:
        check_values(row, lines.origin)
    return row
