"""The faults for which rows are left out: every different one is told, and equal ones once with their number."""

import re
from dataclasses import dataclass, field
from typing import Final

from lit_ift.errors import RowError

LONGEST_MESSAGE: Final = 1000
"""Characters kept of a message."""

NUM_ALIKE: Final = 20
"""Messages kept that differ only in what they quote, such as the names of columns; the rest of them is counted."""

NUM_DIFFERENT: Final = 300
"""Messages kept that differ in more; those of rows behind them are counted together."""

_NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d[\d,.]*")
_QUOTED: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


@dataclass
class _Fault:
    message: str
    count: int = 0

    def __str__(self) -> str:
        return self.message if self.count == 1 else f"{self.message} (the first of {self.count:,} such rows)"


@dataclass
class _Alike:
    """Faults that differ in what they quote, by their problem without its numbers; and how many more there are."""

    told: dict[str, _Fault] = field(default_factory=dict)
    rest: _Fault | None = None


class FaultTally:
    """Counts the faults of one `errors.RowReason`. Its memory is bounded, whatever the rows hold."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Alike] = {}

    def add(self, error: RowError) -> None:
        """Count the fault of a row."""
        same = _NUMBER.sub("#", f"{error.field}: {error.problem}"[:LONGEST_MESSAGE])
        kind = _QUOTED.sub("…", same.removeprefix(_NUMBER.sub("#", error.field)))
        if kind not in self._kinds and len(self._kinds) >= NUM_DIFFERENT:
            kind = ""
        alike = self._kinds.setdefault(kind, _Alike())
        if same in alike.told or len(alike.told) < NUM_ALIKE:
            fault = alike.told.setdefault(same, _Fault(_shortened(str(error))))
        else:
            fault = alike.rest = alike.rest or _Fault(f"and others like these: {_shortened(str(error))}")
        fault.count += 1

    def messages(self) -> tuple[str, ...]:
        """One message a fault, with the place of the first row that has it."""
        return tuple(
            str(fault)
            for alike in self._kinds.values()
            for fault in (*alike.told.values(), alike.rest)
            if fault is not None
        )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 1]}…"
