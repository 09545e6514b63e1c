"""Conversations to token ids and labels.

Each conversation is rendered once by the tokenizer's own chat template and tokenized once. Which characters the
assistant wrote is found by rendering its prefixes; character offsets carry that over to tokens. So the mask goes by
position and never by token id, which keeps the end-of-turn label where the padding token is the same token.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.messages import Conversation, Message
from lit_ift.data.rows import Example
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Half-open range of characters."""

TEMPLATE_FOLDER: Final = Path(__file__).parent / "templates"

NO_TEMPLATE_REMEDY: Final = "Set data.chat_template to a built-in name (chatml, zephyr), a file or a template text"


def encode_conversation(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", *, max_length: int, origin: str
) -> Example:
    """Tokenize a conversation; the targets are the assistant's turns up to and with their end-of-turn token.

    A mere prompt becomes what `encode_prompt` gives, without targets.

    Args:
        conversation: what to encode.
        tokenizer: a fast tokenizer with a chat template.
        max_length: longest allowed row [tokens]; the end is cut off.
        origin: where the row came from; becomes `Example.row_id`.

    Raises:
        RowError: the template cannot render the row, its targets cannot be located, no target is left, or a mere
            prompt is too long.
        UserError: the tokenizer or its template is unfit.
    """
    result = encode_conversations([conversation], tokenizer, max_length=max_length, origins=[origin])[0]
    if isinstance(result, RowError):
        raise result
    return result


def encode_conversations(
    conversations: Sequence[Conversation],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    origins: Sequence[str],
) -> list[Example | RowError]:
    """`encode_conversation` for many at once, which the tokenizer does in parallel.

    Returns:
        for each conversation its example, or the error that it would have raised.

    Raises:
        UserError: the tokenizer or its template is unfit.
    """
    check_tokenizer(tokenizer)
    rendered = [
        _try_render(conversation, tokenizer, origin)
        for conversation, origin in zip(conversations, origins, strict=True)
    ]
    texts = [item[0] for item in rendered if not isinstance(item, RowError)]
    encoded = iter(_tokenize(texts, tokenizer))
    results: list[Example | RowError] = []
    for conversation, item, origin in zip(conversations, rendered, origins, strict=True):
        if isinstance(item, RowError):
            results.append(item)
            continue
        text, spans = item
        ids, offsets = next(encoded)
        _check_single_bos(ids, tokenizer)
        try:
            if conversation.is_prompt:
                results.append(_prompt_example(ids, max_length, origin))
            else:
                results.append(_label(text, spans, ids, offsets, max_length, origin))
        except RowError as error:
            results.append(error)
    return results


def encode_prompt(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[int]:
    """Token ids of `messages` with the header of the assistant's next turn: what the model is asked to continue.

    Raises:
        UserError: the tokenizer has no chat template, or the template cannot render the messages.
    """
    check_tokenizer(tokenizer)
    text = _render(messages, tokenizer, tools, add_generation_prompt=True, origin="prompt")
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    _check_single_bos(ids, tokenizer)
    return ids


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
        raise UserError(f"The tokenizer {_name(tokenizer)} has no chat template. {NO_TEMPLATE_REMEDY}.")
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {_name(tokenizer)} is a slow one, which cannot tell which characters a token covers. "
            "Use a model that ships a tokenizer.json."
        )


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _tokenize(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[list[int], list[Span]]]:
    if not texts:
        return []
    # The template already wrote every special token; adding them again would double the BOS.
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def _check_single_bos(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise UserError(
            f"Conversations start with two {tokenizer.bos_token!r} tokens. Both the chat template and the tokenizer "
            f"{_name(tokenizer)} write one: remove it from the chat template (data.chat_template)."
        )


def _try_render(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", origin: str
) -> tuple[str, list[Span]] | RowError:
    try:
        text = _render(
            conversation.messages,
            tokenizer,
            conversation.tools,
            add_generation_prompt=conversation.is_prompt,
            origin=origin,
        )
        spans = _assistant_spans(conversation, text, tokenizer, origin)
        _check_rendering(conversation, text, spans, origin)
    except RowError as error:
        return error
    return text, spans


def _render(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    tools: Sequence[dict[str, Any]] | None,
    *,
    add_generation_prompt: bool,
    origin: str,
) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateSyntaxError as error:
        raise UserError(
            f"The chat template has a syntax error in line {error.lineno}: {error.message}. Mend it, or choose "
            "another with data.chat_template."
        ) from error
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise RowError(
            origin,
            "messages",
            f"the chat template cannot render it: {type(error).__name__}: {str(error).rstrip('.')}",
            "Mend the row (roles, their order, missing keys) or choose another data.chat_template",
        ) from error
    return text


def _assistant_spans(
    conversation: Conversation, text: str, tokenizer: "PreTrainedTokenizerBase", origin: str
) -> list[Span]:
    """Characters of each trained assistant turn in `text`: after the header, through the end-of-turn mark."""
    spans = []
    for turn in conversation.target_turns:
        before, through = conversation.messages[:turn], conversation.messages[: turn + 1]
        header = _render(before, tokenizer, conversation.tools, add_generation_prompt=True, origin=origin)
        whole = _render(through, tokenizer, conversation.tools, add_generation_prompt=False, origin=origin)
        if not (text.startswith(whole) and whole.startswith(header)):
            return _generation_spans(conversation, text, tokenizer, origin, turn)
        # Templates put a line break after the end-of-turn mark, which the model never needs to write.
        spans.append((len(header), len(whole.rstrip())))
    return spans


def _generation_spans(
    conversation: Conversation, text: str, tokenizer: "PreTrainedTokenizerBase", origin: str, turn: int
) -> list[Span]:
    """The same from the template's ``{% generation %}`` blocks, for templates whose prefixes change."""
    if not re.search(r"\{%-?\s*generation\b", str(tokenizer.chat_template)):
        raise RowError(
            origin,
            f"messages[{turn}]",
            "the chat template renders this turn differently inside the whole conversation (it drops or rewrites "
            "earlier turns), so its tokens cannot be located",
            "Keep only the last assistant turn in such rows, or set data.chat_template to one that renders every "
            "turn alike or marks the answers with {% generation %}",
        )
    encoded = tokenizer.apply_chat_template(
        list(conversation.messages),
        tools=list(conversation.tools) if conversation.tools else None,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
    )
    spans: list[Span] = []
    previous = 0
    for masked, (start, end) in zip(encoded["assistant_masks"], encoded["offset_mapping"], strict=True):
        if masked and previous:
            spans[-1] = (spans[-1][0], end)
        elif masked:
            spans.append((start, end))
        previous = masked
    all_turns = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if len(spans) != len(all_turns):
        raise RowError(
            origin,
            "messages",
            f"the template's {{% generation %}} blocks mark {len(spans)} answers, but there are {len(all_turns)}",
            "Mend the template so that each assistant turn is in a block of its own",
        )
    found = dict(zip(all_turns, spans, strict=True))
    wanted = [found[i] for i in conversation.target_turns]
    return [(start, start + len(text[start:end].rstrip())) for start, end in wanted]


def _check_rendering(conversation: Conversation, text: str, spans: list[Span], origin: str) -> None:
    """The text that is trained on must hold what the assistant said, and the tools must be in the prompt."""
    for turn, (start, end) in zip(conversation.target_turns, spans, strict=True):
        message = conversation.messages[turn]
        if message["content"].strip() not in text[start:end]:
            raise RowError(
                origin,
                f"messages[{turn}].content",
                "the chat template changes or drops the assistant's text",
                "Mend the row or choose another data.chat_template",
            )
        for call in message.get("tool_calls", ()):
            _check_tool_shown(call, text[start:end], origin, f"messages[{turn}].tool_calls")
    for tool in conversation.tools or ():
        _check_tool_shown(tool, text, origin, "tools")


def _check_tool_shown(tool: dict[str, Any], text: str, origin: str, field: str) -> None:
    name = tool.get("function", tool).get("name")
    if not isinstance(name, str) or not name:
        raise RowError(origin, field, "an entry has no function name", "Give each one a name")
    if name not in text:
        raise RowError(
            origin,
            field,
            f"the chat template does not show '{name}'",
            "Choose a data.chat_template that supports tools, or leave out such rows",
        )


def _prompt_example(ids: list[int], max_length: int, origin: str) -> Example:
    if len(ids) > max_length:
        # Without its end, which holds the header of the answer, it would be another question.
        raise RowError(
            origin,
            "messages",
            f"the prompt has {len(ids)} tokens, but max_length={max_length}, and the end of a prompt is never cut off",
            f"Raise data.max_length to at least {len(ids)}, or shorten the prompt",
        )
    return Example(input_ids=list(ids), labels=[IGNORE_INDEX] * len(ids), row_id=origin)


def _label(text: str, spans: list[Span], ids: list[int], offsets: list[Span], max_length: int, origin: str) -> Example:
    labels = [IGNORE_INDEX] * len(ids)
    num_split_starts = 0
    token = 0
    # Zero-width tokens are blanks whose offsets the tokenizer trimmed: they begin where the token before ended.
    ends = [0, *(end for _, end in offsets)]
    begins = [ends[k] if start == end else start for k, (start, end) in enumerate(offsets)]
    for start, end in spans:
        while token < len(ids) and begins[token] < start:
            token += 1
        num_split_starts += token > 0 and offsets[token - 1][1] > start
        first = token
        while token < len(ids) and begins[token] < end:
            labels[token] = ids[token]
            token += 1
        if token == first or offsets[token - 1][1] < end:
            raise RowError(
                origin,
                "messages",
                f"the tokens of the answer do not reach its end ({text[max(start, end - 20) : end]!r})",
                "The tokenizer drops characters; mend the row or use another tokenizer",
            )
    kept = Example(
        input_ids=list(ids[:max_length]),
        labels=labels[:max_length],
        row_id=origin,
        num_cut=max(0, len(ids) - max_length),
        num_split_starts=num_split_starts,
    )
    if kept.num_targets == 0:
        first_target = next((k for k in range(1, len(labels)) if labels[k] != IGNORE_INDEX), len(labels))
        raise RowError(
            origin,
            "messages",
            f"no target is left within max_length={max_length} tokens (the first one is token {first_target + 1} "
            f"of {len(ids)})",
            f"Raise data.max_length to more than {first_target}, or shorten the prompt",
        )
    return kept
