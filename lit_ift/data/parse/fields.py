"""One value of a row: where it stands, whether it is what it must be, and the error that says so."""

import json
import math
import re
from typing import Any, Final, NamedTuple, TypeVar

from lit_ift.data.read.record import Record
from lit_ift.errors import RowError, RowReason, UserError

T = TypeVar("T")

MAX_NESTING: Final = 64
"""Levels of objects and lists that a tool call or a tool's declaration may have."""

NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
"""A text that is a number, as CSV files hold them."""


class Field(NamedTuple):
    """A value of a row. What is wrong with it becomes a `RowError` that names file, line and field.

    Args:
        record: the row.
        path: where the value stands in the row, such as ``messages[1].role``.
        value: the value; None where there is none.
    """

    record: Record
    path: str
    value: Any

    @classmethod
    def of(cls, record: Record, column: str) -> "Field":
        """The value of a column."""
        return cls(record, column, record.data.get(column))

    def at(self, key: str | int) -> "Field":
        """The value of a key of this object, None if it is absent; or an item of this list."""
        if isinstance(key, int):
            return Field(self.record, f"{self.path}[{key}]", self.value[key])
        return Field(self.record, f"{self.path}.{key}", self.value.get(key))

    def items(self) -> list["Field"]:
        """The items of this list."""
        return [self.at(index) for index in range(len(self.value))]

    def holding(self, value: Any) -> "Field":
        """The same place with another value."""
        return Field(self.record, self.path, value)

    def error(self, problem: str, remedy: str, reason: RowReason = "field") -> RowError:
        """The error that this value is wrong."""
        return RowError(self.record.origin, self.path, problem, remedy, reason=reason)

    def source_error(self, problem: str) -> UserError:
        """The error that the whole source is read in a wrong way, as this value shows."""
        return UserError(f"{self.record.origin}: field '{self.path}' {problem}")

    def require(self, holds: object, problem: str, remedy: str, reason: RowReason = "field") -> None:
        """Do nothing if what must be so holds.

        Raises:
            RowError: it does not.
        """
        if not holds:
            raise self.error(problem, remedy, reason)

    def of_type(self, kind: type[T], remedy: str) -> T:
        """The value, if it is of this type.

        Raises:
            RowError: it is of another type.
        """
        if isinstance(self.value, kind):
            return self.value
        raise self.wrong_type(remedy)

    def wrong_type(self, remedy: str) -> RowError:
        """The error of a value of another type."""
        seen = f" ({shown(self.value)})" if isinstance(self.value, str | int | float) else ""
        return self.error(f"is a {type(self.value).__name__}{seen}", remedy)

    def text(self) -> str:
        """The value, if it is a whole and undamaged text.

        Raises:
            RowError: it is no string, holds a null character or half a surrogate pair.
        """
        text = self.of_type(str, "It must be a string")
        self.require("\0" not in text, "holds a null character", "Remove it; the text is damaged there")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = f"holds half a surrogate pair at character {error.start + 1}"
            remedy = "The text was cut inside a character (an emoji, perhaps): mend it"
            raise self.error(problem, remedy) from error
        return text

    def number(self) -> float:
        """The finite number that the value is; a text that is exactly a number counts, since CSV has no other.

        Raises:
            RowError: it is anything else.
        """
        value = self.value
        if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong_type("It must be a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        self.require(math.isfinite(number), f"is {number}", "It must be a finite number")
        return number

    def json_or_text(self) -> Any:
        """The value that this text is the JSON of; the text itself if it is not JSON.

        Raises:
            RowError: it is nested too deeply.
        """
        try:
            value = json.loads(self.value, parse_constant=_no_json)
        except RecursionError as error:
            raise self._too_deep() from error
        except ValueError:
            return self.value
        self.holding(value).check_nested()
        return value

    def check_nested(self) -> None:
        """Do nothing if the objects and lists in the value are not nested too deeply and its texts are whole.

        Raises:
            RowError: they are nested more than `MAX_NESTING` levels deep, or as in `text`.
        """
        # A stack of its own: recursion would end in a RecursionError on the very rows that this is here to catch.
        stack = [(self.value, 1)]
        while stack:
            item, depth = stack.pop()
            if isinstance(item, str):
                self.holding(item).text()
            elif isinstance(item, dict | list):
                if depth > MAX_NESTING:
                    raise self._too_deep()
                stack += [(part, depth + 1) for part in (item if isinstance(item, list) else [*item, *item.values()])]

    def _too_deep(self) -> RowError:
        return self.error(f"is nested more than {MAX_NESTING} levels deep", "Flatten it or remove the row")

    def without_gaps(self) -> "Field":
        """The value without the keys of its objects that are None, where the row's source fills gaps with None."""
        return self.holding(_without_none(self.value)) if self.record.has_gaps else self


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # Python's decoder takes NaN and Infinity.


def shown(value: Any) -> str:
    """The start of `value` for an error message; the type alone of what has parts, for it may be deep or long."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
