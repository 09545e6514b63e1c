"""Chat templates: find them, render with them, and learn once what they write around messages."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lit_ift.chat.conversation import EncodingError
from lit_ift.chat.turn_format import STAND_IN, TurnFormat, call_turn, learn_turn_format
from lit_ift.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Half-open range of characters."""

TEMPLATE_FOLDER: Final = Path(__file__).parent / "shipped_templates"

NO_TEMPLATE_REMEDY: Final = "Set data.chat_template to a built-in name (chatml, zephyr), a file or a template text"

DAY: Final = date(2025, 1, 1)
"""What templates that write today's date write instead, so that rows are the same on every day of a run."""

TODAY: Final = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
"""How templates ask for the date."""

CONTROL_LIKE: Final = re.compile(r"<[^<>\s]+>")
"""What is spelt like a control token."""

GENERATION_BLOCK: Final = re.compile(r"\{%[-+]?\s*generation\b")


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
    raise UserError(
        f"chat_template={template!r} is neither a built-in name ({', '.join(built_in)}), nor a file, nor jinja "
        f"text.{did_you_mean(template, built_in)}"
    )


def with_fixed_day(template: str) -> str:
    """`template` with `DAY` where it asks for today's date."""
    return TODAY.sub(lambda match: json.dumps(DAY.strftime(match.group(2))), template)


def asks_for_today(template: str) -> bool:
    """Whether `template` writes the day on which it is rendered even after `with_fixed_day`."""
    return re.search(r"strftime_now\s*\(", with_fixed_day(template)) is not None


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


def plain_marks(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What the template writes around turns like control tokens, though the tokenizer has no token for them.

    Empty if the mark at the end of turns is a token of the tokenizer, or is not meant as one.
    """
    turn_format = ChatTemplate(tokenizer, tokenizer.get_chat_template()).turn_format

    def lacking(text: str) -> list[str]:
        found = dict.fromkeys(CONTROL_LIKE.findall(text))
        return [mark for mark in found if len(tokenizer.encode(mark, add_special_tokens=False)) > 1]

    if not lacking(turn_format.last_ends.get("text", "")):
        return []
    return lacking("\n".join(turn_format.structure()))


def tokenizer_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What to call the tokenizer in a message to the user."""
    return tokenizer.name_or_path or type(tokenizer).__name__


class ChatTemplate:
    """The chat template of a tokenizer, compiled once.

    Args:
        tokenizer: a tokenizer with a chat template.
        text: the template, where the tokenizer has several.

    Attributes:
        text: the template that is rendered; today's date in it is `DAY`.
        wants_parts: whether texts must be lists of parts.
        wants_json_arguments: whether arguments of tool calls must be JSON in a string.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
        self.tokenizer = tokenizer
        self.text = with_fixed_day(text)
        self.has_generation_blocks = bool(GENERATION_BLOCK.search(self.text))
        self._special = dict(tokenizer.special_tokens_map)
        self._compiled = self._compile()
        self._variables = {**self._compiled.globals, "tools": None, "documents": None, **self._special}
        self._is_direct = self.wants_parts = self.wants_json_arguments = False
        self.wants_parts = self._find_wants_parts()
        self.wants_json_arguments = self._find_wants_json_arguments()
        self._is_direct = self._find_is_direct()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """What `apply_chat_template` gives; plain messages go straight to the compiled template.

        Raises:
            EncodingError: the template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            if self._is_direct and not tools and all(len(message) == 2 for message in messages):
                return self._render_directly(messages, add_generation_prompt)
            return self._apply(messages, tools, add_generation_prompt)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            problem = f"the chat template cannot render it: {type(error).__name__}: {str(error).rstrip('.')}"
            remedy = "Mend the row (roles, their order, missing keys) or choose another data.chat_template"
            raise EncodingError("messages", problem, remedy) from error

    def try_render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str | None:
        """As `render`; None if the template refuses the messages."""
        try:
            return self.render(messages, tools, add_generation_prompt=add_generation_prompt)
        except EncodingError:
            return None

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
    def turn_format(self) -> TurnFormat:
        """What the template writes around messages."""
        return learn_turn_format(self)

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
        prepared = [dict(message) for message in messages]
        for message in prepared:
            if self.wants_parts:
                message["content"] = [{"type": "text", "text": message["content"]}]
            if self.wants_json_arguments and message.get("tool_calls"):
                message["tool_calls"] = [_with_json_arguments(call) for call in message["tool_calls"]]
        return prepared

    def _find_wants_parts(self) -> bool:
        """Whether the template shows the text of a message only if it is a list of parts, as of a vision model."""
        shown = []
        for self.wants_parts in (False, True):
            shown.append(STAND_IN in (self.try_render([{"role": "user", "content": STAND_IN}]) or ""))
        return shown == [False, True]

    def _find_wants_json_arguments(self) -> bool:
        """Whether the template writes arguments of tool calls right only if they are JSON in a string."""
        arguments = {"key": STAND_IN}
        shown = []
        for self.wants_json_arguments in (False, True):
            shown.append(self.try_render([{"role": "user", "content": "x"}, call_turn(arguments)]) or "")
        is_wrong = STAND_IN not in shown[0] or repr(arguments) in shown[0]
        return is_wrong and json.dumps(arguments) in shown[1]

    def _find_is_direct(self) -> bool:
        """Whether the compiled template alone gives what `apply_chat_template` gives."""
        if self.wants_parts:
            return False
        messages = [{"role": "user", "content": STAND_IN}]
        self._is_direct = True
        direct = self.try_render(messages, add_generation_prompt=True)
        # One that refuses a lone user turn refuses it either way.
        return direct is None or direct == self._apply(messages, None, True)


def _with_json_arguments(call: dict[str, Any]) -> dict[str, Any]:
    holder = call.get("function", call)
    if not isinstance(holder.get("arguments"), dict):
        return call
    changed = {**holder, "arguments": json.dumps(holder["arguments"], ensure_ascii=False)}
    return {**call, "function": changed} if "function" in call else changed


def turn_end_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The last tokens of what the tokenizer's chat template writes to end turns of the assistant."""
    if not tokenizer.chat_template:
        return frozenset()
    turn_format = ChatTemplate(tokenizer, tokenizer.get_chat_template()).turn_format
    marks = {*turn_format.ends.values(), turn_format.last_ends.get("text", "")} - {""}
    if turn_format.last_ends.get("text"):
        marks |= {*turn_format.last_ends.values()} - {""}
    encode = tokenizer.backend_tokenizer.encode
    return frozenset(ids[-1] for mark in marks if (ids := encode(mark, add_special_tokens=False).ids))
