"""What happens to rows that are longer than the maximum length."""

from dataclasses import replace
from typing import Literal

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import RowError

Truncation = Literal["right", "left_of_prompt", "drop"]
"""``right`` cuts tokens off the end of each answer. ``left_of_prompt`` first takes them from the start of the prompt,
after the bos_token, as long as one token of it is left, and only the rest from the end. ``drop`` leaves the row out."""


def truncate(row: EncodedRow, *, max_length: int, policy: Truncation, bos_token_id: int | None = None) -> EncodedRow:
    """Fit every side of a row into `max_length` tokens, or refuse the row.

    All sides of a row lose the same tokens of their common prompt. A mere prompt never loses its end, which asks for
    the answer.

    Args:
        row: a row of full length.
        max_length: most tokens a side may have, at least 2.
        policy: what to do with longer ones.
        bos_token_id: a token that stays first where it is first.

    Returns:
        The row itself if it fits, else a shortened one whose examples tell in ``num_cut`` what they lost.

    Raises:
        RowError: the policy drops the row (reason ``too_long``); or a side has no target left, or the chosen and the
            rejected answer differ no longer (``no_target``).
    """
    whole = max(len(example.input_ids) for example in row.sides.values())
    if whole > max_length:
        is_prompt = all(example.num_targets == 0 for example in row.sides.values())
        if policy == "drop" or (policy == "right" and is_prompt):
            raise RowError(
                row.row_id,
                "",
                f"{_what(row, is_prompt)} has {whole} tokens, but max_length={max_length}",
                f"Raise data.max_length to at least {whole}, shorten the row, or set data.truncation to another policy",
                reason="too_long",
            )
        num_left = 0 if policy == "right" else _num_from_prompt(row, whole - max_length, bos_token_id)
        sides = {
            name: _cut(example, num_left, max_length, keeps_first=example.input_ids[0] == bos_token_id)
            for name, example in row.sides.items()
        }
        _check_sides(row, sides, max_length)
        row = replace(row, sides=sides)
    if row.kind == "preference" and row.sides["chosen"].input_ids == row.sides["rejected"].input_ids:
        within = f" within max_length={max_length} tokens" if whole > max_length else ", once they are tokenized"
        raise RowError(
            row.row_id,
            "rejected",
            f"the chosen and the rejected answer are the same{within}",
            "Raise data.max_length, or leave the row out" if whole > max_length else "Leave the row out",
            reason="no_target",
        )
    return row


def _what(row: EncodedRow, is_prompt: bool) -> str:
    if is_prompt:
        return "the prompt, whose end is never cut off,"
    return "the row" if len(row.sides) == 1 else "its longest side"


def _num_from_prompt(row: EncodedRow, excess: int, bos_token_id: int | None) -> int:
    """Tokens to take from the start of all sides, leaving each at least one token before its first target."""
    spare = [_first_target(example) - 1 - (example.input_ids[0] == bos_token_id) for example in row.sides.values()]
    return max(0, min(excess, *spare))


def _first_target(example: Example) -> int:
    """Index of the first target; the length if there is none."""
    return next((k for k, label in enumerate(example.labels) if label != IGNORE_INDEX), len(example.labels))


def _cut(example: Example, num_left: int, max_length: int, *, keeps_first: bool) -> Example:
    first = int(keeps_first)
    ids = example.input_ids[:first] + example.input_ids[first + num_left :]
    labels = example.labels[:first] + example.labels[first + num_left :]
    return replace(
        example,
        input_ids=ids[:max_length],
        labels=labels[:max_length],
        num_cut=num_left + max(0, len(ids) - max_length),
    )


def _check_sides(row: EncodedRow, sides: dict[str, Example], max_length: int) -> None:
    for name, example in sides.items():
        if example.num_targets == 0 and row.sides[name].num_targets > 0:
            first = _first_target(row.sides[name])
            raise RowError(
                row.row_id,
                "" if len(sides) == 1 else name,
                f"no target is left within max_length={max_length} tokens (the first one is token {first + 1} of "
                f"{len(row.sides[name].input_ids)})",
                f"Raise data.max_length to more than {first}, shorten the prompt, or set "
                "data.truncation=left_of_prompt",
                reason="no_target",
            )
