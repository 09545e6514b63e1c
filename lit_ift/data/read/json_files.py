"""Rows of .jsonl and .json files."""

import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NoReturn

from lit_ift.data.read.record import MAX_DEPTH, MAX_TEXT_CHARS, ReadRow, Record, check_values, unreadable
from lit_ift.data.read.text_files import (
    DAMAGE,
    HEAD_BYTES,
    MAX_LINE_BYTES,
    ByteFile,
    damaged,
    decode,
    open_bytes,
    read_lines,
    too_long,
)
from lit_ift.errors import RowError, UserError, told_as

MAX_JSON_BYTES: Final = 2 * 2**30
"""Largest .json file, decompressed: unlike every other format it has to be held in memory whole."""

MAX_DIGITS: Final = 300
"""Digits of the longest integer that still fits a float."""

CHUNK_BYTES: Final = 2**20

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
LOOK_BACK: Final = 1000
"""Characters before a fault in which the comma is looked for that may be its cause."""

FOREIGN_JSON: Final = (
    (
        re.compile("['\u2018\u2019]"),
        "a text in single quotes",
        "Write double quotes, as json.dumps does; Python's str() writes single ones",
    ),
    (re.compile("[\u201c\u201d\u201e]"), "the typographic quote {}", 'Write plain double quotes (")'),
    (re.compile(r"(None|True|False|undefined)\b"), "{} is not JSON", "Write null, true or false"),
    (re.compile(r"//|/\*|#"), "a comment", "Remove it: JSON has no comments"),
)
"""What people write where JSON expects something else, what it is, and the remedy."""

_TRAILING_COMMA: Final = re.compile(r",\s*([}\]])")
_NOT_JSON: Final = object()
"""Stands for a value that Python's decoder takes although it is not JSON."""


class StrictDecoder:
    """Python's JSON decoder, without what it forgives: repeated keys, NaN and numbers that are out of range."""

    def __init__(self) -> None:
        self._fault: tuple[str, str, str] | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def decode(self, text: str, start: int, origin: str) -> tuple[Any, int, RowError | None]:
        """Decode the JSON value at `start`.

        Returns:
            The value, the position behind it, and what is wrong with the value if it is not strict JSON.

        Raises:
            RowError: it is nested too deeply to find its end.
            json.JSONDecodeError: it is not JSON.
        """
        self._fault = None
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError as error:
            raise unreadable(origin, f"nested deeper than {MAX_DEPTH} levels", "Flatten the row") from error
        return value, end, self._error(origin)

    def _error(self, origin: str) -> RowError | None:
        if self._fault is None:
            return None
        field, problem, remedy = self._fault
        return unreadable(origin, problem, remedy, field=field)

    def _found(self, problem: str, remedy: str) -> Any:
        if self._fault is None:
            self._fault = ("", problem, remedy)
        return _NOT_JSON

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if self._fault is not None and not self._fault[0]:
            # The value was decoded just now, before the object that it stands in.
            named = next((key for key, value in pairs if _holds_fault(value)), "")
            self._fault = (named, *self._fault[1:])
        if len(row) < len(pairs) and self._fault is None:
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._fault = (twice, "the object has this key more than once", "Keep one of them")
        return row

    def _constant(self, name: str) -> Any:
        return self._found(f"{name} is not JSON", "Write null, or a number")

    def _float(self, digits: str) -> Any:
        number = float(digits)
        if math.isfinite(number):
            return number
        return self._found(f"the number {_short(digits)} is out of range", "Write a smaller number, or a string")

    def _int(self, digits: str) -> Any:
        if len(digits) <= MAX_DIGITS:
            return int(digits)
        return self._found(f"the number {_short(digits)} is out of range", "Write a smaller number, or a string")


def _holds_fault(value: Any) -> bool:
    return value is _NOT_JSON or (isinstance(value, list) and any(_holds_fault(item) for item in value))


def _short(digits: str) -> str:
    return digits if len(digits) <= 20 else f"{digits[:20]}... ({len(digits)} digits)"


def read_jsonl(path: Path) -> Iterator[ReadRow]:
    """The rows of a JSON Lines file, one line at a time; of a list, if the file holds one.

    Raises:
        UserError: the file cannot be opened, is damaged or cut off, or begins a list that `read_json` refuses.
    """
    decoder = StrictDecoder()
    with open_bytes(path) as file:
        is_first = True
        for number, line in read_lines(file, path):
            if line is not None and not line.strip():
                continue
            if is_first and line is not None and line.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
                yield from _read_document(path)  # A list can be no row, so this one holds all rows.
                return
            is_first = False
            try:
                if line is None:
                    raise too_long(path, number)
                yield Record(_parse_line(decoder, decode(line, path, number), f"{path}:{number}"), f"{path}:{number}")
            except RowError as error:
                yield error


def _parse_line(decoder: StrictDecoder, text: str, origin: str) -> dict[str, Any]:
    try:
        start = _skip_space(text, 0)
        row, end, fault = decoder.decode(text, start, origin)
        rest = _skip_space(text, end)
        if rest < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except json.JSONDecodeError as error:
        raise _not_json(error, origin, "Mend the line; each line must be one whole JSON object") from error
    return _check_row(row, fault, text, start, end, origin)


def _not_json(error: json.JSONDecodeError, origin: str, remedy: str) -> RowError:
    """The error of text that is not JSON, which names the commonest mistakes."""
    what = error.msg
    comma = error.doc.rfind(",", max(0, error.pos - LOOK_BACK), error.pos + 1)
    trailing = _TRAILING_COMMA.match(error.doc, comma) if comma >= 0 else None
    if trailing is not None and trailing.end() > error.pos:
        what, remedy = f"a comma before the closing '{trailing[1]}'", "Remove the comma"
    elif error.msg == "Extra data" and error.doc.startswith(",", error.pos):
        what, remedy = "a comma behind the row", "Remove the comma, or put all rows into one list: [row, row]"
    else:
        for pattern, name, cure in FOREIGN_JSON:
            if found := pattern.match(error.doc, _skip_space(error.doc, error.pos)):
                what, remedy = name.format(found[0]), cure
                break
    return unreadable(origin, f"not valid JSON: {what} at column {error.colno}", remedy)


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return start if match is None else match.end()


def _check_row(row: Any, fault: RowError | None, text: str, start: int, end: int, origin: str) -> dict[str, Any]:
    """The row that stands at `start` to `end` of `text`, if it is a readable one."""
    if fault is not None:
        raise fault
    if not isinstance(row, dict):
        raise unreadable(
            origin, f"the row is a {type(row).__name__}, not an object", 'Write rows as {"column": value, ...}'
        )
    # Walking through every row would cost more than decoding it, and most cannot be beyond any limit.
    if (
        end - start > MAX_TEXT_CHARS
        or text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH
        or _SURROGATE.search(text, start, end)
    ):
        check_values(row, origin)
    return row


def read_json(path: Path) -> Iterator[ReadRow]:
    """The rows of a JSON file, which is a list of objects or an object with such a list under ``data``.

    A file of several objects, one a line, is read as JSON Lines.

    Raises:
        RowError: from some place on the file is not JSON.
        UserError: the file cannot be opened, is damaged, cut off or too large, or is something else than a list.
    """
    return read_jsonl(path) if _holds_lines(path) else _read_document(path)


def _holds_lines(path: Path) -> bool:
    """Whether the first line ends an object and the next one begins another, which JSON has no place for."""
    with open_bytes(path) as file:
        if not file.peek(HEAD_BYTES).removeprefix(BOM_UTF8).lstrip().startswith(b"{"):
            return False
        try:
            lines = (line.strip() for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""))
            first, second = islice(filter(None, chain(lines, (b".", b"."))), 2)
        except DAMAGE:
            return False  # Whoever reads the file says where it is damaged.
    return first.endswith(b"}") and second.startswith(b"{")


def _read_document(path: Path) -> Iterator[ReadRow]:
    """The rows of a file that is one JSON value; the same errors as `read_json`."""
    with open_bytes(path) as file:
        data = _read_whole(file, path)
    if not data.strip():
        return
    text = decode(data, path, 1)
    del data
    try:
        yield from _JsonFile(text, path).rows()
    except json.JSONDecodeError as error:
        hint = "Mend the file"
        if error.msg == "Extra data":
            hint = "Put all rows into one list, or write one object a line: jq -c . FILE > FILE.jsonl"
        raise _not_json(error, f"{path}:{error.lineno}", hint) from error


def _read_whole(file: ByteFile, path: Path) -> bytes:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise _too_large(path)
    chunks: list[bytes] = []
    size = 0
    with told_as(DAMAGE, lambda error: damaged(str(path), error, "a .json file cannot be read in part")):
        while chunk := file.read(CHUNK_BYTES):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_JSON_BYTES:
                raise _too_large(path)
    return b"".join(chunks)


def _too_large(path: Path) -> UserError:
    return UserError(
        f"{path}: larger than {MAX_JSON_BYTES // 2**20:,} MiB, and a .json file has to be held in memory whole. "
        "Convert it to JSON Lines, one object a line: jq -c '.[]' FILE.json > FILE.jsonl"
    )


class _JsonFile:
    """Walks over the outer list or object of a .json file and decodes one row at a time.

    This way a row that is not strict JSON is named and passed over like a line of JSON Lines, and the rows are not
    held in memory all at once.
    """

    def __init__(self, text: str, path: Path) -> None:
        self.text = text
        self.path = path
        self.decoder = StrictDecoder()
        self.position = _skip_space(text, 0)

    def rows(self) -> Iterator[ReadRow]:
        """All rows; the file must end behind them.

        Raises:
            json.JSONDecodeError: the file is not JSON.
            RowError: a part that is no row cannot be decoded.
            UserError: there is no list of rows.
        """
        if self._next_is("["):
            yield from self._list()
            self._end()
        elif self._next_is("{"):
            yield from self._object()
        else:
            value = self._value(str(self.path))
            self._end()
            self._no_list(value)

    def _object(self) -> Iterator[ReadRow]:
        keys: list[str] = []
        for _ in self._items("}"):
            key = self._value(str(self.path)) if self._next_is('"') else self._fail("Expecting property name")
            if key in keys:
                raise unreadable(str(self.path), "the object has this key more than once", "Keep one", field=key)
            keys.append(key)
            if not self._take(":"):
                self._fail("Expecting ':' delimiter")
            if key == "data" and self._next_is("["):
                yield from self._list()
                continue
            value = self._value(str(self.path))
            if key == "data":
                self._no_list(value)
        self._end()
        if "data" not in keys:
            raise UserError(
                f"{self.path}: the top level is an object with the keys {sorted(keys)}. It must be a list of rows, or "
                '{"data": [rows]}. If the object itself is a row, name the file .jsonl.'
            )

    def _list(self) -> Iterator[ReadRow]:
        for index in self._items("]"):
            origin = f"{self.path}#{index}"
            start = self.position
            value, self.position, fault = self.decoder.decode(self.text, start, origin)
            try:
                yield Record(_check_row(value, fault, self.text, start, self.position, origin), origin)
            except RowError as error:
                yield error

    def _items(self, close: str) -> Iterator[int]:
        """Go into a list or object; stop before each item, which the caller has to decode, and behind the end."""
        self.position = _skip_space(self.text, self.position + 1)
        if self._take(close):
            return
        index = 0
        while True:
            yield index
            index += 1
            if self._take(close):
                return
            if not self._take(","):
                self._fail("Expecting ',' delimiter")

    def _value(self, origin: str) -> Any:
        value, self.position, fault = self.decoder.decode(self.text, self.position, origin)
        if fault is not None:
            raise fault
        return value

    def _next_is(self, char: str) -> bool:
        return self.text.startswith(char, self.position)

    def _take(self, char: str) -> bool:
        """Whether `char` comes next, white space aside; if so, go to what follows it."""
        self.position = _skip_space(self.text, self.position)
        if not self._next_is(char):
            return False
        self.position = _skip_space(self.text, self.position + 1)
        return True

    def _end(self) -> None:
        self.position = _skip_space(self.text, self.position)
        if self.position < len(self.text):
            self._fail("Extra data")

    def _no_list(self, value: Any) -> NoReturn:
        raise UserError(
            f"{self.path}: expected a list of rows, found a {type(value).__name__}. Write [row, row, ...] or "
            '{"data": [rows]}.'
        )

    def _fail(self, problem: str) -> NoReturn:
        raise json.JSONDecodeError(problem, self.text, self.position)
