"""Lists of turns that stand in a column as text, as CSV files and text columns of databases have them."""

from ast import literal_eval
from dataclasses import replace
from typing import Any, Final

from lit_ift.data.parse.fields import Field, shown
from lit_ift.data.read.json_files import StrictDecoder
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError

LISTS: Final = ("messages", "conversations")
"""Columns that never hold a text, so that a text there is JSON."""

TEXTS_OR_LISTS: Final = ("prompt", "completion", "chosen", "rejected", "gold")
"""Columns that hold a text or a list. A text that is JSON of turns, and nothing else, is that list."""

_TURN: Final = ({"role", "content"}, {"from", "value"})
"""Keys of a turn."""


def with_lists(record: Record) -> Record:
    """The row with the lists that stand there as JSON.

    Raises:
        RowError: a text is not the JSON that it must be.
    """
    lists = {}
    for column in (*LISTS, *TEXTS_OR_LISTS):
        text = record.data.get(column)
        if not isinstance(text, str):
            continue
        text = text.strip()
        if column in LISTS or (_begins_with_turn(text, "'") and _are_turns(_python_value(text))):
            lists[column] = _decoded(Field(record, column, text))
        elif _begins_with_turn(text, '"') and _are_turns(value := _json_value(text)):
            lists[column] = value
    return replace(record, data={**record.data, **lists}) if lists else record


def _begins_with_turn(text: str, quote: str) -> bool:
    head = text[:40].replace(" ", "").replace("\n", "")
    return head.startswith(tuple(f"[{{{quote}{key}{quote}:" for keys in _TURN for key in keys))


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and any(turn.keys() >= keys for keys in _TURN) for turn in value
    )


def _python_value(text: str) -> Any:
    """The value that `text` is where Python shows it; None if it is none."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _json_value(text: str) -> Any:
    """The strict JSON value that `text` is; None if it is not."""
    try:
        value, end, error = StrictDecoder().decode(text, 0, "")
    except ValueError:
        return None
    return None if error is not None or text[end:] else value


def _decoded(field: Field) -> Any:
    text = field.value
    try:
        value, end, error = StrictDecoder().decode(text, 0, field.record.origin)
    except RowError:
        raise
    except ValueError as fault:
        as_python = "It is written as Python shows it: write it with json.dumps"
        remedy = as_python if text.startswith("[{'") else "Write the list of turns as JSON"
        raise field.error(f"is a str that is not JSON ({shown(text)})", remedy) from fault
    if error is not None:
        raise error
    field.require(not text[end:].strip(), "has text behind its JSON value", "Write one list of turns there")
    return value
