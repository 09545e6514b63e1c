"""Marks around the texts of messages, which show where a chat template puts these."""

import re
from collections.abc import Mapping
from typing import Any, Final

from lit_ift.chat.control_tokens import map_strings
from lit_ift.chat.conversation import END_THINK, THINK, THINKING_FIELDS, Message, split_thinking
from lit_ift.chat.templates import Span

OPEN, CLOSE = "\U000ffffc", "\U000ffffd"
"""A mark is a number between these private-use characters; `MARKS_PER_MESSAGE` numbers for each message."""

MARKS_PER_MESSAGE: Final = 8
TEXT, THINKING, ARGUMENT = 0, 2, 4

MARKS: Final = re.compile(f"{OPEN}([0-9]+){CLOSE}")


class Marks:
    """A marked rendering taken apart."""

    def __init__(self, marked: str) -> None:
        pieces = MARKS.split(marked)
        self.text = "".join(pieces[::2])
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.found: dict[int, list[int]] = {}
        """By number of the mark: its positions in `text`."""
        position = 0
        for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
            position += len(piece)
            number = int(mark)
            index = number // MARKS_PER_MESSAGE
            self.first.setdefault(index, position)
            self.last[index] = position
            self.found.setdefault(number, []).append(position)

    def spans(self, index: int, kind: int) -> list[Span] | None:
        """Where the texts of this kind of message `index` stand; None if a mark came out without its partner."""
        number = index * MARKS_PER_MESSAGE + kind
        opening, closing = self.found.get(number, []), self.found.get(number + 1, [])
        spans = list(zip(opening, closing, strict=False))
        in_order = len(opening) == len(closing) and all(start <= end for start, end in spans)
        return spans if in_order else None


def marked(message: Message, index: int) -> dict[str, Any]:
    """`message` with marks around its text, its thinking and the texts in the arguments of its calls."""
    content = message["content"]
    result: dict[str, Any] = {"role": message["role"], "content": content}
    if message["role"] == "assistant":
        head, answer = split_thinking(content)
        if head:
            prefix = THINK if head.lstrip().startswith(THINK) else ""
            blank = head[: head.index(THINK)] if prefix else ""
            inside = head.removesuffix(END_THINK)[len(blank) + len(prefix) :]
            kind = THINKING if prefix else TEXT
            head = blank + prefix + _wrapped(inside, index, kind) + END_THINK
        result["content"] = head + _wrapped(answer, index, TEXT)
    else:
        result["content"] = _wrapped(content, index, TEXT)
    if len(message) > 2:
        for key, value in message.items():
            if key == "tool_calls":
                result[key] = [_marked_call(call, index) for call in message["tool_calls"]]
            elif key in THINKING_FIELDS and isinstance(value, str):
                result[key] = _wrapped(value, index, THINKING)
            elif key not in result:
                result[key] = value
    return result


def _wrapped(text: str, index: int, kind: int) -> str:
    """`text` with marks inside its outer white space, which templates trim; blank text stays as it is."""
    core = text.strip()
    if not core:
        return text
    number = index * MARKS_PER_MESSAGE + kind
    marked = f"{OPEN}{number}{CLOSE}{core}{OPEN}{number + 1}{CLOSE}"
    return marked if core == text else text.replace(core, marked, 1)


def _marked_call(call: dict[str, Any], index: int) -> dict[str, Any]:
    function = call.get("function")
    holder: Mapping[str, Any] = function if isinstance(function, dict) else call
    if "arguments" not in holder:
        return call
    arguments = map_strings(holder["arguments"], lambda text: _wrapped(text, index, ARGUMENT))
    changed = {**holder, "arguments": arguments}
    return {**call, "function": changed} if isinstance(function, dict) else changed
