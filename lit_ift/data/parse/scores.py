"""Formats of answers with a score or a thumb: a row to an answer and its worth in [0, 1]."""

import math
import re
from typing import Final

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.parse.instruction import messages_prompt, prompt_alone
from lit_ift.data.parse.messages import (
    check_opening,
    check_reply,
    parse_answer,
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
from lit_ift.errors import RowError

ScoreRange = tuple[float, float]

UNIT_RANGE: Final[ScoreRange] = (0.0, 1.0)

HELPSTEER2_RANGE: Final[ScoreRange] = (0.0, 4.0)
HELPSTEER2_ATTRIBUTES: Final = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

ANSWER_FIELDS: Final = ("messages", "completion", "response")
"""Columns that hold the answer of a scored or labelled row; it has one of them."""

_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_HELPSTEER2_TURN: Final = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


def parse_scored(record: Record, score_range: ScoreRange | None) -> Row:
    """``score`` of the last reply, scaled from `score_range` to [0, 1]."""
    low, high = score_range or UNIT_RANGE
    score = parse_number(record, "score")
    if not low <= score <= high:
        declared = "the declared score_range" if score_range else "the range of scores"
        remedy = (
            "Correct it, or declare the range of all scores, such as score_range: [1, 10]. If the column is something "
            "else, set layout to read the rows without it"
        )
        raise RowError(record.origin, "score", f"is {score:g}, outside [{low:g}, {high:g}], {declared}", remedy)
    return Row("scored", record.origin, {"answer": _judged_reply(record)}, (score - low) / (high - low))


def parse_unpaired(record: Record) -> Row:
    """``label`` of the last reply: true or 1 for a good one, false or 0 for a bad one."""
    return Row("unpaired", record.origin, {"answer": _judged_reply(record)}, float(_label(record)))


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
    answer = _answer(record, with_system(record, turns), reply, "prompt")
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
    text = value.strip().lower() if isinstance(value, str) else None
    if value is True or value is False:
        return value
    if text in ("true", "false"):
        return text == "true"
    if text in ("0", "1"):
        return text == "1"
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    remedy = (
        "It must be true or 1 for a good answer, false or 0 for a bad one. If the column is something else, set layout "
        "to read the rows without it"
    )
    raise RowError(record.origin, "label", f"is {shown(value)}", remedy)


def _judged_reply(record: Record) -> Conversation:
    """The conversation with its last reply as the only target: that is what was judged."""
    answers = [field for field in ANSWER_FIELDS if record.data.get(field) is not None]
    if len(answers) > 1:
        problem = f"holds an answer, and so does '{answers[0]}'"
        raise RowError(record.origin, answers[1], problem, "Keep the column that the score or label is about")
    if answers == ["messages"]:
        turns = messages_prompt(record)
        start = reply_start(turns)
        return _answer(record, turns[:start], turns[start:], "messages")
    field = answers[0]
    return _answer(record, prompt_alone(record), parse_answer(record, field), "prompt", field)


def _answer(
    record: Record, prompt: list[Message], reply: list[Message], prompt_field: str, answer_field: str | None = None
) -> Conversation:
    check_reply(record, reply, answer_field or prompt_field)
    messages = [*prompt, *reply]
    check_opening(record, messages, prompt_field)
    return Conversation(messages, tools=parse_tools(record), num_prompt_messages=len(prompt))
