"""What a message says: a text, or a list of text parts. A text model sees no images, sounds and films."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from lit_ift.data.parse.fields import Field, shown
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError

TEXT_PARTS: Final = ("text", "input_text", "output_text")
"""Types of parts that are text."""

_MEDIA_NAMES: Final = r"(image|img|picture|photo|audio|video|pixel_value)s?"

MEDIA: Final = re.compile(_MEDIA_NAMES, re.IGNORECASE)
"""Columns and keys of messages whose whole name says that they hold what a text model cannot see."""

MEDIA_WORD: Final = re.compile(rf"(?<![a-z]){_MEDIA_NAMES}(?![a-z])", re.IGNORECASE)
"""The same for names that say more, such as ``image_url``."""

PLACEHOLDER: Final = re.compile(r"<(image|video|audio)>", re.IGNORECASE)
"""Where such inputs go in a text."""


def parse_content(field: Field) -> str:
    """The text of a message; that of text parts is joined as chat templates join it, with nothing in between.

    Raises:
        RowError: a part is no text, or as in `Field.text`.
    """
    if not isinstance(field.value, list) or not all(isinstance(part, dict) for part in field.value):
        return field.text()
    return "".join(_part(part) for part in field.items())


def _part(part: Field) -> str:
    kind = part.at("type")
    check_no_media(part, MEDIA_WORD.search)
    if kind.value in TEXT_PARTS or (kind.value is None and "text" in part.value):
        return part.at("text").text()
    if isinstance(kind.value, str) and MEDIA_WORD.search(kind.value):
        raise unseen(part, kind.value)
    remedy = 'Write parts as {"type": "text", "text": ...}; thinking belongs in reasoning_content'
    raise kind.error(f"is {shown(kind.value)}, so the part is no text", remedy)


def check_no_media(field: Field, is_media: Callable[[str], object]) -> None:
    """Do nothing if no key of this object is by its name an image, sound or film; empty ones are none.

    Raises:
        RowError: one is.
    """
    for key, value in field.value.items():
        if is_media(key) and not is_empty(value):
            raise unseen(field.at(key), key)


def is_empty(value: Any) -> bool:
    """Whether `value` is nothing: null, an empty text, list or object, or a list of nothing."""
    nothing: tuple[Any, ...] = (None, "", {}, [])
    return value in nothing or (isinstance(value, list) and all(item in nothing for item in value))


def check_no_placeholder(record: Record, texts: Iterable[str]) -> None:
    """Do nothing unless a text has a place for an image, sound or film that a column of the row may hold.

    Raises:
        RowError: it has.
    """
    for column, value in record.data.items():
        if MEDIA_WORD.search(column) and not is_empty(value):
            for found in filter(None, map(PLACEHOLDER.search, texts)):
                raise unseen(Field.of(record, column), found.group())
            return


def unseen(field: Field, what: str) -> RowError:
    """The error of an input that a text model cannot see."""
    remedy = f"A text model cannot see it: leave the row out, or take the {what} and what the text says of it away"
    return field.error(f"holds an input that is no text ({what})", remedy)
