"""Conversations to token ids and labels.

Each conversation is rendered once by the tokenizer's own chat template and tokenized once. Which characters the
assistant wrote is found in two independent ways that must agree (`spans`); character offsets carry that over to tokens.
So the mask goes by position and never by token id, which keeps the end-of-turn label where the padding token is the
same token. Control tokens that a message spells out are encoded as text (`control_tokens`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lit_ift.chat.control_tokens import LEFT, RESERVED, RIGHT, ControlTokens, keys_in, strings_in
from lit_ift.chat.conversation import (
    Conversation,
    EncodingError,
    Message,
    check_has_target,
    check_not_templated,
    heads_of,
)
from lit_ift.chat.dropped_characters import DroppedCharacters
from lit_ift.chat.example import Example
from lit_ift.chat.markers import MARKER
from lit_ift.chat.spans import Location, locate
from lit_ift.chat.templates import (
    ChatTemplate,
    Span,
    adds_bos,
    check_tokenizer,
    is_built_in_template,
    resolve_chat_template,
    tokenizer_name,
    with_bos,
    with_fixed_day,
)
from lit_ift.chat.token_ranges import TokenRange, TokenRanges
from lit_ift.constants import IGNORE_INDEX
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ConversationEncoder",
    "adds_bos",
    "check_tokenizer",
    "is_built_in_template",
    "resolve_chat_template",
    "with_bos",
]

CHUNK: Final = 512
"""Rows that `ConversationEncoder.encode` tokenizes at once, while the next ones are rendered."""


@dataclass(frozen=True)
class _Hidden:
    """The rendering of a row with look-alikes, ready for the tokenizer.

    Args:
        text: placeholders stand for the template's control tokens.
        saved: for each placeholder the position after it and the characters that it saves.
        num_lookalikes: control tokens that messages spell.
    """

    text: str
    saved: list[tuple[int, int]]
    num_lookalikes: int

    def position(self, position: int) -> int:
        """Where a position of the rendering is in `text`; one inside a control token moves to its end."""
        for end, count in self.saved:
            if position < end + count:
                break
            position -= count
        return position


@dataclass(frozen=True)
class _Rendered:
    """A rendered row before its tokens are known.

    Args:
        location: text and spans; None for a mere prompt's spans.
        num_controls: control tokens that the template wrote.
        hidden: for rows with look-alikes.
    """

    location: Location
    num_controls: int
    hidden: _Hidden | None


class ConversationEncoder:
    """Tokenizes conversations and labels the assistant's turns through their end-of-turn tokens.

    It holds what is learned about the tokenizer and its chat template; build another one after changing either.

    Args:
        tokenizer: a fast tokenizer with a chat template.

    Raises:
        UserError: the tokenizer or its template is unfit.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self._dropped_characters = DroppedCharacters(tokenizer.backend_tokenizer)
        self._templates: dict[bool, ChatTemplate] = {}
        self._controls: dict[bool, ControlTokens] = {}
        self._heads: dict[bool, tuple[str, ...]] = {}
        self._template(has_tools=False)

    def encode(self, conversations: Sequence[Conversation], origins: Sequence[str]) -> list[Example | RowError]:
        """Encode conversations at full length; a mere prompt becomes what `encode_prompt` gives, without targets.

        Args:
            conversations: what to encode.
            origins: where each came from; becomes `Example.row_id`.

        Returns:
            for each conversation its example, or why it has none: the template cannot render it or hides a text
            (reason ``template``), its targets cannot be found in two ways that agree (``mask_disagreement``), or no
            target is left (``no_target``).

        Raises:
            UserError: the tokenizer or its template is unfit.
        """
        rows = list(zip(conversations, origins, strict=True))
        batches = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
        return [result for results in self.encode_batches(batches) for result in results]

    def encode_batches(
        self, batches: Iterable[Sequence[tuple[Conversation, str]]]
    ) -> Iterator[list[Example | RowError]]:
        """`encode` for batches of conversations and origins, as they come.

        A batch is tokenized in a thread of its own while the caller has the one before and the next one is rendered.

        Raises:
            UserError: the tokenizer or its template is unfit.
        """
        self._set_up_backend()
        waiting: deque[tuple[Sequence[tuple[Conversation, str]], list[_Rendered | RowError], Future[list[Encoding]]]]
        waiting = deque()
        with ThreadPoolExecutor(1) as pool:
            for batch in batches:
                rendered = [self._render_row(conversation, origin) for conversation, origin in batch]
                texts = [row.location.text for row in rendered if isinstance(row, _Rendered) and row.hidden is None]
                waiting.append((batch, rendered, pool.submit(self._tokenize, texts)))
                if len(waiting) > 1:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())

    def encode_prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of `messages` with the header of the assistant's next turn.

        Raises:
            UserError: the template cannot render the messages or hides a text.
        """
        prompt = Conversation(messages, tools=tools, num_prompt_messages=len(messages))
        self._set_up_backend()
        try:
            rendered = self._render(prompt)
            encoding = self._tokenize([rendered.location.text])[0] if rendered.hidden is None else None
            return self._example(prompt, rendered, encoding, "prompt").input_ids
        except EncodingError as error:
            raise error.of_row("prompt") from error.__cause__

    def _template(self, *, has_tools: bool) -> ChatTemplate:
        """The template for rows with or without tools, which differ for some tokenizers."""
        if has_tools not in self._templates:
            text = self.tokenizer.get_chat_template(tools=[{}] if has_tools else None)
            other = self._templates.get(not has_tools)
            same = other is not None and other.text == with_fixed_day(text)
            template = other if same and other is not None else ChatTemplate(self.tokenizer, text)
            self._templates[has_tools] = template
            self._heads[has_tools] = heads_of(template.turn_format.headers.get("user", ()))
            self._controls[has_tools] = (
                self._controls[not has_tools]
                if same
                else ControlTokens(self.tokenizer, template.turn_format.structure())
            )
        return self._templates[has_tools]

    def _set_up_backend(self) -> None:
        # As transformers does in every call: settings of a tokenizer.json must not cut or pad.
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False

    def _tokenize(self, texts: list[str]) -> "list[Encoding]":
        # The template already wrote every special token; adding them again would double the BOS.
        encodings: list[Encoding] = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return encodings

    def _render_row(self, conversation: Conversation, origin: str) -> _Rendered | RowError:
        try:
            check_has_target(conversation)
            self._template(has_tools=bool(conversation.tools))
            check_not_templated(conversation, self._heads[bool(conversation.tools)])
            return self._render(conversation)
        except EncodingError as error:
            return error.of_row(origin)

    def _render(self, conversation: Conversation) -> _Rendered:
        template = self._template(has_tools=bool(conversation.tools))
        controls = self._controls[bool(conversation.tools)]
        strings = [message["content"] for message in conversation.messages]
        for message in conversation.messages:
            if len(message) > 2:
                strings += strings_in(message)
        if conversation.tools:
            strings += strings_in(conversation.tools)
        spells_control = controls.is_in(strings)
        for pattern in (MARKER, RESERVED) if spells_control else (MARKER,):
            found = next((match for text in strings if not text.isascii() and (match := pattern.search(text))), None)
            seen = f"{found.group()!a}" if found else ""
            _require(found is None, f"it holds the private-use characters {seen}, which mark texts here")
        location = locate(conversation, template)
        if spells_control:
            return self._hide(conversation, location, template, controls)
        num_controls = controls.count(location.text)
        # Markers part what the template writes from texts: a token across them would be part of both.
        _require(
            controls.count(location.marked) == num_controls,
            "the end of a text and what the template writes after it spell a control token",
        )
        return _Rendered(location, num_controls, None)

    def _hide(
        self, conversation: Conversation, location: Location, template: ChatTemplate, controls: ControlTokens
    ) -> _Rendered:
        fenced = template.render(
            controls.fence([dict(message) for message in conversation.messages]),
            controls.fence(list(conversation.tools)) if conversation.tools else None,
            add_generation_prompt=conversation.is_prompt,
        )
        is_same = fenced.replace(LEFT, "").replace(RIGHT, "") == location.text
        _require(is_same, "the chat template acts on a control token that a message spells")
        text, saved, num_fenced = controls.hide(fenced)
        is_whole = LEFT not in text and RIGHT not in text
        _require(is_whole, "the chat template shows a part of a control token that a message spells")
        keys = keys_in([conversation.messages, conversation.tools])
        _require(not controls.is_in(keys), "a key of an object in it spells a control token")
        return _Rendered(location, len(saved), _Hidden(text, saved, num_fenced))

    def _finished(
        self,
        batch: Sequence[tuple[Conversation, str]],
        rendered: list[_Rendered | RowError],
        encodings: "Future[list[Encoding]]",
    ) -> list[Example | RowError]:
        tokens = iter(encodings.result())
        results: list[Example | RowError] = []
        for (conversation, origin), row in zip(batch, rendered, strict=True):
            if isinstance(row, RowError):
                results.append(row)
                continue
            encoding = next(tokens) if row.hidden is None else None
            try:
                results.append(self._example(conversation, row, encoding, origin))
            except EncodingError as error:
                results.append(error.of_row(origin))
        return results

    def _example(self, conversation: Conversation, row: _Rendered, encoding: "Encoding | None", origin: str) -> Example:
        controls = self._controls[bool(conversation.tools)]
        location = row.location
        if row.hidden is None:
            assert encoding is not None
            text, place = location.text, None
            ids: list[int] = encoding.ids
            tokens = TokenRanges(encoding, None)
        else:
            text, place = row.hidden.text, row.hidden.position
            ids, offsets = controls.encode_hidden(text)
            tokens = TokenRanges(None, offsets)

        def ranges_of(spans: Sequence[Span]) -> list[TokenRange]:
            placed = spans if place is None else [(place(start), place(end)) for start, end in spans]
            return [tokens.range(span, text) for span in placed]

        self._check_single_bos(ids)
        lost = self._dropped_characters.lost_byte(location.text)
        if self._dropped_characters.needs_offsets:
            lost = self._dropped_characters.lost_between(text, offsets if encoding is None else encoding.offsets)
        if lost:
            problem = f"the tokenizer has no token for {lost!r} (U+{ord(lost):04X}) and drops it"
            raise EncodingError("messages", problem, "Mend the row, leave it out, or use another tokenizer")
        num_controls = sum(map(controls.id_set.__contains__, ids))
        _require(
            num_controls == row.num_controls,
            f"the template writes {row.num_controls} control tokens, but {num_controls} were encoded: the tokenizer "
            "makes control tokens of plain text, or has no token for a character",
        )
        ranges = ranges_of(location.by_markers)
        if location.by_markers != location.confirmed:
            _check_agreement(conversation, location, ranges, ranges_of(location.confirmed))
        weights = _weights(conversation, ranges, len(ids))
        if conversation.trains_all:
            located = dict(zip(conversation.located_turns, ranges, strict=True))
            off = [found for turn, found in located.items() if turn in conversation.untrained]
            if conversation.first_answer is not None:
                off.append((0, located[conversation.first_answer][0], False))
            labels = _all_but(ids, off + ranges_of(location.untrained))
            ranges = []
        else:
            labels = [IGNORE_INDEX] * len(ids)
        for begin, end, _ in ranges:
            labels[begin:end] = ids[begin:end]
        example = Example(
            input_ids=ids,
            labels=labels,
            row_id=origin,
            num_split_starts=sum(is_split for _, _, is_split in ranges),
            num_lookalikes=row.hidden.num_lookalikes if row.hidden else 0,
            num_dropped_thoughts=location.num_dropped_thoughts,
            weights=weights,
        )
        if not conversation.is_prompt and not example.num_targets:
            raise EncodingError(
                "messages", "no token is left to train on", "Give the row an answer or remove it", "no_target"
            )
        return example

    def _check_single_bos(self, ids: list[int]) -> None:
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise UserError(
                f"Conversations start with two {self.tokenizer.bos_token!r} tokens. Both the chat template and the "
                f"tokenizer {tokenizer_name(self.tokenizer)} write one: remove it from the chat template "
                "(data.chat_template)."
            )


def _weights(conversation: Conversation, ranges: list[TokenRange], length: int) -> list[float] | None:
    """How much each token counts, given where the located turns are; None if all count 1."""
    if not conversation.weights:
        return None
    weights = [1.0] * length
    for turn, (begin, end, _) in zip(conversation.located_turns, ranges, strict=True):
        weights[begin:end] = [conversation.weights.get(turn, 1.0)] * (end - begin)
    return weights


def _all_but(ids: list[int], untrained: list[TokenRange]) -> list[int]:
    """Labels of all tokens but the first, without the untrained ranges."""
    labels = [IGNORE_INDEX, *ids[1:]]
    for begin, end, is_split in untrained:
        first = begin - is_split  # A token that holds the start of such a turn is none to train on.
        labels[first:end] = [IGNORE_INDEX] * (end - first)
    return labels


def _check_agreement(
    conversation: Conversation, location: Location, first: list[TokenRange], second: list[TokenRange]
) -> None:
    spans = zip(location.by_markers, location.confirmed, strict=True)
    for turn, one, other, (span, other_span) in zip(conversation.located_turns, first, second, spans, strict=True):
        if one[:2] != other[:2]:
            raise EncodingError(
                f"messages[{turn}]",
                f"two ways to find the answer's tokens differ: {_ends(location.text, span)} by marks, "
                f"{_ends(location.text, other_span)} by a second way",
                "Leave out the row or choose another data.chat_template",
                "mask_disagreement",
            )


def _ends(text: str, span: Span) -> str:
    found = text[span[0] : span[1]]
    return repr(found if len(found) < 200 else f"{found[:90]} … {found[-90:]}")


def _require(is_clear: bool, problem: str) -> None:
    """Refuse a conversation of which texts and control tokens cannot be told apart."""
    if not is_clear:
        problem = f"text and control tokens cannot be told apart: {problem}"
        raise EncodingError("messages", problem, "Mend the row or leave it out")
