"""Formats of instruction data: a row to a conversation, or to a mere prompt if it has no answer."""

from typing import Any, Final

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.parse.messages import (
    check_nested,
    check_trainable,
    did_you_mean,
    parse_answer,
    parse_json,
    parse_message,
    parse_messages,
    parse_text,
    parse_tool_calls,
    parse_tools,
    parse_turn,
    shown,
    with_flags,
    with_system,
    wrong_type,
)
from lit_ift.data.read.records import Record
from lit_ift.errors import RowError

SHAREGPT_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""What ``from`` may be in ShareGPT's format and in that of the tools that use it, and whose turn it is."""


def parse_messages_row(record: Record) -> Conversation:
    """``messages``: every assistant turn is a target."""
    return _conversation(record, messages_prompt(record), "messages")


def messages_prompt(record: Record) -> list[Message]:
    """All turns of ``messages``."""
    return with_system(record, parse_messages(record, "messages"))


def parse_prompt_completion(record: Record) -> Conversation:
    """``prompt`` and ``completion``, each a string or a list of messages; the completion is the target."""
    before, after = prompt_alone(record), parse_answer(record, "completion")
    # An assistant turn inside the prompt is context by definition of this layout.
    conversation = Conversation([*before, *after], tools=parse_tools(record), num_prompt_messages=len(before))
    return check_trainable(record, conversation, prompt_field="prompt", answer_field="completion")


def prompt_alone(record: Record) -> list[Message]:
    """``prompt``, a string or a list of messages."""
    prompt = record.data["prompt"]
    if isinstance(prompt, str):
        turns = [parse_turn(record, "prompt", "user", prompt)]
    elif isinstance(prompt, list):
        turns = parse_messages(record, "prompt")
    else:
        raise wrong_type(record, "prompt", prompt, "It must be a string or a list of {role, content} objects")
    return with_system(record, turns)


def parse_alpaca(record: Record) -> Conversation:
    """``instruction``, ``output`` and perhaps ``input``, which follows the instruction after a blank line."""
    return _question_answer(record, alpaca_prompt(record), "output")


def alpaca_prompt(record: Record) -> list[Message]:
    """The question of an Alpaca row."""
    return _instruction_with(record, "input")


def parse_dolly(record: Record) -> Conversation:
    """``instruction``, ``response`` and perhaps ``context``, which follows the instruction after a blank line."""
    return _question_answer(record, dolly_prompt(record), "response")


def dolly_prompt(record: Record) -> list[Message]:
    """The question of a Dolly row."""
    return _instruction_with(record, "context")


def parse_ultrachat(record: Record) -> Conversation:
    """``data``: texts of the user and the assistant in turn, as in stingning/ultrachat."""
    texts = record.data["data"]
    if not isinstance(texts, list):
        raise wrong_type(record, "data", texts, "It must be a list of texts, user and assistant in turn")
    if not texts:
        raise RowError(record.origin, "data", "is an empty list", "Give it a question and an answer")
    turns = [
        parse_turn(record, f"data[{index}]", "assistant" if index % 2 else "user", text)
        for index, text in enumerate(texts)
    ]
    return _conversation(record, with_system(record, turns), "data")


def is_ultrachat(record: Record) -> bool:
    """Whether ``data`` is what UltraChat has there, for that is a common name."""
    data = record.data["data"]
    return isinstance(data, list) and all(isinstance(text, str) for text in data)


def parse_sharegpt(record: Record) -> Conversation:
    """``conversations``: a list of {from, value}, with optional ``system`` and ``tools``."""
    return _conversation(record, sharegpt_prompt(record), "conversations")


def sharegpt_prompt(record: Record) -> list[Message]:
    """All turns of ``conversations``."""
    return with_system(record, parse_turns(record, "conversations"))


def parse_turns(record: Record, field: str) -> list[Message]:
    """The column `field` as a list of at least one {from, value} or {role, content} object.

    Raises:
        RowError: it is no such list, or a turn has a wrong role, text or tool call.
    """
    turns = record.data[field]
    if not isinstance(turns, list):
        raise wrong_type(record, field, turns, "It must be a list of {from, value} objects")
    return with_flags(record, field, turns, parse_sharegpt_turn)


def parse_sharegpt_turn(record: Record, path: str, turn: Any) -> Message:
    """One turn from a {from, value} or a {role, content} object.

    Raises:
        RowError: it has a wrong role, text or tool call.
    """
    if not isinstance(turn, dict):
        raise wrong_type(record, path, turn, "A turn must be a {from, value} object")
    if turn.get("from") is None and "role" in turn:
        return parse_message(record, path, turn)
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        problem = "is missing" if speaker is None else f"is {shown(speaker)}"
        remedy = f"It must be one of {', '.join(SHAREGPT_ROLES)}{did_you_mean(speaker, SHAREGPT_ROLES)}"
        raise RowError(record.origin, f"{path}.from", problem, remedy)
    if "value" not in turn:
        raise RowError(record.origin, f"{path}.value", "is missing", "Give every turn a text")
    if speaker != "function_call":
        others = {key: value for key, value in turn.items() if key not in ("from", "value")}
        message = {**others, "role": SHAREGPT_ROLES[speaker], "content": turn["value"]}
        return parse_message(record, path, message, text_key="value")
    value = turn["value"]
    if isinstance(value, str):
        value = parse_json(record, f"{path}.value", parse_text(record, f"{path}.value", value))
    else:
        check_nested(record, f"{path}.value", value)
    calls = parse_tool_calls(record, f"{path}.value", value if isinstance(value, list) else [value])
    if not calls:
        raise RowError(record.origin, f"{path}.value", "calls no function", "Name one or remove the turn")
    wrapped = [call if "function" in call else {"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": wrapped}


def _instruction_with(record: Record, context_field: str) -> list[Message]:
    instruction = parse_turn(record, "instruction", "user", record.data["instruction"])["content"]
    context = record.data.get(context_field)
    context = "" if context is None else parse_text(record, context_field, context)
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    return with_system(record, [parse_turn(record, "instruction", "user", question)])


def _question_answer(record: Record, question: list[Message], answer_field: str) -> Conversation:
    answer = parse_turn(record, answer_field, "assistant", record.data[answer_field])
    return Conversation([*question, answer], tools=parse_tools(record))


def _conversation(record: Record, messages: list[Message], field: str) -> Conversation:
    conversation = Conversation(messages, tools=parse_tools(record))
    return check_trainable(record, conversation, prompt_field=field, answer_field=field)
