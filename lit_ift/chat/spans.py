"""Which characters of a rendered conversation the assistant wrote, found in two independent ways.

A turn's span goes from the end of its header through its end-of-turn mark and holds whatever the template writes in
between, such as thinking blocks and tool calls. What the generation prompt writes is prompt. So is a ``<think>`` that
it pre-fills, if the turn begins with it; a turn that lacks the pre-filled part (templates drop the thinking of earlier
turns) starts after what it has in common with the generation prompt. White space after the mark is not trained.

1. *Marker rendering*: every text is rendered between marks of its own, made of private-use characters. Where they
   come out is where the text stands, whatever it repeats or imitates; header and mark are what the template writes
   around stand-in messages.
2. *Generation blocks* where the template has them, else *prefix rendering*: the messages before a turn with the
   generation prompt, and those through the turn, are prefixes of the whole. Where the template rewrites earlier turns,
   a stand-in takes the place of the answer or of the message after it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_ift.chat.control_tokens import strings_in
from lit_ift.chat.conversation import END_THINK, THINK, THINKING_FIELDS, Conversation, Message, split_thinking
from lit_ift.chat.frames import STAND_IN, Frames, TurnKind
from lit_ift.chat.marks import ARGUMENT, TEXT, THINKING, Marks, marked
from lit_ift.chat.templates import ChatTemplate, Span
from lit_ift.errors import RowError


@dataclass(frozen=True)
class Location:
    """Where turns of a rendered conversation are that are trained or, where all else is trained, are not.

    Args:
        text: the rendering.
        marked: the same with marks.
        by_marks: for each located turn its characters, from marker rendering.
        confirmed: the same from the second method.
        untrained: the texts of the turns of others that are not to be trained on.
        num_dropped_thoughts: earlier turns whose thinking the template leaves out.
    """

    text: str
    marked: str
    by_marks: list[Span]
    confirmed: list[Span]
    untrained: list[Span]
    num_dropped_thoughts: int = 0


def locate(conversation: Conversation, template: ChatTemplate, origin: str) -> Location:
    """Render a conversation and find its target turns in both ways.

    Raises:
        RowError: the template refuses the row, or drops or changes a text; or one of the ways does not apply.
    """
    messages, tools = conversation.messages, conversation.tools
    is_prompt, turns = conversation.is_prompt, conversation.located_turns
    text = template.render(messages, tools, add_generation_prompt=is_prompt, origin=origin)
    with_marks = template.render(
        [marked(message, index) for index, message in enumerate(messages)],
        tools,
        add_generation_prompt=is_prompt,
        origin=origin,
    )
    marks = Marks(with_marks)
    if marks.text != text:
        raise _unconfirmed(
            origin,
            "messages",
            "the chat template renders it differently when its texts are marked, so they cannot be found in the "
            f"rendering: {_difference(text, marks.text)}",
        )
    num_dropped = _check_shown(conversation, marks, origin)
    spans = [_span_by_marks(conversation, template, marks, turn, origin) for turn in turns]
    for (start, end), turn in zip(spans, turns, strict=True):
        for call in messages[turn].get("tool_calls", ()):
            _check_named(call, text[start:end], origin, f"messages[{turn}].tool_calls")
    for tool in tools or ():
        _check_named(tool, text, origin, "tools")
    # Some templates (DeepSeek-V3) show calls but no declarations: a set for them tells of its tools in the text.
    has_calls = any(message.get("tool_calls") for message in messages)
    if tools and not has_calls and template.render(messages, add_generation_prompt=is_prompt, origin=origin) == text:
        raise _hides_tools(origin, "tools", "the chat template does not show the declared functions")
    if template.has_generation_blocks and spans:
        confirmed = _spans_by_blocks(conversation, template, text, origin)
    else:
        confirmed = [
            _span_by_prefixes(conversation, template, text, turn, origin) for turn in conversation.located_turns
        ]
    others = [i for i in sorted(conversation.untrained) if messages[i]["role"] != "assistant" and i in marks.first]
    untrained = [(marks.first[i], marks.last[i]) for i in others]
    return Location(text, with_marks, spans, confirmed, untrained, num_dropped)


def _check_shown(conversation: Conversation, marks: Marks, origin: str) -> int:
    """Every text must come out whole, but for the thinking of earlier turns; the number of those that lose it."""
    num_dropped = 0
    for index, message in enumerate(conversation.messages):
        role, content = message["role"], message["content"]
        wanted = [content.strip()]
        thinking: list[str] = []
        if role == "assistant":
            head, answer = split_thinking(content)
            inside = head.removesuffix(END_THINK).strip()
            is_thinking = inside.startswith(THINK)
            wanted = [answer.strip()] if is_thinking or not head else [inside, answer.strip()]
            thinking = [inside.removeprefix(THINK).strip()] if is_thinking else []
        wanted = [text for text in wanted if text]
        shown = marks.spans(index, TEXT)
        found = None if shown is None else [marks.text[start:end] for start, end in shown]
        if role in ("user", "assistant"):
            # A system or tool turn may be written as JSON or edited; and some templates show a text twice.
            good = found == wanted or (role == "user" and found is not None and bool(found) and {*found} == {*wanted})
        else:
            good = bool(found) or not wanted
        if not good:
            raise _template_error(
                origin,
                f"messages[{index}].content",
                f"the chat template changes or drops the {role}'s text: it makes {_excerpt(found)} of "
                f"{_excerpt(wanted)}",
            )
        fields = [message.get(key) for key in THINKING_FIELDS] if len(message) > 2 else []
        thinking += [text.strip() for text in fields if isinstance(text, str) and text.strip()]
        if role == "assistant":
            blocks = marks.spans(index, THINKING)
            num_dropped += bool(thinking) and not blocks
            if thinking and not blocks and index == len(conversation.messages) - 1:
                raise _template_error(
                    origin,
                    f"messages[{index}]",
                    f"the chat template drops the thinking of the last turn ({_excerpt(thinking)}), which would not "
                    "be trained",
                )
            if blocks is None or any(marks.text[start:end] not in thinking for start, end in blocks):
                raise _template_error(
                    origin,
                    f"messages[{index}]",
                    "the chat template shows a part of the assistant's thinking only",
                )
        _check_arguments_shown(message, index, marks, origin)
    return num_dropped


def _check_arguments_shown(message: Message, index: int, marks: Marks, origin: str) -> None:
    for call in message.get("tool_calls", ()):
        name = call.get("function", call).get("name")
        if isinstance(name, str) and name and name not in marks.text:
            _check_named(call, marks.text, origin, f"messages[{index}].tool_calls")
    leaves = [
        text
        for call in message.get("tool_calls", ())
        for text in _string_values(call.get("function", call).get("arguments"))
        if text.strip()
    ]
    shown = marks.spans(index, ARGUMENT)
    if shown is None or len(shown) != len(leaves):
        raise _template_error(
            origin,
            f"messages[{index}].tool_calls",
            f"the chat template shows {len(shown or ())} of {len(leaves)} texts in the arguments",
        )


def _string_values(value: Any) -> list[str]:
    """Strings in `value` that are no keys."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in _string_values(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _string_values(item)]
    return strings_in(value)


def _check_named(tool: dict[str, Any], text: str, origin: str, field: str) -> None:
    name = tool.get("function", tool).get("name")
    if not isinstance(name, str) or not name:
        raise RowError(origin, field, "an entry has no function name", "Give each one a name")
    if name not in text:
        raise _hides_tools(origin, field, f"the chat template does not show '{name}'")


def _hides_tools(origin: str, field: str, problem: str) -> RowError:
    remedy = (
        "Leave out such rows, or choose a data.chat_template that shows tools: of the built-in ones none does, those "
        "of Qwen 2.5 and 3, Llama 3.1, LFM2, GLM-4 and gpt-oss do, and others of docs/chat-templates.md"
    )
    return RowError(origin, field, problem, remedy, reason="template")


def _kind(message: Message) -> TurnKind:
    return "call" if message.get("tool_calls") else "text"


def _span_by_marks(conversation: Conversation, template: ChatTemplate, marks: Marks, turn: int, origin: str) -> Span:
    messages, text, frames = conversation.messages, marks.text, template.frames
    role, kind = messages[turn - 1]["role"], _kind(messages[turn])
    field = f"messages[{turn}]"
    before = marks.last.get(turn - 1)
    if before is None or any(position > before for index, position in marks.last.items() if index < turn):
        raise _unconfirmed(origin, field, f"the {role} turn before it is empty or is shown elsewhere")
    first = marks.first.get(turn, len(text))
    headers = frames.headers.get(role, ())
    start = -1
    for header in headers:
        at = text.find(header, before, first)
        if at >= 0 and not text[before:at].strip():
            start = at + len(header)
            break
    if start < 0:
        raise _unconfirmed(
            origin,
            field,
            f"between the {role} turn and this one stands {text[before:first][:200]!r} and not the generation prompt "
            f"({' or '.join(map(repr, headers)) or 'the template has none there'})",
        )
    is_last = turn == len(messages) - 1
    mark = frames.last_ends.get(kind) if is_last else frames.ends.get((kind, messages[turn + 1]["role"]))
    last = marks.last.get(turn, start)
    later = min((position for index, position in marks.first.items() if index > turn), default=len(text))
    at = text.find(mark, last, later) if mark is not None and later >= last else -1
    if is_last and kind == "call" and mark == "":
        at = _end(text, frames)  # Nothing ends a call, so it ends with the text.
    end = at + len(mark or "")
    head, answer = split_thinking(messages[turn]["content"])
    # The tag that closes the thinking has no marks; mostly the answer's marks come after it.
    expected = (END_THINK, "") if head and not answer.strip() else ("",)
    if (
        at < 0
        or (kind == "text" and text[last:at].strip() not in expected)
        or (is_last and text[end:].strip() != frames.epilogue)
    ):
        raise _unconfirmed(
            origin,
            field,
            f"after its text stands {text[last : max(later, last + 40)][:200]!r} and not the end-of-turn mark "
            f"({'the template has none there' if mark is None else repr(mark)})",
        )
    return start, end


def _end(text: str, frames: Frames) -> int:
    """Where the last turn ends."""
    return len(text.rstrip().removesuffix(frames.epilogue).rstrip())


def _spans_by_blocks(conversation: Conversation, template: ChatTemplate, text: str, origin: str) -> list[Span]:
    rendered, blocks = template.generation_spans(conversation.messages, conversation.tools)
    turns = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if rendered != text or len(blocks) != len(turns):
        raise _unconfirmed(
            origin,
            "messages",
            f"the template's {{% generation %}} blocks mark {len(blocks)} answers, but there are {len(turns)}",
            "Mend the template so that each assistant turn is in a block of its own",
        )
    spans = []
    for turn, (start, end) in zip(turns, blocks, strict=True):
        if turn not in conversation.located_turns:
            continue
        prefill = next((p for p in template.frames.prefills if text.startswith(p, start)), "")
        start += len(prefill)
        spans.append((start, start + len(text[start:end].rstrip())))
    return spans


def _span_by_prefixes(conversation: Conversation, template: ChatTemplate, text: str, turn: int, origin: str) -> Span:
    start = _start_by_prefixes(conversation, template, text, turn)
    end = _end_by_prefixes(conversation, template, text, turn)
    if start is None or end is None:
        raise _unconfirmed(
            origin,
            f"messages[{turn}]",
            "the chat template renders this turn differently inside the whole conversation (it drops or rewrites "
            "earlier turns), so its tokens cannot be located in a second way",
            "Keep only the last assistant turn in such rows, or set data.chat_template to one that renders every "
            "turn alike or marks the answers with {% generation %}",
        )
    return start, end


def _start_by_prefixes(conversation: Conversation, template: ChatTemplate, text: str, turn: int) -> int | None:
    before, frames = conversation.messages[:turn], template.frames
    role = before[-1]["role"]
    render = _renderer(template, conversation.tools)
    prompt = render(before, True)
    if prompt is not None:
        if text.startswith(prompt):
            return len(prompt)
        full, *shorter = frames.headers.get(role, ("",))
        for header in shorter:
            prompt = prompt.removesuffix(full[len(header) :])
            if text.startswith(prompt):
                return len(prompt)
    word = f"{STAND_IN}-answer-Z"
    with_answer = render([*before, {"role": "assistant", "content": word}], False)
    if with_answer is None or role not in frames.leads:
        return None
    prompt = with_answer[: with_answer.rfind(word) - frames.leads[role]]
    return len(prompt) if text.startswith(prompt) else None


def _end_by_prefixes(conversation: Conversation, template: ChatTemplate, text: str, turn: int) -> int | None:
    messages = conversation.messages
    frames, kind = template.frames, _kind(messages[turn])
    if turn == len(messages) - 1:
        return _end(text, frames)
    render = _renderer(template, conversation.tools)
    after = messages[turn + 1]
    if frames.ends.get((kind, after["role"])) == frames.last_ends.get(kind):
        whole = render(messages[: turn + 1], False)
        if whole is not None and text.startswith(whole):
            return len(whole.rstrip())
    gap = frames.gaps.get((kind, after["role"]))
    word = f"{STAND_IN}-next-Z"
    stand_in: dict[str, Any] = {key: value for key, value in after.items() if key in ("role", "name", "tool_call_id")}
    whole = render([*messages[: turn + 1], {**stand_in, "content": word}], False)
    if whole is None or gap is None:
        return None
    whole = whole[: whole.rfind(word)]
    if not whole.endswith(gap) or not text.startswith(whole[: len(whole) - len(gap)]):
        return None
    return len(whole[: len(whole) - len(gap)].rstrip())


def _renderer(
    template: ChatTemplate, tools: Sequence[dict[str, Any]] | None
) -> Callable[[Sequence[Mapping[str, Any]], bool], str | None]:
    """Renders messages with or without the generation prompt; None where the template refuses them."""

    def render(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str | None:
        try:
            return template.render(messages, tools, add_generation_prompt=add_generation_prompt, origin="prefix")
        except RowError:
            return None

    return render


def _difference(left: str, right: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    low = max(0, at - 30)
    return f"{left[low : at + 30]!r} became {right[low : at + 30]!r}"


def _excerpt(texts: Sequence[str] | None) -> str:
    return repr(" … ".join(texts))[:120] if texts else "nothing"


def _template_error(origin: str, field: str, problem: str) -> RowError:
    return RowError(origin, field, problem, "Mend the row or choose another data.chat_template", reason="template")


def _unconfirmed(origin: str, field: str, problem: str, remedy: str = "") -> RowError:
    return RowError(
        origin,
        field,
        f"the tokens of the answer could not be confirmed: {problem}",
        remedy or "Leave out the row or choose another data.chat_template",
        reason="mask_disagreement",
    )
