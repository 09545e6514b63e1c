"""Formats of preference pairs: a row to two answers to one prompt, of which one was preferred."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, cast

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.parse.instruction import (
    alpaca_prompt,
    dolly_prompt,
    messages_prompt,
    parse_sharegpt_turn,
    parse_turns,
    prompt_alone,
    sharegpt_prompt,
)
from lit_ift.data.parse.messages import (
    REPLY_ROLES,
    check_opening,
    check_reply,
    parse_answer,
    parse_text,
    parse_tools,
    parse_turn,
    reply_start,
    with_flags,
    with_system,
)
from lit_ift.data.parse.scores import parse_number
from lit_ift.data.read.records import Record
from lit_ift.data.rows import Row
from lit_ift.errors import RowError, UserError

_HH_MARK: Final = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES: Final = {"Human": "user", "Assistant": "assistant"}
_SIDES: Final = ("chosen", "rejected")
_SCORES: Final = ("score_chosen", "score_rejected")

WITH_CHOSEN: Final = (
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
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
    fields = [field for field in (*_SIDES, "gold") if record.data.get(field) is not None]
    prompt, own_answer = _own_turns(record)
    if not prompt:
        prompt, answers = _implicit_prompt(record, fields)
    else:
        answers = {field: _without_prompt(record, field, prompt) for field in fields}
        if own_answer and not _same_turns(own_answer, answers.setdefault("chosen", own_answer)):
            problem = "is not the answer that the row has besides"
            raise RowError(record.origin, "chosen", problem, "Keep one of the two, or mend the row")
        answers = {field: answers[field] for field in (*_SIDES, "gold") if field in answers}
    return _row(record, prompt, answers)


def _own_turns(record: Record) -> tuple[list[Message], list[Message]]:
    """The prompt that stands beside the two answers, and the answer that follows it; empty where there is none."""
    data = record.data
    chosen = data.get("chosen")
    holders = [column for column in _PROMPT_HOLDERS if data.get(column) is not None]
    if "messages" in holders and chosen is not None and len(holders) > 1:
        # UltraFeedback has the chosen conversation once more as messages.
        holders.remove("messages")
    if len(holders) > 1:
        remedy = f"Keep one of the two, or say --columns '{{{holders[1]}: null}}'"
        raise RowError(record.origin, holders[1], f"holds a prompt, and so does '{holders[0]}'", remedy)
    if not holders:
        return [], []
    if holders[0] in ("messages", "conversations"):
        turns = messages_prompt(record) if holders[0] == "messages" else sharegpt_prompt(record)
        start = reply_start(turns)
        if chosen is None:
            check_reply(record, turns[start:], holders[0])
        return turns[:start], turns[start:]
    answers: tuple[str, ...]
    if holders[0] == "prompt":
        prompt, answers = prompt_alone(record), ("completion",)
    elif data.get("context") is None:
        prompt, answers = alpaca_prompt(record), ("output", "response")
    elif not data.get("input"):
        prompt, answers = dolly_prompt(record), ("response", "output")
    else:
        raise RowError(record.origin, "context", "is there, and so is 'input'", "Keep one of the two")
    own = [field for field in answers if data.get(field) is not None]
    return prompt, _answer(record, own[0]) if own else []


def parse_orca(record: Record) -> Row:
    """``question``, ``chosen`` and ``rejected``, all strings, and ``system``, which may be empty."""
    question = with_system(record, [parse_turn(record, "question", "user", record.data["question"])])
    return _row(record, question, {side: [parse_turn(record, side, "assistant", record.data[side])] for side in _SIDES})


def parse_hh(record: Record) -> Row:
    """Transcripts as in HH-RLHF: turns after the marks "Human:" and "Assistant:", each after a blank line.

    With a ``prompt``, that is the start of both transcripts, and the sides may leave it out.
    """
    turns = {side: _transcript(record, side) for side in _SIDES}
    prompts = {side: messages[:-1] for side, messages in turns.items()}
    if prompts["chosen"] != prompts["rejected"]:
        raise _prompts_differ(record, "rejected", "chosen")
    return _row(record, with_system(record, prompts["chosen"]), {side: turns[side][-1:] for side in _SIDES})


def is_hh(record: Record) -> bool:
    """Whether the row begins with a turn mark of HH-RLHF."""
    starts = (record.data.get("prompt"), record.data["chosen"])
    return any(isinstance(start, str) and start.lstrip().startswith("Human:") for start in starts)


def with_two_answers(pair: Row) -> Row:
    """`pair`, if its answers are two.

    Raises:
        RowError: they are the same, white space at the ends of turns aside.
    """
    chosen, rejected = (cast(Conversation, pair.sides[side]).messages for side in ("chosen", "rejected"))
    if len(chosen) == len(rejected) and all(map(_same_turn, chosen, rejected)):
        problem = "is the same answer as 'chosen', so there is nothing to prefer"
        raise RowError(pair.origin, "rejected", problem, "Remove the row, or set layout: chosen to train on one answer")
    return pair


def with_soft_label(record: Record, pair: Row, scale: float) -> Row:
    """`pair` with ``σ((score_chosen - score_rejected) / scale)`` for how likely its chosen answer is the better one.

    Raises:
        RowError: a score is missing, or the row says itself how likely it is.
    """
    if pair.score is not None:
        remedy = "Remove the column, or preference_scale from the source"
        raise RowError(record.origin, "preference", "is there, and preference_scale is set as well", remedy)
    for column in _SCORES:
        if record.data.get(column) is None:
            remedy = "preference_scale takes the label from it: add it, or remove preference_scale from the source"
            raise RowError(record.origin, column, "is missing", remedy)
    chosen, rejected = (parse_number(record, column) for column in _SCORES)
    # `_check_order` has seen to it that the exponent is not above 0.
    return replace(pair, score=1 / (1 + math.exp((rejected - chosen) / scale)))


def chosen_only(pair: Row) -> Row:
    """The chosen answer of a preference row, to train on alone."""
    return Row("instruction", pair.origin, {"answer": pair.sides["chosen"]})


def _implicit_prompt(record: Record, fields: Sequence[str]) -> tuple[list[Message], dict[str, list[Message]]]:
    for field in _SIDES:
        if isinstance(record.data[field], str):
            remedy = "Add a prompt column, or write chosen and rejected as lists of messages that begin with the prompt"
            raise RowError(record.origin, field, "is a string, and there is no prompt column", remedy)
    sides = {field: _answer(record, field) for field in _SIDES}
    chosen, rejected = sides.values()
    # The last reply of each side is never part of the prompt, not even where both are the same.
    most = min(reply_start(chosen), reply_start(rejected))
    shared = 0
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared or any(m["role"] not in REPLY_ROLES for m in (*chosen[shared:], *rejected[shared:])):
        for field, messages in sides.items():
            check_reply(record, messages[reply_start(messages) :], field)
            check_opening(record, messages, field)
        raise _prompts_differ(record, "rejected", "chosen")
    prompt = chosen[:shared]
    answers = {field: messages[shared:] for field, messages in sides.items()}
    for field in fields[len(_SIDES) :]:
        answers[field] = _without_prompt(record, field, prompt)
    return with_system(record, prompt), answers


def _without_prompt(record: Record, field: str, prompt: Sequence[Message]) -> list[Message]:
    """The answer in the column `field`, without the prompt that some data sets repeat there."""
    answer = _answer(record, field)
    if answer[0]["role"] == "assistant":
        return answer
    # The system turn may stand on one of the two only.
    for start in (prompt, prompt[1:] if prompt[0]["role"] == "system" else prompt):
        if len(answer) > len(start) and all(map(_same_turn, answer, start)):
            return answer[len(start) :]
    holder = next((name for name in _PROMPT_HOLDERS if record.data.get(name) is not None), "chosen")
    raise _prompts_differ(record, field, holder)


def _answer(record: Record, field: str) -> list[Message]:
    """The column `field`: a text, a turn, or a list of turns, of {role, content} or {from, value}."""
    value = record.data[field]
    if isinstance(value, dict):
        return with_flags(record, field, [value], parse_sharegpt_turn)
    if isinstance(value, list) and any(isinstance(turn, dict) and turn.get("from") is not None for turn in value):
        return parse_turns(record, field)
    return parse_answer(record, field)


def _same_turns(some: Sequence[Message], others: Sequence[Message]) -> bool:
    return len(some) == len(others) and all(map(_same_turn, some, others))


def _same_turn(one: Message, other: Message) -> bool:
    return {**one, "content": one["content"].strip()} == {**other, "content": other["content"].strip()}


def _prompts_differ(record: Record, field: str, other: str) -> RowError:
    return RowError(
        record.origin,
        field,
        f"does not begin with the same prompt as '{other}'",
        "Both answers of a pair must answer one prompt; mend or remove the row",
    )


def _transcript(record: Record, side: str) -> list[Message]:
    text = parse_text(record, side, record.data[side])
    prompt = record.data.get("prompt")
    if prompt is not None:
        if not parse_text(record, "prompt", prompt).lstrip().startswith("Human:"):
            remedy = "Remove the column if the transcripts hold the prompt"
            raise RowError(record.origin, "prompt", "is not the start of the transcripts", remedy)
        text = text if text.startswith(prompt) else prompt + text
    text = "\n\n" + text.lstrip()
    before, *parts = _HH_MARK.split(text)
    if before.strip():
        remedy = "Begin it with a blank line and 'Human:', or set layout: preference for other strings"
        raise RowError(record.origin, side, "does not begin with the mark of a human turn", remedy)
    turns: list[Message] = []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        if speaker != ("Assistant" if len(turns) % 2 else "Human"):
            remedy = "Turns of Human and Assistant must alternate, beginning with Human; mend or remove the row"
            raise RowError(record.origin, side, f"turn {len(turns) + 1} is again of {speaker}", remedy)
        turns.append(parse_turn(record, side, _HH_ROLES[speaker], words.strip()))
    if not turns or turns[-1]["role"] != "assistant":
        problem = "does not end with an assistant turn"
        raise RowError(record.origin, side, problem, "End it with the assistant's answer", reason="no_target")
    return turns


def _row(record: Record, prompt: list[Message], answers: dict[str, list[Message]]) -> Row:
    tools = parse_tools(record)
    for field, answer in answers.items():
        check_reply(record, answer, field)
    check_opening(record, prompt, "prompt" if record.data.get("prompt") is not None else "chosen")
    sides = {
        field: Conversation([*prompt, *answer], tools=tools, num_prompt_messages=len(prompt))
        for field, answer in answers.items()
    }
    _check_order(record)
    return Row("preference", record.origin, sides, _preference(record))


def _check_order(record: Record) -> None:
    """Refuse a pair whose own scores, which many data sets carry along, say that it is the wrong way round."""
    if any(record.data.get(column) is None for column in _SCORES):
        return
    chosen, rejected = (parse_number(record, column) for column in _SCORES)
    if chosen < rejected:
        problem = f"is {chosen:g}, below score_rejected ({rejected:g}), as if the answers were swapped"
        remedy = "Swap the answers or remove the row. If the scores mean nothing, say --columns "
        remedy += "'{score_chosen: null, score_rejected: null}'"
        raise RowError(record.origin, "score_chosen", problem, remedy)


def _preference(record: Record) -> float | None:
    if record.data.get("preference") is None:
        return None
    likely = parse_number(record, "preference")
    if not 0.0 <= likely <= 1.0:
        # Skipping such rows alone would keep the rows with 1, though beside other numbers 1 may mean anything.
        raise UserError(
            f"{record.origin}: field 'preference' is {likely:g}, but it is how likely the chosen answer is the better "
            "one, from 0.5 to 1. If the column is something else, say --columns '{preference: null}'."
        )
    if likely < 0.5:
        remedy = "Give the probability that chosen is better than rejected; below a half, swap the two"
        raise RowError(record.origin, "preference", f"is {likely:g}, outside [0.5, 1]", remedy)
    return likely
