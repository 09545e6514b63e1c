"""Which turns are trained on, and how much they count, where a row says so in the words of other tools."""

import re
from collections.abc import Sequence
from math import inf
from typing import Any, Final

from lit_ift.chat.conversation import LOSS
from lit_ift.data.parse.fields import Field, shown

FLAGS: Final[dict[str, bool]] = {
    **dict.fromkeys((LOSS, "loss_weight", "loss_mask", "weight", "train", "training", "trainable"), True),
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

_REMEDY: Final = f"Write '{LOSS}': true or false instead (true: train on the turn), or a weight above 0, or remove it"


def take_flags(turns: Field) -> list[bool | float | None]:
    """For each turn whether to train on it, or how much it counts; None where the row does not say.

    Args:
        turns: a list of turns; other columns of its row may hold one flag a turn.

    Raises:
        RowError: a flag is neither true nor false nor a weight, flags contradict each other, or a key of the kind is
            unknown.
    """
    row = turns.record.data
    columns = {name: Field.of(turns.record, name) for name in FLAG_COLUMNS if isinstance(row.get(name), list)}
    for column in columns.values():
        problem = f"has {len(column.value)} flags, but '{turns.path}' has {len(turns.value)} messages"
        remedy = f"Give one flag a message, or write '{LOSS}' into the messages"
        column.require(len(column.value) == len(turns.value), problem, remedy)
    flags: list[bool | float | None] = []
    for index, turn in enumerate(turns.items()):
        said = [(FLAG_COLUMNS[name], column.at(index)) for name, column in columns.items()]
        if isinstance(turn.value, dict):
            said += [(key, turn.at(key)) for key in turn.value if key in FLAGS or _HINTS_AT_TRAINING.search(key)]
        flags.append(_agreed(said))
    _check_others(turns, flags)
    return flags


def _agreed(said: Sequence[tuple[str, Field]]) -> bool | float | None:
    """What all that is said of one turn comes to."""
    found = [(field, _flag(field, key)) for key, field in said if field.value not in (None, [], {})]
    for second, flag in found[1:]:
        second.require(flag == found[0][1], f"contradicts '{found[0][0].path}'", "Keep one of the two")
    return found[0][1] if found else None


def _flag(field: Field, key: str) -> bool | float:
    unknown = "may say which part of the answer to train on, but not in a way that is read here"
    field.require(key in FLAGS, unknown, _REMEDY)
    value = field.value
    flag = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, bool | int | float) and value in (0, 1):
        flag = bool(value)
    if flag is None and key in WEIGHTS and isinstance(value, int | float) and 0 < value < inf:
        return float(value)
    problem = f"is {shown(value)}, but a turn is trained on, or not, or has a weight above 0"
    field.require(flag is not None, problem, _REMEDY)
    return flag is FLAGS[key]


def _check_others(turns: Field, flags: Sequence[bool | float | None]) -> None:
    """Refuse flags that pick some turns of users to be trained on, or weigh them.

    Where all of them are true, they are a tool's default and mean nothing.
    """
    others = [(turn, flag) for turn, flag in zip(turns.items(), flags, strict=True) if _asks(turn.value)]
    remedy = "Only turns of the assistant can be picked or weighted; remove the flag from the others"
    for turn, flag in others:
        turn.require(flag in (None, True, False), "has a weight", remedy)
    some_are_off = any(flag is False for _, flag in others)
    for turn, flag in others:
        turn.require(not (flag and some_are_off), "is to be trained on, but other turns of users are not", remedy)


def _asks(turn: Any) -> bool:
    return isinstance(turn, dict) and str(turn.get("role") or turn.get("from")).lower() in ("user", "human")
