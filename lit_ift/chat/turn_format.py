"""What a chat template writes around messages, learned once from conversations of stand-in messages."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from lit_ift.chat.templates import ChatTemplate

TurnKind = Literal["text", "call"]
"""Whether an assistant turn ends with its text or with tool calls, which templates end with different marks."""

STAND_IN: Final = "Sentinel-7Q"
"""Content of messages that probe a template. Tests for it look for the whole word, so no template may write it."""


@dataclass
class TurnFormat:
    """What a template writes around messages, learned from conversations of stand-in messages.

    What it refuses to render is absent.

    Args:
        headers: by role of the message before: what stands between the text of that message and what the assistant
            writes. First the whole generation prompt; then, if some turns lack its end (a pre-filled ``<think>``),
            the part that they have.
        leads: by role of the message before: characters between the header and the text of a last answer.
        last_ends: by kind of turn: the end-of-turn mark of the last message.
        epilogue: what stands after that and is no part of the answer: by the template's ``{% generation %}`` block, or
            because it is the start of a generation prompt that the template writes unasked.
        ends: by kind of turn and role of the next message: the end-of-turn mark.
        gaps: by kind of turn and role of the next message: what stands between the mark and the next text.
        prefills: what a generation block may hold that the generation prompt has written already.
    """

    headers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    leads: dict[str, int] = field(default_factory=dict)
    last_ends: dict[TurnKind, str] = field(default_factory=dict)
    epilogue: str = ""
    ends: dict[tuple[TurnKind, str], str] = field(default_factory=dict)
    gaps: dict[tuple[TurnKind, str], str] = field(default_factory=dict)
    prefills: tuple[str, ...] = ()

    def structure(self) -> list[str]:
        """Texts that delimit turns of plain text, without what a generation prompt pre-fills."""
        headers = [headers[-1] for role, headers in self.headers.items() if role != "tool"]
        ends = [self.ends[key] + self.gaps[key] for key in self.ends if key in (("text", "user"), ("text", "system"))]
        return [*headers, *ends, self.last_ends.get("text", "")]


def learn_turn_format(template: "ChatTemplate") -> TurnFormat:
    """Find what a template writes around messages."""
    return _Probe(template).learn()


class _Probe:
    """Renders stand-in conversations by a template."""

    def __init__(self, template: "ChatTemplate") -> None:
        self.template = template
        self.found = TurnFormat()
        self.added = added_tokens_pattern(template.tokenizer.added_tokens_encoder)
        self.messages: dict[str, dict[str, Any]] = {
            "system": {"role": "system", "content": _word("system")},
            "user": {"role": "user", "content": _word("user")},
            "assistant": {"role": "assistant", "content": _word("assistant")},
            "call": call_turn({"key": _word("call")}),
            "tool": {"role": "tool", "content": _word("tool"), "name": "look_up", "tool_call_id": "c12345678"},
        }
        self.before: dict[str, list[str]] = {
            "user": ["user"],
            "system": ["system"],
            "assistant": ["user", "assistant"],
            "tool": ["user", "call", "tool"],
        }

    def learn(self) -> TurnFormat:
        if self.template.has_generation_blocks:
            self.found.epilogue = self._epilogue()
        for role, names in self.before.items():
            self._learn_header(role, names)
        self._learn_end("text", "assistant")
        self._learn_end("call", "call")
        if self.template.has_generation_blocks:
            self.found.prefills = self._prefills()
        return self.found

    def _learn_header(self, role: str, names: list[str]) -> None:
        prompt = self._render(names, add_generation_prompt=True)
        full = _after(prompt, _word(role))
        if full is None:
            return
        headers = [full]
        # The text of the answer must differ from that of an answer before it.
        answer = {"role": "assistant", "content": _word("answer")}
        last = _between(self._render(names, answer), _word(role), _word("answer"))
        inside = _between(self._render([*names], answer, "user"), _word(role), _word("answer"))
        for lead in (last, inside):
            if lead is not None and not lead.startswith(full):
                common = self._common_start(full, lead)
                rest = lead[len(common) :].strip()
                # A turn may lack what a generation prompt pre-fills, or have a block instead. Where it goes on with
                # anything else, the model is prompted in another way than it is trained.
                if common.strip() and (not rest or rest.startswith("<") or self.added.match(rest)):
                    headers.append(common)
        self.found.headers[role] = tuple(sorted(set(headers), key=len, reverse=True))
        if last is not None:
            header = next((header for header in self.found.headers[role] if last.startswith(header)), None)
            if header is not None:
                self.found.leads[role] = len(last) - len(header)

    def _learn_end(self, kind: TurnKind, name: str) -> None:
        tail = _after(self._render(["user", name]), _word(name))
        if tail is None:
            return
        if kind == "text" and not self.found.epilogue:
            self.found.epilogue = self._begun_turn(tail)
        tail = tail.rstrip().removesuffix(self.found.epilogue).rstrip()
        text_end = self.found.last_ends.get("text", "")
        if kind == "call":
            tokens = list(self.added.finditer(tail))
            if text_end and tail.endswith(text_end):
                tail = text_end
            elif tokens and tokens[-1].end() == len(tail):
                tail = tokens[-1].group()
            elif not text_end:
                tail = ""  # Nothing ends a turn.
            else:
                return
        self.found.last_ends[kind] = tail
        for role in ("user", "assistant", "tool", "system"):
            following = {**self.messages[role], "content": _word("next")}
            gap = _between(self._render(["user", name], following), _word(name), _word("next"))
            if gap is None:
                continue
            mark = self._mark_inside(gap, tail, kind)
            if mark is not None:
                self.found.ends[kind, role] = mark
                self.found.gaps[kind, role] = gap[gap.index(mark) + len(mark) :]

    def _mark_inside(self, gap: str, last_end: str, kind: TurnKind) -> str | None:
        """The end-of-turn mark before another message.

        Mostly that of a last turn, else the token in its place. Where nothing ends a last turn, what comes next is what
        stops the model: the token that ends earlier turns, or the one that opens the next turn.
        """
        if last_end and (gap.startswith(last_end) or (kind == "call" and last_end in gap)):
            if self.found.last_ends.get("text"):
                return last_end
            rest = gap[gap.index(last_end) + len(last_end) :]
            return last_end + (self._token_at_start(rest) or "")
        if last_end:
            return self._token_at_start(gap, blanks=False)
        if kind == "call":  # What closes the arguments stands before it.
            token = self.added.search(gap)
            return token.group() if token else None
        return self._token_at_start(gap) or ""

    def _token_at_start(self, text: str, *, blanks: bool = True) -> str | None:
        """What `text` begins with up to the end of its first added token, perhaps after white space."""
        start = len(text) - len(text.lstrip()) if blanks else 0
        match = self.added.match(text, start)
        return text[: match.end()] if match else None

    def _begun_turn(self, tail: str) -> str:
        """What a template writes after the last turn, if that begins another turn of the assistant.

        That is so where it writes the generation prompt unasked.
        """
        text = self._render(["user", "assistant"]).removeprefix(self.template.tokenizer.bos_token or "")
        opener = (self._token_at_start(text) or "").strip()
        prompt = self.found.headers.get("user", ("",))[0]
        if not opener or opener not in tail or opener not in prompt:
            return ""
        begun = tail[tail.index(opener) :].rstrip()
        return begun if prompt[prompt.index(opener) :].startswith(begun) else ""

    def _common_start(self, header: str, lead: str) -> str:
        """What both begin with, cut back so that it splits no added token of either."""
        length = next((i for i, (a, b) in enumerate(zip(header, lead, strict=False)) if a != b), len(lead))
        for text in (header, lead):
            for match in self.added.finditer(text):
                if match.start() < length < match.end():
                    length = match.start()
        return header[:length]

    def _epilogue(self) -> str:
        text, spans = self.template.generation_spans([self.messages["user"], self.messages["assistant"]], None)
        return text[spans[-1][1] :].strip() if spans else ""

    def _prefills(self) -> tuple[str, ...]:
        messages = [self.messages["user"], self.messages["assistant"]]
        text, spans = self.template.generation_spans(messages, None)
        at = text.find(_word("user"))
        if at < 0 or not spans:
            return ()
        outside = text[at + len(_word("user")) : spans[0][0]]
        inside = {h.removeprefix(outside) for h in self.found.headers.get("user", ()) if h.startswith(outside)}
        return tuple(sorted(inside - {""}, key=len, reverse=True))

    def _render(self, *parts: Any, add_generation_prompt: bool = False) -> str:
        messages: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, list):
                messages += [self.messages[name] for name in part]
            else:
                messages.append(self.messages[part] if isinstance(part, str) else part)
        return self.template.try_render(messages, add_generation_prompt=add_generation_prompt) or ""


def added_tokens_pattern(contents: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `contents`, the longest where several fit; nothing if there are none."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def call_turn(arguments: Any) -> dict[str, Any]:
    """A turn of the assistant that calls a function."""
    call = {"id": "c12345678", "type": "function", "function": {"name": "look_up", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _word(name: str) -> str:
    return f"{STAND_IN}-{name}-Z"


def _after(text: str, word: str) -> str | None:
    at = text.rfind(word)
    return text[at + len(word) :] if at >= 0 else None


def _between(text: str, left: str, right: str) -> str | None:
    end = text.rfind(right)
    start = text.rfind(left, 0, end) if end >= 0 else -1
    return text[start + len(left) : end] if start >= 0 else None
