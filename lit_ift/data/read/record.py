"""One row as it was read, and what makes a row unreadable whatever format it came in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from lit_ift.errors import RowError, UserError

MAX_TEXT_CHARS: Final = 4_000_000
"""Characters that all text of one row may have, about a million tokens."""

MAX_DEPTH: Final = 100
"""Lists and objects that may be nested in each other; chat templates and JSON writers recurse over them."""


@dataclass(frozen=True)
class Record:
    """One row as it was read.

    Args:
        data: column name to value.
        origin: ``file:line`` (from 1, where the row starts) for JSON Lines, CSV and TSV; ``source#index`` (from 0)
            for everything else.
        has_gaps: whether an object in it has None for every key that it lacks, but another row has, as in Arrow's
            tables. A key that truly was null cannot be told from these.
    """

    data: dict[str, Any]
    origin: str
    has_gaps: bool = field(default=False, compare=False)


ReadRow = Record | RowError
"""What a reader yields for a row: the row, or why it cannot be read."""

OnRowError = Callable[[RowError], None]
"""Told about a row that cannot be read, so that reading can go on with the next one."""


@runtime_checkable
class FaultListener(Protocol):
    """An `OnRowError` that also hears of files whose rest cannot be read, so that reading goes on with the next one."""

    def __call__(self, error: RowError) -> None:
        """A row cannot be read."""

    def file_fault(self, error: UserError) -> None:
        """Nothing of a file can be read, or nothing from some place on."""


def raise_row_error(error: RowError) -> None:
    """The default `OnRowError`: the first bad row ends the reading."""
    raise error


def unreadable(origin: str, problem: str, remedy: str, *, field: str = "") -> RowError:
    """The error of a row that is not valid text, JSON or CSV, or beyond the limits."""
    return RowError(origin, field, problem, remedy, reason="unreadable")


def check_values(data: dict[str, Any], origin: str) -> None:
    """Do nothing if the row's values are within the limits and can be encoded.

    Raises:
        RowError: there is more than `MAX_TEXT_CHARS` of text, nesting deeper than `MAX_DEPTH`, or half a surrogate
            pair, which no tokenizer takes.
    """
    chars = {column: _num_chars(value, column, origin) for column, value in data.items()}
    total = sum(chars.values())
    if total > MAX_TEXT_CHARS:
        raise unreadable(
            origin,
            f"the row has {total:,} characters of text, most of them here; at most {MAX_TEXT_CHARS:,} are read",
            "Split the row into several",
            field=max(chars, key=lambda column: chars[column]),
        )


def _num_chars(value: Any, column: str, origin: str) -> int:
    """Characters in all strings inside `value`, keys included."""
    num_chars = 0
    # A stack of its own: recursion would fail on the very rows that this is to find.
    stack = [(value, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, str):
            num_chars += len(value)
            _check_encodable(value, column, origin)
        elif isinstance(value, dict | list | tuple):
            if depth >= MAX_DEPTH:
                raise unreadable(origin, f"nested deeper than {MAX_DEPTH} levels", "Flatten the value", field=column)
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            stack.extend((item, depth + 1) for item in inner)
    return num_chars


def _check_encodable(text: str, column: str, origin: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise unreadable(
            origin,
            f"character {error.start + 1} of the text is \\u{ord(text[error.start]):04x}, half of a surrogate pair",
            "The text was cut inside a character: remove the half or write the text again",
            field=column,
        ) from error
