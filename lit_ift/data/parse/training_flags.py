"""Which turns are trained on, and how much they count, where a row says so in the words of other tools."""

import re
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Final

from lit_ift.chat.conversation import LOSS
from lit_ift.data.parse.values import shown
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError

FLAGS: Final[dict[str, bool]] = {
    LOSS: True,
    "loss_weight": True,
    "loss_mask": True,
    "weight": True,
    "train": True,
    "training": True,
    "trainable": True,
    "train_on_turn": True,
    "masked": False,
}
"""Keys of a turn by which tools say whether to train on it, and whether true means that it is trained."""

WEIGHTS: Final = (LOSS, "loss_weight", "weight")
"""Those of `FLAGS` that may be a number, by which the losses of the turn's tokens are multiplied."""

FLAG_COLUMNS: Final[dict[str, str]] = {
    **{key: key for key in FLAGS},
    **{f"{key}s": key for key in ("loss_weight", "loss_mask", "weight")},
}
"""Columns that hold one flag a message, and the key that each flag would be."""

_HINTS_AT_TRAINING: Final = re.compile(
    r"(?<![a-z])(loss(es)?|mask(s|ed|ing)?|(un|is_|no_)?train(s|ed|able|ing)?|weights?)(?![a-z])"
)
"""Words of a key that says something of the kind, but is none of `FLAGS`."""

_WORDS: Final = {"true": True, "1": True, "false": False, "0": False}


def take_flags(record: Record, field: str, turns: Sequence[Any]) -> list[bool | float | None]:
    """For each turn whether to train on it, or how much it counts; None where the row does not say.

    Args:
        record: the row.
        field: the column of the turns; its other columns may hold one flag a turn.
        turns: what the column holds.

    Raises:
        RowError: a flag is neither true nor false nor a weight, flags contradict each other, or a key of the kind is
            unknown.
    """
    columns = {name: record.data[name] for name in FLAG_COLUMNS if isinstance(record.data.get(name), list)}
    flags: list[bool | float | None] = []
    for name, values in columns.items():
        if len(values) != len(turns):
            problem = f"has {len(values)} flags, but '{field}' has {len(turns)} messages"
            raise RowError(
                record.origin, name, problem, f"Give one flag a message, or write '{LOSS}' into the messages"
            )
    for index, turn in enumerate(turns):
        said = {f"{name}[{index}]": (FLAG_COLUMNS[name], values[index]) for name, values in columns.items()}
        if isinstance(turn, dict):
            said |= {f"{field}[{index}].{key}": (key, value) for key, value in turn.items() if _is_flag(key)}
        flags.append(_agreed(record, said))
    _check_others(record, field, turns, flags)
    return flags


def _is_flag(key: str) -> bool:
    return key in FLAGS or _HINTS_AT_TRAINING.search(key) is not None


def _agreed(record: Record, said: Mapping[str, tuple[str, Any]]) -> bool | float | None:
    """What all that is said of one turn comes to."""
    found = {
        path: _flag(record, path, key, value) for path, (key, value) in said.items() if value not in (None, [], {})
    }
    if len(set(found.values())) > 1:
        first, second = list(found)[:2]
        raise RowError(record.origin, second, f"contradicts '{first}'", "Keep one of the two")
    return next(iter(found.values()), None)


def _flag(record: Record, path: str, key: str, value: Any) -> bool | float:
    if key not in FLAGS:
        problem = "may say which part of the answer to train on, but not in a way that is read here"
        raise RowError(record.origin, path, problem, _remedy())
    flag = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None and isinstance(value, bool | int | float) and value in (0, 1):
        flag = bool(value)
    if flag is None and key in WEIGHTS and isinstance(value, int | float) and 0 < value < inf:
        return float(value)
    if flag is None:
        raise RowError(
            record.origin,
            path,
            f"is {shown(value)}, but a turn is trained on, or not, or has a weight above 0",
            _remedy(),
        )
    return flag is FLAGS[key]


def _remedy() -> str:
    return f"Write '{LOSS}': true or false instead (true: train on the turn), or a weight above 0, or remove it"


def _check_others(record: Record, field: str, turns: Sequence[Any], flags: Sequence[bool | float | None]) -> None:
    """Refuse flags that pick some turns of users to be trained on, or weigh them.

    Where all of them are true, they are a tool's default and mean nothing.
    """
    others = [
        (index, flag)
        for index, (turn, flag) in enumerate(zip(turns, flags, strict=True))
        if flag is not None and isinstance(turn, dict) and _asks(turn)
    ]
    said = {flag for _, flag in others}
    weights = said - {True, False}
    if said == {True, False} or weights:
        index = next(index for index, flag in others if (flag in weights if weights else flag))
        problem = "has a weight" if weights else "is to be trained on, but other turns of users are not"
        remedy = "Only turns of the assistant can be picked or weighted; remove the flag from the others"
        raise RowError(record.origin, f"{field}[{index}]", problem, remedy)


def _asks(turn: Mapping[str, Any]) -> bool:
    return str(turn.get("role") or turn.get("from")).lower() in ("user", "human")
