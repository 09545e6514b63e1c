"""Conversations, and the checks that every text, message and tool of a row passes."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.read.records import Record
from lit_ift.errors import RowError

ROLES: Final = ("system", "user", "assistant", "tool")

PROMPT_ENDS: Final = ("user", "tool")
"""Roles that the assistant answers."""

REPLY_ROLES: Final = ("assistant", "tool")
"""Roles that one reply may consist of: the assistant's turns and what its tools returned in between."""

TRAIN_KEYS: Final = ("weight", "train", "training")
"""Keys by which other tools say whether to train on an assistant turn; here each turn of a target is trained alike."""

MAX_NESTING: Final = 64
"""Levels of objects and lists that a tool call or a tool's declaration may have."""


def parse_messages(record: Record, field: str) -> list[Message]:
    """The column `field` as a list of at least one checked message.

    Raises:
        RowError: it is no such list, or a message has a wrong role, text or tool call.
    """
    turns = record.data[field]
    if not isinstance(turns, list):
        raise wrong_type(record, field, turns, "It must be a list of {role, content} objects")
    if not turns:
        raise RowError(record.origin, field, "is an empty list", "Give it at least one message")
    return [parse_message(record, f"{field}[{index}]", turn) for index, turn in enumerate(turns)]


def parse_message(record: Record, path: str, turn: Any) -> Message:
    """One checked message from a ``{role, content}`` object.

    Raises:
        RowError: as in `parse_messages`; the field is named by `path`.
    """
    if not isinstance(turn, dict):
        raise wrong_type(record, path, turn, "A message must be a {role, content} object")
    role = turn.get("role")
    if role not in ROLES:
        problem = "is missing" if "role" not in turn else f"is {shown(role)}"
        remedy = f"It must be one of {', '.join(ROLES)}{did_you_mean(role, ROLES)}"
        raise RowError(record.origin, f"{path}.role", problem, remedy)
    # Arrow tables give every message every key of any message, None where it was absent.
    extras = {key: value for key, value in turn.items() if value is not None and key not in ("role", "content")}
    for key, value in extras.items():
        check_nested(record, f"{path}.{key}", value)
    check_trained_whole(record, path, role, extras)
    calls = extras.get("tool_calls")
    if calls is not None:
        if calls and role != "assistant":
            raise RowError(record.origin, f"{path}.tool_calls", f"on a {role} turn", "Only the assistant calls tools")
        extras["tool_calls"] = calls = parse_tool_calls(record, f"{path}.tool_calls", calls)
    content = turn.get("content")
    if content is None and calls:
        content = ""
    if "content" not in turn and not calls:
        raise RowError(record.origin, f"{path}.content", "is missing", "Give every message a text")
    return parse_turn(record, f"{path}.content", role, content, extras)


def check_trained_whole(record: Record, path: str, role: str, extras: Mapping[str, Any]) -> None:
    """Do nothing if an assistant turn has no keys whose loss would change what is trained on.

    Raises:
        RowError: the turn is not to be trained on, or to another degree; or it calls a function in the old way.
    """
    if role != "assistant":
        return
    for key in TRAIN_KEYS:
        if (value := extras.get(key)) is not None and value != 1:
            raise RowError(
                record.origin,
                f"{path}.{key}",
                f"is {shown(value)}, but single turns cannot be left out or weighted",
                "Put the turns before the answer to train on into prompt and that into completion, or remove the key "
                "to train on the turn like on the others",
            )
    if extras.get("function_call") is not None:
        raise RowError(record.origin, f"{path}.function_call", "is an old form", "Write it as tool_calls")


def parse_turn(record: Record, path: str, role: str, content: Any, extras: dict[str, Any] | None = None) -> Message:
    """One message with a checked text; only an assistant turn that calls tools may have none.

    Raises:
        RowError: the text is empty, or as in `parse_text`.
    """
    text = parse_text(record, path, content)
    if not text.strip() and not (role == "assistant" and extras and extras.get("tool_calls")):
        raise RowError(record.origin, path, f"the {role} text is empty", "Fill it in or remove the row")
    return cast(Message, {"role": role, "content": text, **(extras or {})})


def parse_text(record: Record, path: str, value: Any) -> str:
    """`value`, if it is a whole and undamaged text.

    Raises:
        RowError: it is no string, holds a null character or half a surrogate pair.
    """
    if not isinstance(value, str):
        raise wrong_type(record, path, value, "It must be a string")
    if "\0" in value:
        raise RowError(record.origin, path, "holds a null character", "Remove it; the text is damaged there")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            record.origin,
            path,
            f"holds half a surrogate pair at character {error.start + 1}",
            "The text was cut inside a character (an emoji, perhaps): mend it",
        ) from error
    return value


def parse_tool_calls(record: Record, path: str, calls: Any) -> list[dict[str, Any]]:
    """Checked tool calls. Arguments that are written as a JSON object become that object, as chat templates expect.

    Raises:
        RowError: `calls` is not a list of objects, or one of them names no function.
    """
    calls = _without_gaps(calls) if record.has_gaps else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(record.origin, path, "is not a list of objects", "Write it as [{...}, ...]")
    return [_tool_call(record, f"{path}[{index}]", call) for index, call in enumerate(calls)]


def _tool_call(record: Record, path: str, call: dict[str, Any]) -> dict[str, Any]:
    nested = call.get("function")
    function, path = (nested, f"{path}.function") if isinstance(nested, dict) else (call, path)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        problem = "is missing" if name is None else f"is {shown(name)}"
        raise RowError(record.origin, f"{path}.name", problem, "Name the function that is called")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        parsed = _json(record, f"{path}.arguments", arguments)
        if isinstance(parsed, dict):
            function = {**function, "arguments": parsed}
    return {**call, "function": function} if isinstance(nested, dict) else function


def parse_tools(record: Record) -> list[dict[str, Any]] | None:
    """The declared functions in the column `tools`: a list of objects, or such a list written as JSON.

    Raises:
        RowError: it is neither, or nested too deeply.
    """
    tools = record.data.get("tools")
    if isinstance(tools, dict | list):
        check_nested(record, "tools", tools)
        tools = _without_gaps(tools) if record.has_gaps else tools
    if isinstance(tools, str):
        # Sets on the hub keep them as JSON, since Arrow gives all objects of a column the same keys.
        tools = _json(record, "tools", parse_text(record, "tools", tools)) if tools.strip() else None
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(
            record.origin, "tools", "is not a list of objects", "Write it as [{...}, ...], or as that in a JSON string"
        )
    return tools


def _without_gaps(value: Any) -> Any:
    """`value` without the keys of its objects that are None."""
    if isinstance(value, dict):
        return {key: _without_gaps(item) for key, item in value.items() if item is not None}
    return [_without_gaps(item) for item in value] if isinstance(value, list) else value


def parse_json(record: Record, path: str, text: str) -> Any:
    """The value that `text` is the JSON of.

    Raises:
        RowError: it is not JSON, or nested too deeply.
    """
    value = _json(record, path, text)
    if value is text:
        raise RowError(record.origin, path, f"is not JSON ({shown(text)})", "Write it as one JSON value")
    return value


def _json(record: Record, path: str, text: str) -> Any:
    """The value that `text` is the JSON of; `text` itself if it is not JSON."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(record, path) from error
    except ValueError:
        return text
    check_nested(record, path, value)
    return value


def check_nested(record: Record, path: str, value: Any) -> None:
    """Do nothing if the objects and lists in `value` are not nested too deeply and its texts are whole.

    Raises:
        RowError: they are nested more than `MAX_NESTING` levels deep, or as in `parse_text`.
    """
    # A stack of its own: recursion would end in a RecursionError on the very rows that this is here to catch.
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            parse_text(record, path, item)
        elif isinstance(item, dict | list):
            if depth > MAX_NESTING:
                raise _too_deep(record, path)
            stack += [(part, depth + 1) for part in (item if isinstance(item, list) else [*item, *item.values()])]


def _too_deep(record: Record, path: str) -> RowError:
    return RowError(
        record.origin, path, f"is nested more than {MAX_NESTING} levels deep", "Flatten it or remove the row"
    )


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
    if not conversation.target_turns:
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


def did_you_mean(value: object, known: Sequence[str] | Mapping[str, object]) -> str:
    """A hint at the known name closest to `value`, to end a sentence with; empty if none is close."""
    close = difflib.get_close_matches(value[:60].lower().strip(), known, n=1) if isinstance(value, str) else []
    return f"; did you mean '{close[0]}'?" if close else ""


def wrong_type(record: Record, path: str, value: Any, remedy: str) -> RowError:
    """The error of a value whose type is wrong."""
    seen = f" ({shown(value)})" if isinstance(value, str | int | float) else ""
    return RowError(record.origin, path, f"is a {type(value).__name__}{seen}", remedy)


def shown(value: Any) -> str:
    """The start of `value` for an error message; the type alone of what has parts, for it may be deep or long."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def prompt_key(conversation: Conversation) -> str:
    """The first user turn, case and white space aside: rows with equal keys ask the same thing."""
    first = next((m for m in conversation.messages if m["role"] == "user"), conversation.messages[0])
    return normalise(first["content"])


def normalise(text: str) -> str:
    """`text` with case folded and every run of white space made one space."""
    return " ".join(text.casefold().split())
