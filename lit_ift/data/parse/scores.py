"""Formats of answers with a score or a thumb: a row to an answer and its worth in [0, 1]."""

import re
from dataclasses import replace
from typing import Final

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.fields import NUMBER, Field, shown
from lit_ift.data.parse.messages import (
    check_opening,
    check_reply,
    parse_alternating,
    parse_turn,
    reply_start,
    with_system,
)
from lit_ift.data.parse.tool_calls import parse_tools
from lit_ift.data.read.record import Record
from lit_ift.data.rows import Row

ScoreRange = tuple[float, float]

UNIT_RANGE: Final[ScoreRange] = (0.0, 1.0)

HELPSTEER2_RANGE: Final[ScoreRange] = (0.0, 4.0)
HELPSTEER2_ATTRIBUTES: Final = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

_ANSWERS: Final = frozenset({"messages", "conversations", "data", "completion", "output", "response"})
"""Columns that end with an answer."""

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
    label, score = Field.of(record, "label"), Field.of(record, "score")
    if label.value is None and score.value is None:
        return Row("instruction", record.origin, {"answer": conversation})
    remedy = "If one of them means nothing, say --columns '{label: null}' or --columns '{score: null}'"
    label.require(label.value is None or score.value is None, "is there, and so is 'score'", remedy)
    start = conversation.num_prompt_messages or reply_start(conversation.messages)
    check_reply(record, conversation.messages[start:], next(iter(_ANSWERS & record.data.keys())))
    sides = {"answer": replace(conversation, num_prompt_messages=start)}
    if score.value is None:
        return Row("unpaired", record.origin, sides, float(_is_good(label)))
    return Row("scored", record.origin, sides, _worth(score, score_range))


def _worth(field: Field, score_range: ScoreRange | None) -> float:
    low, high = score_range or UNIT_RANGE
    score = field.number()
    problem = f"is {score:g}, outside [{low:g}, {high:g}]"
    is_inside = low <= score <= high
    if not is_inside and score_range is None:
        # To skip such rows alone would keep the worst answers, those below 1, as the best.
        raise field.source_error(
            f"{problem}. Declare the range of all scores, such as score_range: [1, 10]. If the column is something "
            "else, say --columns '{score: null}'."
        )
    field.require(is_inside, f"{problem}, the declared score_range", "Correct it or remove the row")
    return (score - low) / (high - low)


def _is_good(field: Field) -> bool:
    """Whether a label says that the answer is good."""
    text = field.value.strip().lower() if isinstance(field.value, str) else ""
    # A column of whole numbers with gaps has become one of floats in many a CSV file.
    value = {"true": True, "false": False}.get(text, float(text) if NUMBER.fullmatch(text) else field.value)
    is_number = isinstance(value, int | float) and value == value
    if is_number and value in (0, 1):
        return bool(value)
    problem, remedy = f"is {shown(field.value)}", "It must be true or 1 for a good answer, false or 0 for a bad one"
    ignored = "If the column is something else, say --columns '{label: null}'"
    if is_number:
        # Skipping such rows alone would keep the rows with 1, though beside other numbers 1 may mean anything.
        as_score = "If it is a score, say --columns '{score: label}'"
        raise field.source_error(f"{problem}. {remedy}. {as_score}. {ignored}.")
    raise field.error(problem, f"{remedy}. {ignored}")


def parse_helpsteer2(record: Record) -> Row:
    """HelpSteer2: the score is ``helpfulness``, 0 to 4; earlier turns stand in the prompt after turn marks."""
    low, high = HELPSTEER2_RANGE
    for name in HELPSTEER2_ATTRIBUTES:
        mark = Field.of(record, name)
        problem = f"is {mark.number():g}, outside [0, 4]"
        mark.require(low <= mark.number() <= high, problem, "Correct it or remove the row")
    field = Field.of(record, "prompt")
    prompt = parse_alternating(field, ["User", *_HELPSTEER2_TURN.split(field.text())])
    remedy = "End it with the user's turn; the answer belongs in response"
    field.require(prompt[-1]["role"] == "user", "ends with the turn of the assistant", remedy)
    prompt = with_system(record, prompt)
    check_opening(record, prompt, "prompt")
    messages = [*prompt, parse_turn(Field.of(record, "response"), "assistant")]
    answer = Conversation(messages, tools=parse_tools(record), num_prompt_messages=len(prompt))
    score = (Field.of(record, "helpfulness").number() - low) / (high - low)
    return Row("scored", record.origin, {"answer": answer}, score)
