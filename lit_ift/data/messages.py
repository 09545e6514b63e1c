"""Rows of any known layout to typed, checked conversations."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NotRequired, TypedDict, cast

from lit_ift.data.records import Record
from lit_ift.errors import RowError, UserError

ROLES: Final = ("system", "user", "assistant", "tool")

PROMPT_ENDS: Final = ("user", "tool")
"""Roles that the assistant answers."""


class Message(TypedDict):
    """One turn. Keys that are not listed here reach the chat template as they are; those set to None are dropped."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation, with at least one assistant turn to train on unless it is a mere prompt.

    Args:
        messages: the turns, in order; the first one is never the assistant's.
        tools: declarations of the functions the assistant may call, as the chat template takes them.
        num_prompt_messages: assistant turns before this index are context, not targets.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None
    num_prompt_messages: int = 0

    @property
    def target_turns(self) -> list[int]:
        """Indices of the assistant turns that are trained on."""
        first = self.num_prompt_messages
        return [i for i, m in enumerate(self.messages) if i >= first and m["role"] == "assistant"]

    @property
    def is_prompt(self) -> bool:
        """Whether all of it is for the model to answer, and nothing to train on."""
        return self.num_prompt_messages == len(self.messages)


@dataclass(frozen=True)
class Layout:
    """How a data format is recognised and read.

    Args:
        required: columns that must be there and not null.
        parse: from a row that has them to a conversation; checks every field it uses.
        parse_prompt: from a row without an answer to the messages to answer; None if such rows are not taken.
        prompt_required: those of `required` that a row without an answer has; all of them if the answer is a turn
            among others.
    """

    required: tuple[str, ...]
    parse: Callable[[Record], Conversation]
    parse_prompt: Callable[[Record], list[Message]] | None = None
    prompt_required: tuple[str, ...] = ()


def to_messages(record: Record, *, layout: str | None = None, needs_answer: bool = True) -> Conversation:
    """Turn a row into a conversation.

    Args:
        record: the row.
        layout: a key of `LAYOUTS`; None recognises the layout by the columns.
        needs_answer: refuse rows that do not end with an assistant turn; otherwise they become mere prompts.

    Raises:
        RowError: no layout or more than one fits, or a field has the wrong type or value.
        UserError: `layout` is not a known name.
    """
    chosen = detect_layout(record, needs_answer=needs_answer) if layout is None else layout
    check_layout(chosen)
    if not needs_answer:
        prompt = _parse_prompt(record, LAYOUTS[chosen])
        if prompt is not None:
            return prompt
    for field in LAYOUTS[chosen].required:
        if record.data.get(field) is None:
            raise RowError(
                record.origin,
                field,
                f"missing, but layout '{chosen}' needs it (columns: {_columns(record)})",
                _near_misses(record) or "Add the column or choose another layout",
            )
    return LAYOUTS[chosen].parse(record)


def _parse_prompt(record: Record, layout: Layout) -> Conversation | None:
    """The row as a mere prompt; None if it has an answer, or too few columns for a prompt."""
    present = {name for name, value in record.data.items() if value is not None}
    if layout.parse_prompt is None or not present.issuperset(layout.prompt_required):
        return None
    answer_apart = layout.prompt_required != layout.required
    if answer_apart and present.issuperset(layout.required):
        return None
    messages = layout.parse_prompt(record)
    role = messages[-1]["role"]
    if role not in PROMPT_ENDS:
        if not answer_apart:
            return None
        raise RowError(
            record.origin,
            layout.prompt_required[0],
            f"has no answer and ends with the turn of the {role}, so there is nothing for the model to answer",
            "End it with a user or tool turn, or add the assistant's answer",
        )
    _check_opening(record, messages, layout.prompt_required[0])
    return Conversation(messages, tools=_tools(record), num_prompt_messages=len(messages))


def check_layout(layout: str) -> None:
    """Do nothing if `layout` is a key of `LAYOUTS`.

    Raises:
        UserError: it is not.
    """
    if layout not in LAYOUTS:
        close = difflib.get_close_matches(layout, LAYOUTS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"layout={layout!r} is not known.{hint} Known layouts: {_known_layouts()}.")


def detect_layout(record: Record, *, needs_answer: bool = True) -> str:
    """Name of the one layout whose required columns the row has.

    Without `needs_answer`, a row that fits none is taken for a prompt and may lack the answer's columns.

    Raises:
        RowError: none fits, or more than one.
    """
    present = {name for name, value in record.data.items() if value is not None}
    fitting = [name for name, layout in LAYOUTS.items() if present.issuperset(layout.required)]
    if not fitting and not needs_answer:
        fitting = [
            name
            for name, layout in LAYOUTS.items()
            if layout.parse_prompt is not None and present.issuperset(layout.prompt_required)
        ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RowError(
            record.origin,
            "",
            f"columns {_columns(record)} fit several layouts: {', '.join(fitting)}",
            "Set layout to the one to use",
        )
    remedy = _near_misses(record) or f"Rename the columns to one of: {_known_layouts()}"
    raise RowError(record.origin, "", f"columns {_columns(record)} fit no known layout", remedy)


def _columns(record: Record) -> str:
    return ", ".join(f"'{name}'" for name in record.data) or "(none)"


def _known_layouts() -> str:
    return "; ".join(f"{name} ({', '.join(layout.required)})" for name, layout in LAYOUTS.items())


def _near_misses(record: Record) -> str:
    """Spelling suggestions for columns that nearly have a known name; empty if there are none."""
    known = {field for layout in LAYOUTS.values() for field in layout.required}
    hints = []
    for column in record.data:
        if column in known:
            continue
        close = difflib.get_close_matches(column.lower().strip(), known, n=1, cutoff=0.75)
        hints += [f"'{column}' should be '{match}'" for match in close]
    return f"Perhaps {', '.join(hints)}" if hints else ""


def _from_messages(record: Record) -> Conversation:
    messages = _messages(record, "messages")
    return _checked(record, Conversation(messages, tools=_tools(record)), answer_field="messages")


def _messages_prompt(record: Record) -> list[Message]:
    return _messages(record, "messages")


def _from_prompt_completion(record: Record) -> Conversation:
    prompt, completion = record.data["prompt"], record.data["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        turns = [_turn(record, "prompt", "user", prompt), _turn(record, "completion", "assistant", completion)]
        return _checked(record, Conversation(turns, tools=_tools(record), num_prompt_messages=1), "completion")
    for field, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, list):
            raise RowError(
                record.origin,
                field,
                f"is a {type(value).__name__}",
                "prompt and completion must both be strings, or both be lists of messages",
            )
    before, after = _messages(record, "prompt"), _messages(record, "completion")
    # An assistant turn inside the prompt is context by definition of this layout.
    conversation = Conversation([*before, *after], tools=_tools(record), num_prompt_messages=len(before))
    return _checked(record, conversation, answer_field="completion")


def _prompt_alone(record: Record) -> list[Message]:
    prompt = record.data["prompt"]
    if isinstance(prompt, str):
        return [_turn(record, "prompt", "user", prompt)]
    return _messages(record, "prompt")


def _alpaca_prompt(record: Record) -> list[Message]:
    instruction = _text(record, "instruction", record.data["instruction"])
    context = _text(record, "input", record.data.get("input") or "")
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    return [_turn(record, "instruction", "user", question)]


def _from_alpaca(record: Record) -> Conversation:
    turns = [*_alpaca_prompt(record), _turn(record, "output", "assistant", record.data["output"])]
    return _checked(record, Conversation(turns), answer_field="output")


LAYOUTS: Final[dict[str, Layout]] = {
    "messages": Layout(("messages",), _from_messages, _messages_prompt, ("messages",)),
    "prompt_completion": Layout(("prompt", "completion"), _from_prompt_completion, _prompt_alone, ("prompt",)),
    "alpaca": Layout(("instruction", "output"), _from_alpaca, _alpaca_prompt, ("instruction",)),
}
"""Known layouts. A new data format is one function and one entry here; a second function lets predict take prompts."""


def _messages(record: Record, field: str) -> list[Message]:
    turns = record.data[field]
    if not isinstance(turns, list):
        raise RowError(
            record.origin, field, f"is a {type(turns).__name__}", "It must be a list of {role, content} objects"
        )
    if not turns:
        raise RowError(record.origin, field, "is an empty list", "Give it at least one message")
    return [_message(record, f"{field}[{index}]", turn) for index, turn in enumerate(turns)]


def _message(record: Record, path: str, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise RowError(record.origin, path, f"is a {type(turn).__name__}", "A message must be a {role, content} object")
    role = turn.get("role")
    if role not in ROLES:
        problem = "is missing" if "role" not in turn else f"is {role!r}"
        close = difflib.get_close_matches(str(role).lower(), ROLES, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise RowError(record.origin, f"{path}.role", problem, f"It must be one of {', '.join(ROLES)}{hint}")
    # Arrow tables give every message every key of any message, None where it was absent.
    extras = {key: value for key, value in turn.items() if value is not None and key not in ("role", "content")}
    calls = extras.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise RowError(record.origin, f"{path}.tool_calls", "is not a list of objects", "Write it as [{...}, ...]")
        if calls and role != "assistant":
            raise RowError(record.origin, f"{path}.tool_calls", f"on a {role} turn", "Only the assistant calls tools")
    content = turn.get("content")
    if content is None and calls:
        content = ""
    if "content" not in turn and not calls:
        raise RowError(record.origin, f"{path}.content", "is missing", "Give every message a text")
    return _turn(record, f"{path}.content", role, content, extras)


def _turn(record: Record, path: str, role: str, content: Any, extras: dict[str, Any] | None = None) -> Message:
    text = _text(record, path, content)
    if not text.strip() and not (role == "assistant" and extras and extras.get("tool_calls")):
        raise RowError(record.origin, path, f"the {role} text is empty", "Fill it in or remove the row")
    return cast(Message, {"role": role, "content": text, **(extras or {})})


def _text(record: Record, path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(record.origin, path, f"is a {type(value).__name__} ({value!r:.60})", "It must be a string")
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


def _tools(record: Record) -> list[dict[str, Any]] | None:
    tools = record.data.get("tools")
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(record.origin, "tools", "is not a list of objects", "Write it as [{...}, ...]")
    return tools


def _checked(record: Record, conversation: Conversation, answer_field: str) -> Conversation:
    """The conversation, if there is something to train on and something before it."""
    if not conversation.target_turns:
        raise RowError(
            record.origin,
            answer_field,
            "has no assistant turn, so there is nothing to train on",
            "Add the assistant's answer or remove the row",
        )
    _check_opening(record, conversation.messages, "messages" if answer_field == "messages" else "prompt")
    return conversation


def _check_opening(record: Record, messages: Sequence[Message], field: str) -> None:
    if messages[0]["role"] == "assistant":
        raise RowError(
            record.origin,
            f"{field}[0].role",
            "the conversation opens with the assistant, so its answer has no prompt",
            "Start with a user or system turn",
        )


def prompt_key(conversation: Conversation) -> str:
    """The first user turn, case and white space aside: rows with equal keys ask the same thing."""
    first = next((m for m in conversation.messages if m["role"] == "user"), conversation.messages[0])
    return normalise(first["content"])


def normalise(text: str) -> str:
    """`text` with case folded and every run of white space made one space."""
    return " ".join(text.casefold().split())
