"""What a message says: a text, or a list of text parts. A text model sees no images, sounds and films."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from lit_ift.data.parse.values import parse_text, shown
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError

TEXT_PARTS: Final = ("text", "input_text", "output_text")
"""Types of parts that are text."""

MEDIA: Final = re.compile(r"(image|img|picture|photo|audio|video|pixel_value)s?", re.IGNORECASE)
"""Columns and keys of messages whose whole name says that they hold what a text model cannot see."""

MEDIA_WORD: Final = re.compile(r"(?<![a-z])(image|img|picture|photo|audio|video|pixel_value)s?(?![a-z])", re.IGNORECASE)
"""The same for names that say more, such as ``image_url``."""

PLACEHOLDER: Final = re.compile(r"<(image|video|audio)>", re.IGNORECASE)
"""Where such inputs go in a text."""

_REMEDY: Final = "A text model cannot see it: leave the row out, or take the {what} and what the text says of it away"


def parse_content(record: Record, path: str, content: Any) -> str:
    """The text of a message; that of text parts is joined as chat templates join it, with nothing in between.

    Raises:
        RowError: a part is no text, or as in `parse_text`.
    """
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return parse_text(record, path, content)
    return "".join(_part(record, f"{path}[{index}]", part) for index, part in enumerate(content))


def _part(record: Record, path: str, part: dict[str, Any]) -> str:
    kind = part.get("type")
    check_no_media(record, {key: value for key, value in part.items() if MEDIA_WORD.search(key)}, f"{path}.")
    if kind in TEXT_PARTS or (kind is None and "text" in part):
        return parse_text(record, f"{path}.text", part.get("text"))
    if isinstance(kind, str) and MEDIA_WORD.search(kind):
        raise unseen(record, path, kind)
    remedy = 'Write parts as {"type": "text", "text": ...}; thinking belongs in reasoning_content'
    raise RowError(record.origin, f"{path}.type", f"is {shown(kind)}, so the part is no text", remedy)


def check_no_media(record: Record, values: Mapping[str, Any], prefix: str = "") -> None:
    """Do nothing if none of `values`, by their names, is an image, sound or film.

    Raises:
        RowError: one is; empty ones are none.
    """
    for name, value in values.items():
        if not is_empty(value):
            raise unseen(record, f"{prefix}{name}", name)


def is_empty(value: Any) -> bool:
    """Whether `value` is nothing: null, an empty text, list or object, or a list of nothing."""
    nothing: tuple[Any, ...] = (None, "", {}, [])
    return value in nothing or (isinstance(value, list) and all(item in nothing for item in value))


def check_no_placeholder(record: Record, texts: Iterable[str]) -> None:
    """Do nothing unless a text has a place for an image, sound or film that a column of the row may hold.

    Raises:
        RowError: it has.
    """
    column = next(
        (name for name, value in record.data.items() if MEDIA_WORD.search(name) and not is_empty(value)), None
    )
    if column is None:
        return
    for text in texts:
        if match := PLACEHOLDER.search(text):
            raise unseen(record, column, match.group())


def unseen(record: Record, path: str, what: str) -> RowError:
    """The error of an input that a text model cannot see."""
    return RowError(record.origin, path, f"holds an input that is no text ({what})", _REMEDY.format(what=what))
