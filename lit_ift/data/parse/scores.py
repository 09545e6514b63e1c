"""Formats of answers with a score or a thumb: a row to an answer and its worth in [0, 1]."""

import math
import re
from dataclasses import replace
from typing import Final

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.messages import (
    check_opening,
    check_reply,
    parse_text,
    parse_tools,
    parse_turn,
    reply_start,
    shown,
    with_system,
    wrong_type,
)
from lit_ift.data.read.records import Record
from lit_ift.data.rows import Row
from lit_ift.errors import RowError, UserError

ScoreRange = tuple[float, float]

UNIT_RANGE: Final[ScoreRange] = (0.0, 1.0)

HELPSTEER2_RANGE: Final[ScoreRange] = (0.0, 4.0)
HELPSTEER2_ATTRIBUTES: Final = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

_ANSWERS: Final = frozenset({"messages", "conversations", "data", "output", "response"})
"""Columns that end with an answer."""

_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_HELPSTEER2_TURN: Final = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


def judged(record: Record, conversation: Conversation, score_range: ScoreRange | None) -> Row:
    """The row of a conversation: unpaired with a ``label`` of its last reply, scored with a ``score`` of it.

    Args:
        record: the row as it was read.
        conversation: its turns. What was judged is the last reply; where a prompt stands apart, it is all that follows.
        score_range: lowest and highest score, which are scaled to [0, 1].

    Raises:
        RowError: the value is none, there are both, or the conversation does not end with one reply.
        UserError: scores lie outside [0, 1] and `score_range` does not say where they do; or a label is a number that
            is none.
    """
    marks = [column for column in ("label", "score") if record.data.get(column) is not None]
    if not marks:
        return Row("instruction", record.origin, {"answer": conversation})
    if len(marks) > 1:
        remedy = "If one of them means nothing, say --columns '{label: null}' or --columns '{score: null}'"
        raise RowError(record.origin, "label", "is there, and so is 'score'", remedy)
    messages = conversation.messages
    start = conversation.num_prompt_messages or reply_start(messages)
    answer = "completion" if conversation.num_prompt_messages else next(iter(_ANSWERS & record.data.keys()))
    check_reply(record, messages[start:], answer)
    sides = {"answer": replace(conversation, num_prompt_messages=start)}
    if marks == ["label"]:
        return Row("unpaired", record.origin, sides, float(_label(record)))
    return Row("scored", record.origin, sides, _score(record, score_range))


def _score(record: Record, score_range: ScoreRange | None) -> float:
    low, high = score_range or UNIT_RANGE
    score = parse_number(record, "score")
    if low <= score <= high:
        return (score - low) / (high - low)
    problem = f"is {score:g}, outside [{low:g}, {high:g}]"
    if score_range:
        raise RowError(record.origin, "score", f"{problem}, the declared score_range", "Correct it or remove the row")
    # To skip such rows alone would keep the worst answers, those below 1, as the best.
    raise UserError(
        f"{record.origin}: field 'score' {problem}. Declare the range of all scores, such as score_range: [1, 10]. If "
        "the column is something else, say --columns '{score: null}'."
    )


def parse_helpsteer2(record: Record) -> Row:
    """HelpSteer2: the score is ``helpfulness``, 0 to 4; earlier turns stand in the prompt after turn marks."""
    low, high = HELPSTEER2_RANGE
    marks = {name: parse_number(record, name) for name in HELPSTEER2_ATTRIBUTES}
    for name, mark in marks.items():
        if not low <= mark <= high:
            raise RowError(record.origin, name, f"is {mark:g}, outside [0, 4]", "Correct it or remove the row")
    prompt = parse_text(record, "prompt", record.data["prompt"])
    first, *rest = _HELPSTEER2_TURN.split(prompt)
    turns = [parse_turn(record, "prompt", "user", first)]
    for speaker, text in zip(rest[::2], rest[1::2], strict=True):
        role = speaker.lower()
        if role == turns[-1]["role"]:
            raise RowError(record.origin, "prompt", f"has two {role} turns in a row", "Mend the marks of its turns")
        turns.append(parse_turn(record, "prompt", role, text))
    if turns[-1]["role"] != "user":
        remedy = "End it with the user's turn; the answer belongs in response"
        raise RowError(record.origin, "prompt", "ends with the turn of the assistant", remedy)
    reply = [parse_turn(record, "response", "assistant", record.data["response"])]
    messages = [*with_system(record, turns), *reply]
    check_opening(record, messages, "prompt")
    answer = Conversation(messages, tools=parse_tools(record), num_prompt_messages=len(messages) - 1)
    return Row("scored", record.origin, {"answer": answer}, (marks["helpfulness"] - low) / (high - low))


def parse_number(record: Record, field: str) -> float:
    """The finite number in the column `field`; a string that is exactly a number counts, since CSV has no other.

    Raises:
        RowError: it is anything else, or the column is empty.
    """
    value = record.data.get(field)
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value.strip()):
            raise wrong_type(record, field, value, "It must be a number")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(record, field, value, "It must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError(record.origin, field, f"is {number}", "It must be a finite number")
    return number


def _label(record: Record) -> bool:
    value = record.data.get("label")
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in ("true", "false"):
        return text == "true"
    # A column of whole numbers with gaps has become one of floats in many a CSV file.
    number = float(text) if _NUMBER.fullmatch(text) else value
    if isinstance(number, bool | int | float) and number in (0, 1):
        return number == 1
    remedy = "It must be true or 1 for a good answer, false or 0 for a bad one"
    ignored = "If the column is something else, say --columns '{label: null}'"
    if isinstance(number, int | float) and number == number:
        # Skipping such rows alone would keep the rows with 1, though beside other numbers 1 may mean anything.
        raise UserError(
            f"{record.origin}: field 'label' is {shown(value)}. {remedy}. If it is a score, say --columns "
            f"'{{score: label}}'. {ignored}."
        )
    raise RowError(record.origin, "label", f"is {shown(value)}", f"{remedy}. {ignored}")
