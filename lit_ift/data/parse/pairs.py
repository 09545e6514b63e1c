"""Formats of preference pairs: a row to two answers to one prompt, of which one was preferred."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, cast

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.parse.fields import Field
from lit_ift.data.parse.instruction import FORMATS, Format, parse_prompt
from lit_ift.data.parse.json_columns import LISTS
from lit_ift.data.parse.messages import (
    REPLY_ROLES,
    check_opening,
    check_reply,
    parse_alternating,
    parse_column,
    parse_turn,
    reply_start,
    with_system,
)
from lit_ift.data.parse.tool_calls import parse_tools
from lit_ift.data.read.record import Record
from lit_ift.data.rows import Row
from lit_ift.errors import RowError

_HH_MARK: Final = re.compile(r"\n\n(Human|Assistant):")
_SIDES: Final = ("chosen", "rejected")
_SCORES: Final = ("score_chosen", "score_rejected")

WITH_CHOSEN: Final = tuple(
    tuple(filter(None, (columns.prompt, columns.answer))) for columns in FORMATS.values() if columns.prompt != "data"
)
"""Columns that hold a prompt and the chosen answer, beside which the rejected one stands alone."""

_PROMPT_HOLDERS: Final = ("prompt", "instruction", "conversations", "messages")

PROMPT_COLUMNS: Final = frozenset({*_PROMPT_HOLDERS, "input", "context"})
"""Columns that may hold the prompt of a pair, or a part of it."""


def parse_preference(record: Record) -> Row:
    """``chosen`` and ``rejected``, after the prompt of any layout or the turns that both begin with.

    Without ``chosen``, the answer of the row itself is the chosen one. ``preference`` says how likely the chosen answer
    is the better one, ``gold`` adds a reference answer.
    """
    columns = [column for column in (*_SIDES, "gold") if record.data.get(column) is not None]
    prompt, own_answer = _own_turns(record)
    if not prompt and "chosen" in columns:
        prompt, answers = _implicit_prompt(record, columns)
    else:
        answers = {column: _without_prompt(record, column, prompt) for column in columns}
        is_same = not own_answer or _same_turns(own_answer, answers.setdefault("chosen", own_answer))
        remedy = "Keep one of the two, or mend the row"
        Field.of(record, "chosen").require(is_same, "is not the answer that the row has besides", remedy)
    return _row(record, prompt, {column: answers[column] for column in (*_SIDES, "gold") if column in answers})


def _own_turns(record: Record) -> tuple[list[Message], list[Message]]:
    """The prompt that stands beside the two answers, and the answer that follows it; empty where there is none."""
    data = record.data
    has_chosen = data.get("chosen") is not None
    holders = [Field.of(record, column) for column in _PROMPT_HOLDERS if data.get(column) is not None]
    if has_chosen and len(holders) > 1 and holders[-1].path == "messages":
        # UltraFeedback has the chosen conversation once more as messages.
        holders.pop()
    if not holders:
        return [], []
    column = holders[0].path
    for other in holders[1:]:
        remedy = f"Keep one of the two, or say --columns '{{{other.path}: null}}'"
        raise other.error(f"holds a prompt, and so does '{column}'", remedy)
    if column in LISTS:
        turns = parse_prompt(record, Format(column))
        start = reply_start(turns)
        if not has_chosen:
            check_reply(record, turns[start:], column)
        return turns[:start], turns[start:]
    context = Field.of(record, "context")
    has_two = column == "instruction" and context.value is not None and data.get("input")
    context.require(not has_two, "is there, and so is 'input'", "Keep one of the two")
    name = "prompt_completion" if column == "prompt" else "alpaca" if context.value is None else "dolly"
    answers = [FORMATS[name].answer, *(("output", "response") if column == "instruction" else ())]
    own = next((answer for answer in answers if data.get(answer) is not None), None)
    return parse_prompt(record, FORMATS[name]), parse_column(record, own) if own else []


def parse_orca(record: Record) -> Row:
    """``question``, ``chosen`` and ``rejected``, all strings, and ``system``, which may be empty."""
    question = with_system(record, [parse_turn(Field.of(record, "question"), "user")])
    return _row(record, question, {side: [parse_turn(Field.of(record, side), "assistant")] for side in _SIDES})


def parse_hh(record: Record) -> Row:
    """Transcripts as in HH-RLHF: turns after the marks "Human:" and "Assistant:", each after a blank line.

    With a ``prompt``, that is the start of both transcripts, and the sides may leave it out.
    """
    turns = {side: _transcript(Field.of(record, side)) for side in _SIDES}
    prompt = turns["chosen"][:-1]
    if prompt != turns["rejected"][:-1]:
        raise _prompts_differ(record, "rejected", "chosen")
    return _row(record, with_system(record, prompt), {side: turns[side][-1:] for side in _SIDES})


def is_hh(record: Record) -> bool:
    """Whether the row begins with a turn mark of HH-RLHF."""
    return _begins_with_human(record.data.get("prompt")) or _begins_with_human(record.data["chosen"])


def _begins_with_human(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:")


def with_two_answers(pair: Row) -> Row:
    """`pair`, if its answers are two.

    Raises:
        RowError: they are the same, white space at the ends of turns aside.
    """
    chosen, rejected = (cast(Conversation, pair.sides[side]).messages for side in _SIDES)
    if _same_turns(chosen, rejected):
        problem = "is the same answer as 'chosen', so there is nothing to prefer"
        raise RowError(pair.origin, "rejected", problem, "Remove the row, or set layout: chosen to train on one answer")
    return pair


def with_soft_label(record: Record, pair: Row, scale: float) -> Row:
    """`pair` with ``σ((score_chosen - score_rejected) / scale)`` for how likely its chosen answer is the better one.

    Raises:
        RowError: a score is missing, or the row says itself how likely it is.
    """
    remedy = "Remove the column, or preference_scale from the source"
    is_hard = pair.score is None
    Field.of(record, "preference").require(is_hard, "is there, and preference_scale is set as well", remedy)
    chosen, rejected = (Field.of(record, column) for column in _SCORES)
    for score in (chosen, rejected):
        remedy = "preference_scale takes the label from it: add it, or remove preference_scale from the source"
        score.require(score.value is not None, "is missing", remedy)
    # `_check_order` has seen to it that the exponent is not above 0.
    return replace(pair, score=1 / (1 + math.exp((rejected.number() - chosen.number()) / scale)))


def chosen_only(pair: Row) -> Row:
    """The chosen answer of a preference row, to train on alone."""
    return Row("instruction", pair.origin, {"answer": pair.sides["chosen"]})


def _implicit_prompt(record: Record, columns: Sequence[str]) -> tuple[list[Message], dict[str, list[Message]]]:
    for column in _SIDES:
        remedy = "Add a prompt column, or write chosen and rejected as lists of messages that begin with the prompt"
        field = Field.of(record, column)
        field.require(not isinstance(field.value, str), "is a string, and there is no prompt column", remedy)
    sides = {column: parse_column(record, column) for column in _SIDES}
    chosen, rejected = sides.values()
    # The last reply of each side is never part of the prompt, not even where both are the same.
    most = min(reply_start(chosen), reply_start(rejected))
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if not shared or any(m["role"] not in REPLY_ROLES for m in (*chosen[shared:], *rejected[shared:])):
        for column, messages in sides.items():
            check_reply(record, messages[reply_start(messages) :], column)
            check_opening(record, messages, column)
        raise _prompts_differ(record, "rejected", "chosen")
    prompt = chosen[:shared]
    answers = {column: messages[shared:] for column, messages in sides.items()}
    others = {column: _without_prompt(record, column, prompt) for column in columns if column not in _SIDES}
    return with_system(record, prompt), answers | others


def _without_prompt(record: Record, column: str, prompt: Sequence[Message]) -> list[Message]:
    """The answer in a column, without the prompt that some data sets repeat there."""
    answer = parse_column(record, column)
    if answer[0]["role"] == "assistant":
        return answer
    # The system turn may stand on one of the two only.
    for start in (prompt, prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt):
        if len(answer) > len(start) and _same_turns(answer[: len(start)], start):
            return answer[len(start) :]
    holder = next((name for name in _PROMPT_HOLDERS if record.data.get(name) is not None), "chosen")
    raise _prompts_differ(record, column, holder)


def _same_turns(some: Sequence[Message], others: Sequence[Message]) -> bool:
    return len(some) == len(others) and all(
        {**one, "content": one["content"].strip()} == {**other, "content": other["content"].strip()}
        for one, other in zip(some, others, strict=True)
    )


def _prompts_differ(record: Record, column: str, other: str) -> RowError:
    remedy = "Both answers of a pair must answer one prompt; mend or remove the row"
    return Field.of(record, column).error(f"does not begin with the same prompt as '{other}'", remedy)


def _transcript(field: Field) -> list[Message]:
    """The turns of one side, from the user's first to the assistant's last."""
    text = field.text()
    prompt = Field.of(field.record, "prompt")
    if prompt.value is not None:
        remedy = "Remove the column if the transcripts hold the prompt"
        is_start = _begins_with_human(prompt.text())
        prompt.require(is_start, "is not the start of the transcripts", remedy)
        text = text if text.startswith(prompt.value) else prompt.value + text
    before, *marked = _HH_MARK.split("\n\n" + text.lstrip())
    remedy = "Begin it with a blank line and 'Human:', or set layout: preference for other strings"
    field.require(not before.strip(), "does not begin with the mark of a human turn", remedy)
    turns = parse_alternating(field, [words.strip() for words in marked])
    check_reply(field.record, turns[-1:], field.path)
    return turns


def _row(record: Record, prompt: list[Message], answers: dict[str, list[Message]]) -> Row:
    tools = parse_tools(record)
    for column, answer in answers.items():
        check_reply(record, answer, column)
    holder = next((name for name in ("prompt", "chosen", *LISTS) if record.data.get(name) is not None), "chosen")
    check_opening(record, [*prompt, *answers["chosen"]], holder)
    sides = {
        column: Conversation([*prompt, *answer], tools=tools, num_prompt_messages=len(prompt))
        for column, answer in answers.items()
    }
    _check_order(record)
    return Row("preference", record.origin, sides, _preference(Field.of(record, "preference")))


def _check_order(record: Record) -> None:
    """Refuse a pair whose own scores, which many data sets carry along, say that it is the wrong way round."""
    scores = [Field.of(record, column) for column in _SCORES]
    if any(score.value is None for score in scores):
        return
    chosen, rejected = (score.number() for score in scores)
    problem = f"is {chosen:g}, below score_rejected ({rejected:g}), as if the answers were swapped"
    remedy = "Swap the answers or remove the row. If the scores mean nothing, say --columns "
    remedy += "'{score_chosen: null, score_rejected: null}'"
    scores[0].require(chosen >= rejected, problem, remedy)


def _preference(field: Field) -> float | None:
    if field.value is None:
        return None
    likely = field.number()
    if not 0.0 <= likely <= 1.0:
        # Skipping such rows alone would keep the rows with 1, though beside other numbers 1 may mean anything.
        raise field.source_error(
            f"is {likely:g}, but it is how likely the chosen answer is the better one, from 0.5 to 1. If the column is "
            "something else, say --columns '{preference: null}'."
        )
    remedy = "Give the probability that chosen is better than rejected; below a half, swap the two"
    field.require(likely >= 0.5, f"is {likely:g}, outside [0.5, 1]", remedy)
    return likely
