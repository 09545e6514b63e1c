"""Markers around the texts of messages, which show where a chat template puts these."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lit_ift.chat.control_tokens import map_strings
from lit_ift.chat.conversation import END_THINK, THINK, THINKING_FIELDS, Message, split_thinking
from lit_ift.chat.templates import Span

OPEN, CLOSE = "\U000ffffc", "\U000ffffd"
"""A marker is a number between these private-use characters; `MARKERS_PER_MESSAGE` numbers for each message."""

MARKERS_PER_MESSAGE: Final = 8
TEXT, THINKING, ARGUMENT = 0, 2, 4

MARKER: Final = re.compile(f"{OPEN}([0-9]+){CLOSE}")


class Markers:
    """Where the markers of a rendering are.

    Args:
        marked: a rendering of `with_markers`.

    Attributes:
        text: the rendering without them.
        first: by message the position in `text` of its first marker.
        last: the same of its last one.
    """

    def __init__(self, marked: str) -> None:
        pieces = MARKER.split(marked)
        self.text = "".join(pieces[::2])
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._found: dict[int, list[int]] = {}
        position = 0
        for piece, number in zip(pieces[::2], map(int, pieces[1::2]), strict=False):
            position += len(piece)
            self.first.setdefault(number // MARKERS_PER_MESSAGE, position)
            self.last[number // MARKERS_PER_MESSAGE] = position
            self._found.setdefault(number, []).append(position)

    def spans(self, index: int, kind: int) -> list[Span] | None:
        """Where the texts of this kind of message `index` stand; None if a marker came out without its partner."""
        number = index * MARKERS_PER_MESSAGE + kind
        opening, closing = self._found.get(number, []), self._found.get(number + 1, [])
        spans = list(zip(opening, closing, strict=False))
        in_order = len(opening) == len(closing) and all(start <= end for start, end in spans)
        return spans if in_order else None


def with_markers(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages` with markers around their texts, their thinking and the texts in the arguments of their calls."""
    return [_marked(message, index) for index, message in enumerate(messages)]


def _marked(message: Message, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {**message}
    head, answer = split_thinking(message["content"]) if message["role"] == "assistant" else ("", message["content"])
    if head:
        before, tag, inside = head.removesuffix(END_THINK).partition(THINK)
        if before.strip() or not tag:
            before, tag, inside = "", "", before + tag + inside
        head = before + tag + _wrapped(inside, index, THINKING if tag else TEXT) + END_THINK
    result["content"] = head + _wrapped(answer, index, TEXT)
    if len(message) > 2:
        for key in THINKING_FIELDS:
            if isinstance(text := result.get(key), str):
                result[key] = _wrapped(text, index, THINKING)
        if "tool_calls" in message:
            result["tool_calls"] = [_marked_call(call, index) for call in message["tool_calls"]]
    return result


def _wrapped(text: str, index: int, kind: int) -> str:
    """`text` with markers inside its outer white space, which templates trim; blank text stays as it is."""
    core = text.strip()
    if not core:
        return text
    number = index * MARKERS_PER_MESSAGE + kind
    return text.replace(core, f"{OPEN}{number}{CLOSE}{core}{OPEN}{number + 1}{CLOSE}", 1)


def _marked_call(call: dict[str, Any], index: int) -> dict[str, Any]:
    function = call.get("function")
    holder: Mapping[str, Any] = function if isinstance(function, dict) else call
    if "arguments" not in holder:
        return call
    arguments = map_strings(holder["arguments"], lambda text: _wrapped(text, index, ARGUMENT))
    changed = {**holder, "arguments": arguments}
    return {**call, "function": changed} if isinstance(function, dict) else changed
