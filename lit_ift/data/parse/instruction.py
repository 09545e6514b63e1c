"""Formats of one answer: a row to a conversation, or to a mere prompt if it has no answer; and raw texts."""

from typing import Final, NamedTuple

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.parse.fields import Field
from lit_ift.data.parse.messages import check_trainable, parse_column, parse_turn, with_system
from lit_ift.data.parse.tool_calls import parse_tools
from lit_ift.data.read.record import Record
from lit_ift.data.rows import Document, Row


class Format(NamedTuple):
    """Which columns of a format hold what.

    Args:
        prompt: the question, or without `answer` all turns.
        answer: the answer to it.
        context: what follows the question after a blank line.
    """

    prompt: str
    answer: str = ""
    context: str = ""


FORMATS: Final = {
    "messages": Format("messages"),
    "prompt_completion": Format("prompt", "completion"),
    "alpaca": Format("instruction", "output", "input"),
    "dolly": Format("instruction", "response", "context"),
    "sharegpt": Format("conversations"),
    "ultrachat": Format("data"),
}
"""Formats of one answer, by the layouts that have them."""


def parse_conversation(record: Record, columns: Format) -> Conversation:
    """The conversation of a row, with something to train on.

    Every turn of the assistant is a target. But where the answer stands apart, the turns before it are context.

    Raises:
        RowError: a value has the wrong type, or a turn a wrong role, text, tool call or flag.
    """
    prompt = parse_prompt(record, columns)
    answer = parse_column(record, columns.answer) if columns.answer else []
    conversation = Conversation(
        [*prompt, *answer], tools=parse_tools(record), num_prompt_messages=len(prompt) if answer else 0
    )
    return check_trainable(record, conversation, columns.prompt, columns.answer or columns.prompt)


def parse_prompt(record: Record, columns: Format) -> list[Message]:
    """The turns before the answer, behind the one that the column `system` holds.

    Raises:
        RowError: as in `parse_conversation`.
    """
    if columns.prompt == "data":
        return with_system(record, _in_turn(Field.of(record, "data")))
    if columns.prompt != "instruction":
        return with_system(record, parse_column(record, columns.prompt, "user"))
    question = parse_turn(Field.of(record, "instruction"), "user")
    context = Field.of(record, columns.context)
    if context.value is not None and context.text().strip():
        question["content"] += f"\n\n{context.value}"
    return with_system(record, [question])


def _in_turn(field: Field) -> list[Message]:
    """Texts of the user and the assistant in turn, as in stingning/ultrachat."""
    texts = field.of_type(list, "It must be a list of texts, user and assistant in turn")
    field.require(texts, "is an empty list", "Give it a question and an answer")
    return [parse_turn(text, ("user", "assistant")[index % 2]) for index, text in enumerate(field.items())]


def is_ultrachat(record: Record) -> bool:
    """Whether ``data`` is what UltraChat has there, for that is a common name."""
    data = record.data["data"]
    return isinstance(data, list) and all(isinstance(text, str) for text in data)


def parse_document(record: Record) -> Row:
    """``text``: a document for continued pre-training. The loss is on all of it.

    Raises:
        RowError: it is no text, or empty.
    """
    field = Field.of(record, "text")
    text = field.text()
    field.require(text.strip(), "is empty", "Fill it in or remove the row")
    return Row("instruction", record.origin, {"answer": Document(text)})
