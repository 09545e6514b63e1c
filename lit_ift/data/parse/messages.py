"""Turns of a conversation, and the checks that all of them pass, whatever the layout."""

from collections.abc import Sequence
from typing import Any, Final, cast

from lit_ift.chat.conversation import END_THINK, LOSS, THINK, THINKING_FIELDS, Conversation, Message, split_thinking
from lit_ift.data.parse.content import MEDIA, check_no_media, parse_content
from lit_ift.data.parse.fields import Field, shown
from lit_ift.data.parse.json_columns import LISTS
from lit_ift.data.parse.tool_calls import as_function, parse_tool_calls
from lit_ift.data.parse.training_flags import FLAGS, take_flags
from lit_ift.data.read.record import Record
from lit_ift.errors import did_you_mean

ROLES: Final = ("system", "user", "assistant", "tool")

ROLE_NAMES: Final = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
"""What ``role`` may be, and whose turn it is."""

SHAREGPT_NAMES: Final = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
}
"""What ``from`` may be in ShareGPT's format and in that of the tools that use it, and whose turn it is."""

PROMPT_ENDS: Final = ("user", "tool")
"""Roles that the assistant answers."""

REPLY_ROLES: Final = ("assistant", "tool")
"""Roles that one reply may consist of: the assistant's turns and what its tools returned in between."""

_KEEP_ONE: Final = "Keep one of the two"


def parse_column(record: Record, column: str, role: str = "assistant") -> list[Message]:
    """The turns that a column holds: a text, a message, or a list of messages; in `LISTS` only the latter.

    Args:
        record: the row.
        column: a column that it has.
        role: whose turn a bare text is.

    Raises:
        RowError: the value is of another type, or a message has a wrong role, text, tool call or flag.
    """
    field = Field.of(record, column)
    value = field.value
    if column in LISTS:
        field.of_type(list, "It must be a list of {role, content} or {from, value} objects")
    elif isinstance(value, str) or _is_text_parts(value):
        return [parse_turn(field, role)]
    elif isinstance(value, dict):
        field = field.holding([value])
    else:
        field.of_type(list, "It must be a string or a list of {role, content} objects")
    return parse_messages(field)


def _is_text_parts(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(part, dict) and {"type", "text"} & part.keys() for part in value)


def parse_messages(field: Field) -> list[Message]:
    """A list as at least one checked message; empty system turns are none.

    Those that the row gives another weight than 1 say so as ``loss``; false is 0.

    Raises:
        RowError: none is left, or a message has a wrong role, text, tool call or flag.
    """
    messages = []
    for turn, flag in zip(field.items(), take_flags(field), strict=True):
        if not _is_empty_system(turn.value):
            message = parse_message(turn)
            messages.append(cast(Message, {**message, LOSS: flag}) if flag not in (None, True) else message)
    problem = "holds nothing but an empty system turn" if field.value else "is an empty list"
    field.require(messages, problem, "Give it at least one message")
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


def parse_message(field: Field) -> Message:
    """One checked message from a {role, content} or a {from, value} object.

    Raises:
        RowError: it has a wrong role, text or tool call.
    """
    turn = field.of_type(dict, "It must be a {role, content} or a {from, value} object")
    keys = {key for key in ("role", "from", "value") if turn.get(key) is not None}
    is_sharegpt = keys >= {"from", "value"} or ("role" not in turn and bool(keys))
    role_key, text_key, names = ("from", "value", SHAREGPT_NAMES) if is_sharegpt else ("role", "content", ROLE_NAMES)
    speaker, content = field.at(role_key), field.at(text_key)
    if not isinstance(speaker.value, str) or speaker.value not in names:
        problem = "is missing" if speaker.value is None else f"is {shown(speaker.value)}"
        raise speaker.error(problem, f"It must be one of {', '.join(names)}.{did_you_mean(speaker.value, names)}")
    if is_sharegpt and speaker.value == "function_call":
        return _calling_turn(content)
    role = names[speaker.value]
    check_no_media(field, MEDIA.fullmatch)
    # Arrow tables give every message every key of any message, None where it was absent.
    no_extras = {"role", "content", role_key, text_key, *FLAGS}
    extras = {key: value for key, value in turn.items() if value is not None and key not in no_extras}
    for key in extras:
        field.at(key).check_nested()
    calls = _calls(field, role, extras)
    if calls is not None:
        extras["tool_calls"] = calls
    content.require(text_key in turn or calls, "is missing", "Give every message a text")
    message = parse_turn(content.holding("") if content.value is None and calls else content, role, extras)
    if role == "assistant":
        _check_thinking_once(field, message)
    return message


def _calling_turn(field: Field) -> Message:
    """ShareGPT's turn that calls functions: one call, or a list of them, as an object or as JSON."""
    field.check_nested()
    calls = field.value
    if isinstance(calls, str):
        calls = field.json_or_text()
        field.require(calls is not field.value, f"is not JSON ({shown(field.value)})", "Write it as one JSON value")
    calls = parse_tool_calls(field.holding(calls if isinstance(calls, list) else [calls]))
    field.require(calls, "calls no function", "Name one or remove the turn")
    wrapped = [call if "function" in call else as_function(call) for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": wrapped}


def _calls(field: Field, role: str, extras: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of a turn, those in OpenAI's old form included, which are taken out of `extras`."""
    old = extras.pop("function_call", None)
    calls = field.at("tool_calls" if old is None else "function_call")
    is_one = old is None or not extras.get("tool_calls")
    calls.require(is_one, "calls a function, and so does 'tool_calls'", "Keep one of them")
    may_call = role == "assistant" or not calls.value
    calls.require(may_call, f"on a {role} turn", "Only the assistant calls tools")
    if old is not None:
        calls = calls.holding([as_function(old)])
    return None if calls.value is None else parse_tool_calls(calls)


def _check_thinking_once(field: Field, message: Message) -> None:
    """Refuse thinking that stands in the text and in a field of its own, or in two fields that differ."""
    thoughts = [field.at(key).holding(value) for key in THINKING_FIELDS if isinstance(value := message.get(key), str)]
    thoughts = [thought for thought in thoughts if thought.value.strip()]
    in_text = THINK in split_thinking(message["content"])[0]
    for thought in thoughts:
        problem = f"holds thinking, and so does the text (between {THINK} and {END_THINK})"
        thought.require(not in_text, problem, _KEEP_ONE)
        is_same = thought.value.strip() == thoughts[0].value.strip()
        thought.require(is_same, f"differs from '{thoughts[0].path.rpartition('.')[2]}'", _KEEP_ONE)


def parse_turn(field: Field, role: str, extras: dict[str, Any] | None = None) -> Message:
    """One message with a checked text; only an assistant turn that calls tools may have none.

    Raises:
        RowError: the text is empty, or as in `parse_content`.
    """
    text = parse_content(field)
    calls = role == "assistant" and extras and extras.get("tool_calls")
    field.require(calls or text.strip(), f"the {role} text is empty", "Fill it in or remove the row")
    return cast(Message, {"role": role, "content": text, **(extras or {})})


def parse_alternating(field: Field, marked: Sequence[str]) -> list[Message]:
    """Turns that a text marks: of the user and the assistant in turn.

    Args:
        field: the text.
        marked: name of the speaker and what is said, by turns.

    Raises:
        RowError: two turns in a row are of one speaker, or a turn is empty.
    """
    turns: list[Message] = []
    for speaker, words in zip(marked[::2], marked[1::2], strict=True):
        role = "assistant" if len(turns) % 2 else "user"
        remedy = "Turns of the user and the assistant must alternate, the user's first; mend or remove the row"
        field.require(SHAREGPT_NAMES[speaker.lower()] == role, f"turn {len(turns) + 1} is again of {speaker}", remedy)
        turns.append(parse_turn(field.holding(words), role))
    return turns


def with_system(record: Record, messages: list[Message]) -> list[Message]:
    """`messages` behind the system turn that the column `system` holds, if it holds one.

    Raises:
        RowError: it is no string, or the messages have another system turn.
    """
    system = Field.of(record, "system")
    text = "" if system.value is None else system.text()
    if not text.strip():
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    is_same = messages[0]["content"] == text
    system.require(is_same, "is not the system turn that the messages begin with", _KEEP_ONE)
    return messages


def check_trainable(record: Record, conversation: Conversation, prompt: str, answer: str) -> Conversation:
    """`conversation`, if there is something to train on and something before it.

    Args:
        record: the row.
        conversation: its turns.
        prompt: the column with the first turn.
        answer: the column with the last turn.

    Raises:
        RowError: there is not.
    """
    # Whether turns that could be trained on are marked as not to be shows where all layouts pass, in the encoder.
    has_answer = any(m["role"] == "assistant" for m in conversation.messages[conversation.num_prompt_messages :])
    problem, remedy = "has no assistant turn to train on", "Add the assistant's answer or remove the row"
    Field.of(record, answer).require(has_answer, problem, remedy, "no_target")
    check_opening(record, conversation.messages, prompt)
    return conversation


def check_opening(record: Record, messages: Sequence[Message], column: str) -> None:
    """Do nothing if the assistant is not the first to speak.

    Raises:
        RowError: it is.
    """
    problem = "the conversation opens with the assistant, so its answer has no prompt"
    opening = Field(record, f"{column}[0].role", None)
    opening.require(messages[0]["role"] != "assistant", problem, "Start with a user or system turn")


def reply_start(messages: Sequence[Message]) -> int:
    """Index of the first message of the last reply; the number of messages if they do not end with one."""
    start = len(messages)
    while start and messages[start - 1]["role"] in REPLY_ROLES:
        start -= 1
    # What a tool returned belongs to the reply that called it; without such a call it is part of the prompt.
    while start < len(messages) and messages[start]["role"] != "assistant":
        start += 1
    return start


def check_reply(record: Record, reply: Sequence[Message], column: str) -> None:
    """Do nothing if the messages are one reply: turns of the assistant and its tools that end with the assistant's.

    Raises:
        RowError: they are not.
    """
    field = Field.of(record, column)
    ends = bool(reply) and reply[-1]["role"] == "assistant"
    field.require(ends, "does not end with an assistant turn", "End it with the assistant's answer", "no_target")
    wrong = next((message["role"] for message in reply if message["role"] not in REPLY_ROLES), "")
    remedy = "The answer may hold turns of the assistant and its tools only; what precedes it belongs in the prompt"
    is_whole = not wrong and reply[0]["role"] == "assistant"
    field.require(is_whole, f"has a {wrong or 'tool'} turn inside the answer", remedy)


def prompt_key(conversation: Conversation) -> str:
    """The first user turn, case and white space aside: rows with equal keys ask the same thing."""
    first = next((m for m in conversation.messages if m["role"] == "user"), conversation.messages[0])
    return normalise(first["content"])


def normalise(text: str) -> str:
    """`text` with case folded and every run of white space made one space."""
    return " ".join(text.casefold().split())
