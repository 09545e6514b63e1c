"""Chat templates: find them, render with them, and learn once what they write around messages."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Half-open range of characters."""

TurnKind = Literal["text", "call"]
"""Whether an assistant turn ends with its text or with tool calls, which templates end with different marks."""

TEMPLATE_FOLDER: Final = Path(__file__).parent / "shipped_templates"

NO_TEMPLATE_REMEDY: Final = "Set data.chat_template to a built-in name (chatml, zephyr), a file or a template text"

GENERATION_BLOCK: Final = re.compile(r"\{%[-+]?\s*generation\b")

STAND_IN: Final = "Sentinel-7Q"
"""Content of messages that probe a template. Tests for it look for the whole word, so no template may write it."""


def resolve_chat_template(template: str) -> str:
    """The jinja text for a built-in name, a file, or a text that is jinja already.

    Raises:
        UserError: it is none of these.
    """
    if "{%" in template or "{{" in template:
        return template
    built_in = {path.stem: path for path in sorted(TEMPLATE_FOLDER.glob("*.jinja"))}
    path = built_in.get(template, Path(template).expanduser())
    if path.is_file():
        # A file's last newline belongs to the editor, not to the template.
        return path.read_text(encoding="utf-8").removesuffix("\n")
    close = difflib.get_close_matches(template, built_in, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise UserError(
        f"chat_template={template!r} is neither a built-in name ({', '.join(built_in)}), nor a file, nor jinja "
        f"text.{hint}"
    )


def is_built_in_template(template: str) -> bool:
    """Whether `resolve_chat_template` takes `template` for the name of a template of this package."""
    return (TEMPLATE_FOLDER / f"{template}.jinja") in TEMPLATE_FOLDER.glob("*.jinja")


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer by itself starts every text with its bos_token, as its model then expects."""
    if tokenizer.bos_token_id is None:
        return False
    ids: list[int] = tokenizer("a", verbose=False)["input_ids"]
    return ids[:1] == [tokenizer.bos_token_id]


def with_bos(template: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """`template` that writes the bos_token first, if `tokenizer` would start a text with it.

    For templates that write none: a rendered conversation is tokenized without added special tokens.
    """
    return "{{ bos_token }}" + template if adds_bos(tokenizer) else template


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Do nothing if `tokenizer` can encode conversations.

    Raises:
        UserError: it has no chat template or gives no character offsets.
    """
    if not tokenizer.chat_template:
        raise UserError(f"The tokenizer {tokenizer_name(tokenizer)} has no chat template. {NO_TEMPLATE_REMEDY}.")
    check_fast(tokenizer)


def check_fast(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Do nothing if `tokenizer` gives character offsets.

    Raises:
        UserError: it does not.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {tokenizer_name(tokenizer)} is a slow one, which cannot tell which characters a token "
            "covers. Use a model that ships a tokenizer.json."
        )


def tokenizer_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What to call the tokenizer in a message to the user."""
    return tokenizer.name_or_path or type(tokenizer).__name__


@dataclass
class Frames:
    """What a template writes around messages, learned from conversations of stand-in messages.

    What it refuses to render is absent.

    Args:
        headers: by role of the message before: what stands between the text of that message and what the assistant
            writes. First the whole generation prompt; then, if some turns lack its end (a pre-filled ``<think>``),
            the part that they have.
        leads: by role of the message before: characters between the header and the text of a last answer.
        last_ends: by kind of turn: the end-of-turn mark of the last message.
        epilogue: what stands after that and, by the template's ``{% generation %}`` block, is no part of the answer.
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


class ChatTemplate:
    """The chat template of a tokenizer, compiled once.

    Args:
        tokenizer: a tokenizer with a chat template.
        text: the template, where the tokenizer has several.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.has_generation_blocks = bool(GENERATION_BLOCK.search(text))
        self._special = dict(tokenizer.special_tokens_map)
        self._compiled = self._compile()
        self._variables = {**self._compiled.globals, "tools": None, "documents": None, **self._special}
        self._is_direct = self.wants_parts = False
        self.wants_parts = self._find_wants_parts()
        self._is_direct = self._find_is_direct()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        origin: str,
    ) -> str:
        """What `apply_chat_template` gives; plain messages go straight to the compiled template.

        Raises:
            RowError: the template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            if self._is_direct and not tools and all(len(message) == 2 for message in messages):
                return self._render_directly(messages, add_generation_prompt)
            return self._apply(messages, tools, add_generation_prompt)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RowError(
                origin,
                "messages",
                f"the chat template cannot render it: {type(error).__name__}: {str(error).rstrip('.')}",
                "Mend the row (roles, their order, missing keys) or choose another data.chat_template",
                reason="template",
            ) from error

    def generation_spans(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[str, list[Span]]:
        """The rendered messages and the characters of the template's ``{% generation %}`` blocks.

        Blocks that touch are joined.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, indices = render_jinja_template(
            conversations=[self._prepared(messages)],
            tools=list(tools) if tools else None,
            chat_template=self.text,
            return_assistant_tokens_mask=True,
            **self._special,
        )
        spans: list[Span] = []
        for start, end in indices[0]:
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            elif end > start:
                spans.append((start, end))
        return rendered[0], spans

    @cached_property
    def frames(self) -> Frames:
        """What the template writes around messages."""
        return _Probe(self).learn()

    def _compile(self) -> Any:
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            return _compile_jinja_template(self.text)
        except TemplateSyntaxError as error:
            raise UserError(
                f"The chat template has a syntax error in line {error.lineno}: {error.message}. Mend it, or choose "
                "another with data.chat_template."
            ) from error

    def _render_directly(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        # As Template.render, which copies the unchanging variables more slowly.
        variables = {**self._variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
        return "".join(self._compiled.root_render_func(self._compiled.new_context(variables, shared=True)))

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            self._prepared(messages),
            tools=list(tools) if tools else None,
            chat_template=self.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return text

    def _prepared(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if not self.wants_parts:
            return [dict(message) for message in messages]
        return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]

    def _find_wants_parts(self) -> bool:
        """Whether the template shows the text of a message only if it is a list of parts, as of a vision model."""
        shown = []
        for self.wants_parts in (False, True):
            try:
                text = self.render([{"role": "user", "content": STAND_IN}], origin="probe")
            except RowError:
                text = ""
            shown.append(STAND_IN in text)
        return shown == [False, True]

    def _find_is_direct(self) -> bool:
        """Whether the compiled template alone gives what `apply_chat_template` gives."""
        if self.wants_parts:
            return False
        messages = [{"role": "user", "content": STAND_IN}]
        self._is_direct = True
        try:
            direct = self.render(messages, add_generation_prompt=True, origin="probe")
            return direct == self._apply(messages, None, True)
        except RowError:
            return True  # It refuses a lone user turn; the same template refuses it either way.


class _Probe:
    """Learns the frames of a template from stand-in conversations."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.added = added_tokens_pattern(template.tokenizer.added_tokens_encoder)
        self.messages: dict[str, dict[str, Any]] = {
            "system": {"role": "system", "content": _word("system")},
            "user": {"role": "user", "content": _word("user")},
            "assistant": {"role": "assistant", "content": _word("assistant")},
            "call": _call({"key": _word("call")}),
            "tool": {"role": "tool", "content": _word("tool"), "name": "look_up", "tool_call_id": "c12345678"},
        }
        self.before: dict[str, list[str]] = {
            "user": ["user"],
            "system": ["system"],
            "assistant": ["user", "assistant"],
            "tool": ["user", "call", "tool"],
        }

        if not self._render(["user", "call"]):
            # Some templates want the arguments as a JSON string.
            self.messages["call"] = _call(json.dumps({"key": _word("call")}))

    def learn(self) -> Frames:
        frames = Frames()
        if self.template.has_generation_blocks:
            frames.epilogue = self._epilogue()
        for role, names in self.before.items():
            self._learn_header(frames, role, names)
        for kind, name in (("text", "assistant"), ("call", "call")):
            self._learn_end(frames, "call" if kind == "call" else "text", name)
        if self.template.has_generation_blocks:
            frames.prefills = self._prefills(frames)
        return frames

    def _learn_header(self, frames: Frames, role: str, names: list[str]) -> None:
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
                if common.strip() and (not rest or rest.startswith("<") or self._starts_with_added(rest)):
                    headers.append(common)
        frames.headers[role] = tuple(sorted(set(headers), key=len, reverse=True))
        if last is not None:
            header = next((header for header in frames.headers[role] if last.startswith(header)), None)
            if header is not None:
                frames.leads[role] = len(last) - len(header)

    def _starts_with_added(self, text: str) -> bool:
        return self.added is not None and self.added.match(text) is not None

    def _learn_end(self, frames: Frames, kind: TurnKind, name: str) -> None:
        tail = _after(self._render(["user", name]), _word(name))
        if tail is None:
            return
        tail = tail.rstrip().removesuffix(frames.epilogue).rstrip()
        text_end = frames.last_ends.get("text", "")
        if kind == "call":
            found = list(self.added.finditer(tail)) if self.added else []
            if text_end and tail.endswith(text_end):
                tail = text_end
            elif found and found[-1].end() == len(tail):
                tail = found[-1].group()
            else:
                return
        frames.last_ends[kind] = tail
        for role in ("user", "assistant", "tool", "system"):
            following = {**self.messages[role], "content": _word("next")}
            gap = _between(self._render(["user", name], following), _word(name), _word("next"))
            if gap is None:
                continue
            mark = self._mark_inside(gap, tail, kind)
            if mark is not None:
                frames.ends[kind, role] = mark
                frames.gaps[kind, role] = gap[gap.index(mark) + len(mark) :]

    def _mark_inside(self, gap: str, last_end: str, kind: TurnKind) -> str | None:
        """The end-of-turn mark before another message: mostly the one of a last turn, else the token in its place."""
        if gap.startswith(last_end) or (kind == "call" and last_end in gap):
            return last_end
        match = self.added.match(gap) if self.added else None
        return match.group() if match else None

    def _common_start(self, header: str, lead: str) -> str:
        """What both begin with, cut back so that it splits no added token of either."""
        length = next((i for i, (a, b) in enumerate(zip(header, lead, strict=False)) if a != b), len(lead))
        for text in (header, lead):
            for match in self.added.finditer(text) if self.added else ():
                if match.start() < length < match.end():
                    length = match.start()
        return header[:length]

    def _epilogue(self) -> str:
        text, spans = self.template.generation_spans([self.messages["user"], self.messages["assistant"]], None)
        return text[spans[-1][1] :].strip() if spans else ""

    def _prefills(self, frames: Frames) -> tuple[str, ...]:
        messages = [self.messages["user"], self.messages["assistant"]]
        text, spans = self.template.generation_spans(messages, None)
        at = text.find(_word("user"))
        if at < 0 or not spans:
            return ()
        outside = text[at + len(_word("user")) : spans[0][0]]
        inside = {h.removeprefix(outside) for h in frames.headers.get("user", ()) if h.startswith(outside)}
        return tuple(sorted(inside - {""}, key=len, reverse=True))

    def _render(self, *parts: Any, add_generation_prompt: bool = False) -> str:
        messages: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, list):
                messages += [self.messages[name] for name in part]
            else:
                messages.append(self.messages[part] if isinstance(part, str) else part)
        try:
            return self.template.render(messages, add_generation_prompt=add_generation_prompt, origin="probe")
        except RowError:
            return ""


def added_tokens_pattern(contents: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of `contents`, the longest where several fit; None if there are none."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _call(arguments: Any) -> dict[str, Any]:
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
