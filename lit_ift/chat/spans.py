"""Which characters of a rendered conversation the assistant wrote, found in two independent ways.

A turn's span goes from the end of its header through its end-of-turn mark and holds whatever the template writes in
between, such as thinking blocks and tool calls. What the generation prompt writes is prompt. So is a ``<think>`` that
it pre-fills, if the turn begins with it; a turn that lacks the pre-filled part (templates drop the thinking of earlier
turns) starts after what it has in common with the generation prompt. White space after the mark is not trained.

1. *Marker rendering*: every text is rendered between markers of its own, made of private-use characters. Where they
   come out is where the text stands, whatever it repeats or imitates; header and end-of-turn mark are what the template
   writes around stand-in messages.
2. *Generation blocks* where the template has them, else *prefix rendering*: the messages before a turn with the
   generation prompt, and those through the turn, are prefixes of the whole. Where the template rewrites earlier turns,
   a stand-in takes the place of the answer or of the message after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lit_ift.chat.control_tokens import strings_in
from lit_ift.chat.conversation import (
    END_THINK,
    THINK,
    THINKING_FIELDS,
    Conversation,
    EncodingError,
    Message,
    split_thinking,
)
from lit_ift.chat.markers import ARGUMENT, TEXT, THINKING, Markers, with_markers
from lit_ift.chat.templates import ChatTemplate, Span
from lit_ift.chat.turn_format import STAND_IN, TurnKind

SHOWS_TOOLS: Final = (
    "Leave out such rows, or choose a data.chat_template that shows tools: of the built-in ones none does, those "
    "of Qwen 2.5 and 3, Llama 3.1, LFM2, GLM-4 and gpt-oss do, and others of docs/chat-templates.md"
)
"""What to do where a template shows no tools."""


@dataclass(frozen=True)
class Location:
    """Where turns of a rendered conversation are that are trained or, where all else is trained, are not.

    Args:
        text: the rendering.
        marked: the same with markers.
        by_markers: for each located turn its characters, from marker rendering.
        confirmed: the same from the second method.
        untrained: the texts of the turns of others that are not to be trained on.
        num_dropped_thoughts: earlier turns whose thinking the template leaves out.
    """

    text: str
    marked: str
    by_markers: list[Span]
    confirmed: list[Span]
    untrained: list[Span]
    num_dropped_thoughts: int = 0


def locate(conversation: Conversation, template: ChatTemplate) -> Location:
    """Render a conversation and find its target turns in both ways.

    Raises:
        EncodingError: the template refuses the row, or drops or changes a text; or one of the ways does not apply.
    """
    messages, tools, turns = conversation.messages, conversation.tools, conversation.located_turns
    is_prompt = conversation.is_prompt
    text = template.render(messages, tools, add_generation_prompt=is_prompt)
    marked = template.render(with_markers(messages), tools, add_generation_prompt=is_prompt)
    markers = Markers(marked)
    if markers.text != text:
        raise _unconfirmed(
            "messages",
            "the chat template renders it differently when its texts are marked, so they cannot be found in the "
            f"rendering: {_difference(text, markers.text)}",
        )
    num_dropped = sum(_drops_thinking(conversation, index, markers) for index in range(len(messages)))
    spans = [_span_by_markers(conversation, template, markers, turn) for turn in turns]
    for (start, end), turn in zip(spans, turns, strict=True):
        _check_named(messages[turn].get("tool_calls", ()), text[start:end], f"messages[{turn}].tool_calls")
    _check_named(tools or (), text, "tools")
    # Some templates (DeepSeek-V3) show calls but no declarations: a set for them tells of its tools in the text.
    has_calls = any(message.get("tool_calls") for message in messages)
    if tools and not has_calls and template.render(messages, add_generation_prompt=is_prompt) == text:
        raise EncodingError("tools", "the chat template does not show the declared functions", SHOWS_TOOLS)
    if template.has_generation_blocks and spans:
        confirmed = _spans_by_blocks(conversation, template, text)
    else:
        confirmed = [_span_by_prefixes(conversation, template, text, turn) for turn in turns]
    others = [i for i in sorted(conversation.untrained) if messages[i]["role"] != "assistant" and i in markers.first]
    untrained = [(markers.first[i], markers.last[i]) for i in others]
    return Location(text, marked, spans, confirmed, untrained, num_dropped)


def _drops_thinking(conversation: Conversation, index: int, markers: Markers) -> bool:
    """Whether the template leaves out the thinking of a turn; it must show all else of the turn whole."""
    message = conversation.messages[index]
    role = message["role"]
    texts, thinking = _texts_of(message)
    spans = markers.spans(index, TEXT)
    shown = None if spans is None else [markers.text[start:end] for start, end in spans]
    if role in ("user", "assistant"):
        # Some templates show a question twice.
        is_whole = shown == texts or (role == "user" and bool(shown) and {*(shown or ())} == {*texts})
    else:
        is_whole = bool(shown) or not texts  # A system or tool turn may be written as JSON or edited.
    if not is_whole:
        problem = f"changes or drops the {role}'s text: it makes {_excerpt(shown)} of {_excerpt(texts)}"
        raise EncodingError(f"messages[{index}].content", f"the chat template {problem}")
    blocks = markers.spans(index, THINKING) if role == "assistant" else []
    drops = role == "assistant" and bool(thinking) and not blocks
    if drops and index == len(conversation.messages) - 1:
        problem = f"drops the thinking of the last turn ({_excerpt(thinking)}), which would not be trained"
        raise EncodingError(f"messages[{index}]", f"the chat template {problem}")
    if blocks is None or any(markers.text[start:end] not in thinking for start, end in blocks):
        raise EncodingError(f"messages[{index}]", "the chat template shows a part of the assistant's thinking only")
    _check_calls_shown(message, index, markers)
    return drops


def _texts_of(message: Message) -> tuple[list[str], list[str]]:
    """What a message says and what it thinks, without outer white space and empty texts."""
    texts, thinking = [message["content"]], []
    if message["role"] == "assistant":
        head, answer = split_thinking(message["content"])
        inside = head.removesuffix(END_THINK).strip()
        if inside.startswith(THINK):
            texts, thinking = [answer], [inside.removeprefix(THINK)]
        else:
            texts = [inside, answer]
    if len(message) > 2:
        thinking += [text for key in THINKING_FIELDS if isinstance(text := message.get(key), str)]
    return [text.strip() for text in texts if text.strip()], [text.strip() for text in thinking if text.strip()]


def _check_calls_shown(message: Message, index: int, markers: Markers) -> None:
    calls = message.get("tool_calls", ())
    _check_named(calls, markers.text, f"messages[{index}].tool_calls")
    arguments = [text for call in calls for text in strings_in(call.get("function", call).get("arguments"), keys=False)]
    num_texts = sum(bool(text.strip()) for text in arguments)
    num_shown = len(markers.spans(index, ARGUMENT) or ())
    if markers.spans(index, ARGUMENT) is None or num_shown != num_texts:
        problem = f"the chat template shows {num_shown} of {num_texts} texts in the arguments"
        raise EncodingError(f"messages[{index}].tool_calls", problem)


def _check_named(tools: Sequence[Mapping[str, Any]], text: str, field: str) -> None:
    for tool in tools:
        name = tool.get("function", tool).get("name")
        if not isinstance(name, str) or not name:
            raise EncodingError(field, "an entry has no function name", "Give each one a name", "field")
        if name not in text:
            raise EncodingError(field, f"the chat template does not show '{name}'", SHOWS_TOOLS)


def _kind(message: Message) -> TurnKind:
    return "call" if message.get("tool_calls") else "text"


def _span_by_markers(conversation: Conversation, template: ChatTemplate, markers: Markers, turn: int) -> Span:
    messages, text, turn_format = conversation.messages, markers.text, template.turn_format
    role, kind = messages[turn - 1]["role"], _kind(messages[turn])
    field = f"messages[{turn}]"
    before = markers.last.get(turn - 1)
    if before is None or any(position > before for index, position in markers.last.items() if index < turn):
        raise _unconfirmed(field, f"the {role} turn before it is empty or is shown elsewhere")
    first = markers.first.get(turn, len(text))
    headers = turn_format.headers.get(role, ())
    found = ((text.find(header, before, first), header) for header in headers)
    starts = [at + len(header) for at, header in found if at >= 0 and not text[before:at].strip()]
    if not starts:
        raise _unconfirmed(
            field,
            f"between the {role} turn and this one stands {text[before:first][:200]!r} and not the generation prompt "
            f"({' or '.join(map(repr, headers)) or 'the template has none there'})",
        )
    is_last = turn == len(messages) - 1
    mark = turn_format.last_ends.get(kind) if is_last else turn_format.ends.get((kind, messages[turn + 1]["role"]))
    last = markers.last.get(turn, starts[0])
    later = min((position for index, position in markers.first.items() if index > turn), default=len(text))
    at = text.find(mark, last, later) if mark is not None and later >= last else -1
    if is_last and kind == "call" and mark == "":
        at = _end_of_text(text, template)  # Nothing ends a call, so it ends with the text.
    end = at + len(mark or "")
    head, answer = split_thinking(messages[turn]["content"])
    # The tag that closes the thinking has no markers; mostly the answer's markers come after it.
    expected = (END_THINK, "") if head and not answer.strip() else ("",)
    if (
        at < 0
        or (kind == "text" and text[last:at].strip() not in expected)
        or (is_last and text[end:].strip() != turn_format.epilogue)
    ):
        raise _unconfirmed(
            field,
            f"after its text stands {text[last : max(later, last + 40)][:200]!r} and not the end-of-turn mark "
            f"({'the template has none there' if mark is None else repr(mark)})",
        )
    return starts[0], end


def _end_of_text(text: str, template: ChatTemplate) -> int:
    """Where the last turn ends."""
    return len(text.rstrip().removesuffix(template.turn_format.epilogue).rstrip())


def _spans_by_blocks(conversation: Conversation, template: ChatTemplate, text: str) -> list[Span]:
    rendered, blocks = template.generation_spans(conversation.messages, conversation.tools)
    turns = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if rendered != text or len(blocks) != len(turns):
        problem = f"the template's {{% generation %}} blocks mark {len(blocks)} answers, but there are {len(turns)}"
        raise _unconfirmed(
            "messages", problem, "Mend the template so that each assistant turn is in a block of its own"
        )
    spans = []
    for turn, (start, end) in zip(turns, blocks, strict=True):
        if turn in conversation.located_turns:
            prefill = next((p for p in template.turn_format.prefills if text.startswith(p, start)), "")
            start += len(prefill)
            spans.append((start, start + len(text[start:end].rstrip())))
    return spans


def _span_by_prefixes(conversation: Conversation, template: ChatTemplate, text: str, turn: int) -> Span:
    start = _start_by_prefixes(conversation, template, text, turn)
    end = _end_by_prefixes(conversation, template, text, turn)
    if start is None or end is None:
        raise _unconfirmed(
            f"messages[{turn}]",
            "the chat template renders this turn differently inside the whole conversation (it drops or rewrites "
            "earlier turns), so its tokens cannot be located in a second way",
            "Keep only the last assistant turn in such rows, or set data.chat_template to one that renders every "
            "turn alike or marks the answers with {% generation %}",
        )
    return start, end


def _start_by_prefixes(conversation: Conversation, template: ChatTemplate, text: str, turn: int) -> int | None:
    before, turn_format = conversation.messages[:turn], template.turn_format
    role = before[-1]["role"]
    prompt = template.try_render(before, conversation.tools, add_generation_prompt=True)
    if prompt is not None:
        full, *shorter = turn_format.headers.get(role, ("",))
        for header in (full, *shorter):
            prompt = prompt.removesuffix(full[len(header) :])
            if text.startswith(prompt):
                return len(prompt)
    word = f"{STAND_IN}-answer-Z"
    with_answer = template.try_render([*before, {"role": "assistant", "content": word}], conversation.tools)
    if with_answer is None or role not in turn_format.leads:
        return None
    prompt = with_answer[: with_answer.rfind(word) - turn_format.leads[role]]
    return len(prompt) if text.startswith(prompt) else None


def _end_by_prefixes(conversation: Conversation, template: ChatTemplate, text: str, turn: int) -> int | None:
    messages, tools = conversation.messages, conversation.tools
    turn_format, kind = template.turn_format, _kind(messages[turn])
    if turn == len(messages) - 1:
        return _end_of_text(text, template)
    after = messages[turn + 1]
    if turn_format.ends.get((kind, after["role"])) == turn_format.last_ends.get(kind):
        whole = template.try_render(messages[: turn + 1], tools)
        if whole is not None and text.startswith(whole):
            return len(whole.rstrip())
    gap = turn_format.gaps.get((kind, after["role"]))
    word = f"{STAND_IN}-next-Z"
    stand_in: dict[str, Any] = {key: value for key, value in after.items() if key in ("role", "name", "tool_call_id")}
    whole = template.try_render([*messages[: turn + 1], {**stand_in, "content": word}], tools)
    if whole is None or gap is None:
        return None
    whole = whole[: whole.rfind(word)]
    through = whole.removesuffix(gap)
    return len(through.rstrip()) if whole.endswith(gap) and text.startswith(through) else None


def _difference(left: str, right: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    low = max(0, at - 30)
    return f"{left[low : at + 30]!r} became {right[low : at + 30]!r}"


def _excerpt(texts: Sequence[str] | None) -> str:
    return repr(" … ".join(texts))[:120] if texts else "nothing"


def _unconfirmed(field: str, problem: str, remedy: str = "") -> EncodingError:
    remedy = remedy or "Leave out the row or choose another data.chat_template"
    return EncodingError(
        field, f"the tokens of the answer could not be confirmed: {problem}", remedy, "mask_disagreement"
    )
