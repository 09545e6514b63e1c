"""What happens to rows that are longer than the maximum length."""

from dataclasses import replace
from typing import Final, Literal

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import RowError

Truncation = Literal["right", "left_of_prompt", "drop", "split"]
"""``right`` cuts tokens off the end of each answer. ``left_of_prompt`` first takes them from the start of the prompt,
after the bos_token, as long as one token of it is left, and only the rest from the end. ``drop`` leaves the row out.
``split`` cuts a text into consecutive pieces, which lose nothing."""

DEFAULT_OF_TEXTS: Final[Truncation] = "split"
DEFAULT_OF_CONVERSATIONS: Final[Truncation] = "right"


def fitted(
    row: EncodedRow, *, is_text: bool, max_length: int, policy: Truncation | None, bos_token_id: int | None = None
) -> list[EncodedRow]:
    """What of a row is trained on within `max_length` tokens: one row, or the pieces of a text.

    Args:
        row: a row of full length.
        is_text: whether it is a raw text to learn, and no conversation or prompt.
        max_length: most tokens a side may have, at least 2.
        policy: what to do with longer ones; None splits texts and cuts conversations on the right.
        bos_token_id: a token that stays first where it is first.

    Raises:
        RowError: as `truncate`, or the row is longer and the policy does not apply to it (``too_long``).
    """
    chosen = policy or (DEFAULT_OF_TEXTS if is_text else DEFAULT_OF_CONVERSATIONS)
    length = max(len(example.input_ids) for example in row.sides.values())
    if length > max_length and chosen == ("left_of_prompt" if is_text else "split"):
        raise RowError(
            row.row_id,
            "",
            f"has {length} tokens, but max_length={max_length}, and data.truncation={chosen} is not for "
            + ("a text, which has no prompt" if is_text else "conversations, which lose their sense in pieces"),
            f"Leave data.truncation out, which {'splits texts' if is_text else 'cuts off the end of the answer'}, "
            "or set it to another policy",
            reason="too_long",
        )
    if is_text and chosen == "split":
        return pieces(row, max_length)
    return [truncate(row, max_length=max_length, policy=chosen, bos_token_id=bos_token_id)]


def pieces(row: EncodedRow, max_length: int) -> list[EncodedRow]:
    """Cut a text into consecutive pieces, which together have its tokens.

    All have `max_length` tokens but for the last one. The first token of a piece is no target, for nothing in the piece
    predicts it. So the last piece has two tokens at least, unless that would leave the piece before it with one.

    Args:
        row: with a single side.
        max_length: most tokens of a piece, at least 2.
    """
    ((side, whole),) = row.sides.items()
    starts = list(range(0, len(whole.input_ids), max_length))
    if len(starts) > 1 and max_length > 2 and len(whole.input_ids) - starts[-1] == 1:
        starts[-1] -= 1
    if len(starts) == 1:
        return [row]
    ends = [*starts[1:], len(whole.input_ids)]
    made = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        row_id = f"{row.row_id} (piece {number} of {len(starts)})"
        piece = replace(
            whole,
            input_ids=whole.input_ids[start:end],
            labels=[IGNORE_INDEX, *whole.labels[start + 1 : end]],
            row_id=row_id,
            num_lookalikes=whole.num_lookalikes if number == 1 else 0,
        )
        made.append(replace(row, row_id=row_id, sides={side: piece}))
    return made


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
    weights = example.weights and (example.weights[:first] + example.weights[first + num_left :])[:max_length]
    return replace(
        example,
        input_ids=ids[:max_length],
        labels=labels[:max_length],
        weights=weights,
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
