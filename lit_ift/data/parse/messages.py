"""Conversations, and the checks that every message of a row passes."""

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from lit_ift.chat.conversation import END_THINK, LOSS, THINK, THINKING_FIELDS, Conversation, Message, split_thinking
from lit_ift.data.parse.content import MEDIA, check_no_media, parse_content
from lit_ift.data.parse.tool_calls import parse_tool_calls, parse_tools
from lit_ift.data.parse.training_flags import FLAGS, take_flags
from lit_ift.data.parse.values import (
    MAX_NESTING,
    check_nested,
    did_you_mean,
    parse_json,
    parse_text,
    shown,
    wrong_type,
)
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError

__all__ = [
    "MAX_NESTING",
    "PROMPT_ENDS",
    "REPLY_ROLES",
    "ROLES",
    "check_nested",
    "check_opening",
    "check_reply",
    "check_trainable",
    "did_you_mean",
    "normalise",
    "parse_answer",
    "parse_json",
    "parse_message",
    "parse_messages",
    "parse_text",
    "parse_tool_calls",
    "parse_tools",
    "parse_turn",
    "prompt_key",
    "reply_start",
    "shown",
    "with_flags",
    "with_system",
    "wrong_type",
]

ROLES: Final = ("system", "user", "assistant", "tool")

OTHER_ROLES: Final = {"developer": "system", "function": "tool"}
"""Other names of roles."""

PROMPT_ENDS: Final = ("user", "tool")
"""Roles that the assistant answers."""

REPLY_ROLES: Final = ("assistant", "tool")
"""Roles that one reply may consist of: the assistant's turns and what its tools returned in between."""


def parse_messages(record: Record, field: str) -> list[Message]:
    """The column `field` as a list of at least one checked message; empty system turns are none.

    Raises:
        RowError: it is no such list, or a message has a wrong role, text, tool call or flag.
    """
    turns = record.data[field]
    if not isinstance(turns, list):
        raise wrong_type(record, field, turns, "It must be a list of {role, content} objects")
    return with_flags(record, field, turns, parse_message)


def with_flags(
    record: Record, field: str, turns: Sequence[Any], parse: Callable[[Record, str, Any], Message]
) -> list[Message]:
    """The turns as messages by `parse`; empty system turns are left out.

    Those that the row gives another weight than 1 say so as ``loss``; false is 0.

    Raises:
        RowError: none is left, a flag is wrong, or as `parse`.
    """
    flags = take_flags(record, field, turns)
    messages = []
    for index, (turn, flag) in enumerate(zip(turns, flags, strict=True)):
        if _is_empty_system(turn):
            continue
        message = parse(record, f"{field}[{index}]", turn)
        messages.append(cast(Message, {**message, LOSS: flag}) if flag not in (None, True) else message)
    if not messages:
        problem = "holds nothing but an empty system turn" if turns else "is an empty list"
        raise RowError(record.origin, field, problem, "Give it at least one message")
    return messages


def _is_empty_system(turn: Any) -> bool:
    if not isinstance(turn, dict):
        return False
    role_key, text_key = ("role", "content") if "role" in turn else ("from", "value")
    if turn.get(role_key) not in ("system", "developer") or text_key not in turn:
        return False
    content = turn[text_key]
    texts = [part.get("text", part) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    said = texts or ["" if content in (None, []) else content]
    return all(isinstance(text, str) and not text.strip() for text in said)


def parse_message(record: Record, path: str, turn: Any, *, text_key: str = "content") -> Message:
    """One checked message from a ``{role, content}`` object.

    Args:
        record: the row.
        path: where the object stands in it, for errors.
        turn: the object.
        text_key: what the row calls the content, for errors.

    Raises:
        RowError: as in `parse_messages`.
    """
    if not isinstance(turn, dict):
        raise wrong_type(record, path, turn, "A message must be a {role, content} object")
    role = turn.get("role")
    if isinstance(role, str):
        role = OTHER_ROLES.get(role, role)
    if role not in ROLES:
        problem = "is missing" if "role" not in turn else f"is {shown(role)}"
        remedy = f"It must be one of {', '.join(ROLES)}{did_you_mean(role, ROLES)}"
        raise RowError(record.origin, f"{path}.role", problem, remedy)
    # Arrow tables give every message every key of any message, None where it was absent.
    extras = {
        key: value
        for key, value in turn.items()
        if value is not None and key not in ("role", "content") and key not in FLAGS
    }
    for key, value in extras.items():
        check_nested(record, f"{path}.{key}", value)
    check_no_media(record, {key: value for key, value in extras.items() if MEDIA.fullmatch(key)}, f"{path}.")
    calls = _calls(record, path, role, extras)
    if calls is not None:
        extras["tool_calls"] = calls
    content = turn.get("content")
    if content is None and calls:
        content = ""
    if "content" not in turn and not calls:
        raise RowError(record.origin, f"{path}.{text_key}", "is missing", "Give every message a text")
    message = parse_turn(record, f"{path}.{text_key}", role, content, extras)
    check_thinking_once(record, path, message)
    return message


def _calls(record: Record, path: str, role: str, extras: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of a turn, those in OpenAI's old form included, which are taken out of `extras`."""
    calls, old = extras.get("tool_calls"), extras.pop("function_call", None)
    name = "tool_calls" if old is None else "function_call"
    if calls and old is not None:
        raise RowError(
            record.origin, f"{path}.{name}", "calls a function, and so does 'tool_calls'", "Keep one of them"
        )
    if (calls or old is not None) and role != "assistant":
        raise RowError(record.origin, f"{path}.{name}", f"on a {role} turn", "Only the assistant calls tools")
    if old is not None:
        calls = [{"type": "function", "function": old}]
    return None if calls is None else parse_tool_calls(record, f"{path}.{name}", calls)


def check_thinking_once(record: Record, path: str, message: Message) -> None:
    """Do nothing if the turn's thinking stands in one place.

    Raises:
        RowError: it stands in its text and in a field of its own, or in two fields that differ.
    """
    if message["role"] != "assistant":
        return
    fields = {key: value for key in THINKING_FIELDS if isinstance(value := message.get(key), str) and value.strip()}
    head, _ = split_thinking(message["content"])
    if fields and THINK in head:
        field = next(iter(fields))
        problem = f"holds thinking, and so does the text (between {THINK} and {END_THINK})"
        raise RowError(record.origin, f"{path}.{field}", problem, "Keep one of the two")
    if len({text.strip() for text in fields.values()}) > 1:
        first, second = list(fields)[:2]
        raise RowError(record.origin, f"{path}.{second}", f"differs from '{first}'", "Keep one of the two")


def parse_turn(record: Record, path: str, role: str, content: Any, extras: dict[str, Any] | None = None) -> Message:
    """One message with a checked text; only an assistant turn that calls tools may have none.

    Raises:
        RowError: the text is empty, or as in `parse_content`.
    """
    text = parse_content(record, path, content)
    if not text.strip() and not (role == "assistant" and extras and extras.get("tool_calls")):
        raise RowError(record.origin, path, f"the {role} text is empty", "Fill it in or remove the row")
    return cast(Message, {"role": role, "content": text, **(extras or {})})


def with_system(record: Record, messages: list[Message]) -> list[Message]:
    """`messages` behind the system turn that the column `system` holds, if it holds one.

    Raises:
        RowError: it is no string, or the messages have another system turn.
    """
    system = record.data.get("system")
    if system is None or not (text := parse_text(record, "system", system)).strip():
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    if messages[0]["content"] == text:
        return messages
    raise RowError(
        record.origin, "system", "is not the system turn that the messages begin with", "Keep one of the two"
    )


def check_trainable(
    record: Record, conversation: Conversation, *, prompt_field: str, answer_field: str
) -> Conversation:
    """`conversation`, if there is something to train on and something before it.

    Raises:
        RowError: there is not.
    """
    # Whether turns that could be trained on are marked as not to be shows where all layouts pass, in the encoder.
    if not any(message["role"] == "assistant" for message in conversation.messages[conversation.num_prompt_messages :]):
        raise RowError(
            record.origin,
            answer_field,
            "has no assistant turn, so there is nothing to train on",
            "Add the assistant's answer or remove the row",
            reason="no_target",
        )
    check_opening(record, conversation.messages, prompt_field)
    return conversation


def check_opening(record: Record, messages: Sequence[Message], field: str) -> None:
    """Do nothing if the assistant is not the first to speak.

    Raises:
        RowError: it is.
    """
    if messages[0]["role"] == "assistant":
        raise RowError(
            record.origin,
            f"{field}[0].role",
            "the conversation opens with the assistant, so its answer has no prompt",
            "Start with a user or system turn",
        )


def parse_answer(record: Record, field: str) -> list[Message]:
    """The answer in the column `field`: a string, or a list of messages.

    Raises:
        RowError: it is neither, or as in `parse_messages`.
    """
    value = record.data[field]
    if isinstance(value, str):
        return [parse_turn(record, field, "assistant", value)]
    if isinstance(value, list):
        return parse_messages(record, field)
    raise wrong_type(record, field, value, "It must be a string or a list of {role, content} objects")


def reply_start(messages: Sequence[Message]) -> int:
    """Index of the first message of the last reply; the number of messages if they do not end with one."""
    start = len(messages)
    while start and messages[start - 1]["role"] in REPLY_ROLES:
        start -= 1
    # What a tool returned belongs to the reply that called it; without such a call it is part of the prompt.
    while start < len(messages) and messages[start]["role"] != "assistant":
        start += 1
    return start


def check_reply(record: Record, reply: Sequence[Message], field: str) -> None:
    """Do nothing if the messages are one reply: turns of the assistant and its tools that end with the assistant's.

    Raises:
        RowError: they are not.
    """
    if not reply or reply[-1]["role"] != "assistant":
        problem = "does not end with an assistant turn"
        raise RowError(record.origin, field, problem, "End it with the assistant's answer", reason="no_target")
    wrong = next((message["role"] for message in reply if message["role"] not in REPLY_ROLES), None)
    if wrong or reply[0]["role"] != "assistant":
        problem = f"has a {wrong or 'tool'} turn inside the answer"
        remedy = "The answer may hold turns of the assistant and its tools only; what precedes it belongs in the prompt"
        raise RowError(record.origin, field, problem, remedy)


def prompt_key(conversation: Conversation) -> str:
    """The first user turn, case and white space aside: rows with equal keys ask the same thing."""
    first = next((m for m in conversation.messages if m["role"] == "user"), conversation.messages[0])
    return normalise(first["content"])


def normalise(text: str) -> str:
    """`text` with case folded and every run of white space made one space."""
    return " ".join(text.casefold().split())
