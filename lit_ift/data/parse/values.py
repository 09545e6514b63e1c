"""Single values of a row: texts that are whole, JSON in texts, and how errors show a value."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lit_ift.data.read.record import Record
from lit_ift.errors import RowError, nearest

MAX_NESTING: Final = 64
"""Levels of objects and lists that a tool call or a tool's declaration may have."""


def parse_text(record: Record, path: str, value: Any) -> str:
    """`value`, if it is a whole and undamaged text.

    Raises:
        RowError: it is no string, holds a null character or half a surrogate pair.
    """
    if not isinstance(value, str):
        raise wrong_type(record, path, value, "It must be a string")
    if "\0" in value:
        raise RowError(record.origin, path, "holds a null character", "Remove it; the text is damaged there")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            record.origin,
            path,
            f"holds half a surrogate pair at character {error.start + 1}",
            "The text was cut inside a character (an emoji, perhaps): mend it",
        ) from error
    return value


def parse_json(record: Record, path: str, text: str) -> Any:
    """The value that `text` is the JSON of.

    Raises:
        RowError: it is not JSON, or nested too deeply.
    """
    value = json_or_text(record, path, text)
    if value is text:
        raise RowError(record.origin, path, f"is not JSON ({shown(text)})", "Write it as one JSON value")
    return value


def json_or_text(record: Record, path: str, text: str) -> Any:
    """The value that `text` is the JSON of; `text` itself if it is not JSON.

    Raises:
        RowError: it is nested too deeply.
    """
    try:
        value = json.loads(text, parse_constant=_no_json)
    except RecursionError as error:
        raise _too_deep(record, path) from error
    except ValueError:
        return text
    check_nested(record, path, value)
    return value


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # Python's decoder takes NaN and Infinity.


def check_nested(record: Record, path: str, value: Any) -> None:
    """Do nothing if the objects and lists in `value` are not nested too deeply and its texts are whole.

    Raises:
        RowError: they are nested more than `MAX_NESTING` levels deep, or as in `parse_text`.
    """
    # A stack of its own: recursion would end in a RecursionError on the very rows that this is here to catch.
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            parse_text(record, path, item)
        elif isinstance(item, dict | list):
            if depth > MAX_NESTING:
                raise _too_deep(record, path)
            stack += [(part, depth + 1) for part in (item if isinstance(item, list) else [*item, *item.values()])]


def _too_deep(record: Record, path: str) -> RowError:
    return RowError(
        record.origin, path, f"is nested more than {MAX_NESTING} levels deep", "Flatten it or remove the row"
    )


def without_gaps(record: Record, value: Any) -> Any:
    """`value` without the keys of its objects that are None, where the row's source fills gaps with None."""
    if not record.has_gaps:
        return value
    if isinstance(value, dict):
        return {key: without_gaps(record, item) for key, item in value.items() if item is not None}
    return [without_gaps(record, item) for item in value] if isinstance(value, list) else value


def did_you_mean(value: object, known: Sequence[str] | Mapping[str, object]) -> str:
    """A hint at the known name closest to `value`, to end a sentence with; empty if none is close."""
    close = nearest(value.lower().strip(), known) if isinstance(value, str) else None
    return f"; did you mean '{close}'?" if close else ""


def wrong_type(record: Record, path: str, value: Any, remedy: str) -> RowError:
    """The error of a value whose type is wrong."""
    seen = f" ({shown(value)})" if isinstance(value, str | int | float) else ""
    return RowError(record.origin, path, f"is a {type(value).__name__}{seen}", remedy)


def shown(value: Any) -> str:
    """The start of `value` for an error message; the type alone of what has parts, for it may be deep or long."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
