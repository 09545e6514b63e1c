"""Sides of rows to token ids: conversations by the chat template, documents as they are."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

from lit_ift.chat.control_tokens import ControlTokens
from lit_ift.chat.conversation import Conversation
from lit_ift.chat.dropped_characters import DroppedCharacters
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.chat.templates import adds_bos, check_fast, tokenizer_name
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import Document, Side
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Batch = Sequence[tuple[Side, str]]
"""Sides with the origins of their rows."""


class SideEncoder:
    """Tokenizes sides; those of a batch are either all conversations or all documents.

    Args:
        tokenizer: a fast tokenizer; with a chat template if there are conversations.
        needs_answer: whether documents are to be learned; otherwise they are prompts to go on from.

    Raises:
        UserError: the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, needs_answer: bool = True) -> None:
        check_fast(tokenizer)
        self.tokenizer = tokenizer
        self.needs_answer = needs_answer

    def encode_batches(self, batches: Iterable[Batch]) -> Iterator[list[Example | RowError]]:
        """The example of each side, or why it has none, for batches as they come.

        Raises:
            UserError: the tokenizer, or its template, is unfit.
        """
        # A batch without rows needs no chat template.
        for are_texts, run in groupby(batches, lambda batch: not batch or isinstance(batch[0][0], Document)):
            if are_texts:
                yield from self._encode_documents(run)
            else:
                of_conversations = cast(Iterable[Sequence[tuple[Conversation, str]]], run)
                yield from ConversationEncoder(self.tokenizer).encode_batches(of_conversations)

    def _encode_documents(self, batches: Iterable[Batch]) -> Iterator[list[Example | RowError]]:
        encoder: DocumentEncoder | None = None
        for batch in batches:
            encoder = encoder or (DocumentEncoder(self.tokenizer, needs_answer=self.needs_answer) if batch else None)
            yield encoder.encode(cast(Sequence[tuple[Document, str]], batch)) if encoder else []


class DocumentEncoder:
    """Tokenizes raw texts: the bos_token where the tokenizer writes one by itself, the text, and the eos_token.

    Control tokens that a text spells out are encoded as text. Every token but the first is a target.

    Args:
        tokenizer: a fast tokenizer.
        needs_answer: false makes prompts of the texts: without an eos_token and without targets.

    Raises:
        UserError: the tokenizer has no eos_token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, needs_answer: bool = True) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._dropped_characters = DroppedCharacters(self._backend)
        self._controls = ControlTokens(tokenizer, ())
        self._start: list[int] = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
        self._end: list[int] = []
        self._needs_answer = needs_answer
        if needs_answer:
            if tokenizer.eos_token_id is None:
                raise UserError(
                    f"The tokenizer {tokenizer_name(tokenizer)} has no eos_token, which is to close each text. Use a "
                    "model whose tokenizer has one."
                )
            self._end = [tokenizer.eos_token_id]

    def encode(self, documents: Sequence[tuple[Document, str]]) -> list[Example | RowError]:
        """The example of each document at full length, or why it has none.

        Args:
            documents: with their origins, which become `Example.row_id`.
        """
        backend = self._backend
        backend.no_truncation()
        backend.no_padding()
        kept, backend.encode_special_tokens = backend.encode_special_tokens, True
        try:
            encodings = backend.encode_batch([document.text for document, _ in documents], add_special_tokens=False)
        finally:
            backend.encode_special_tokens = kept
        return [
            self._example(document.text, encoding, origin)
            for (document, origin), encoding in zip(documents, encodings, strict=True)
        ]

    def _example(self, text: str, encoding: "Encoding", origin: str) -> Example | RowError:
        lost = self._dropped_characters.lost_byte(text)
        if self._dropped_characters.needs_offsets:
            lost = self._dropped_characters.lost_between(text, encoding.offsets)
        if lost or not self._controls.id_set.isdisjoint(encoding.ids):
            what = f"{lost!r} (U+{ord(lost):04X})" if lost else "a character of it"
            return RowError(
                origin,
                "text",
                f"the tokenizer has no token for {what}",
                "Mend the text, leave it out, or use another tokenizer",
                reason="template",
            )
        ids = [*self._start, *encoding.ids, *self._end]
        labels = [IGNORE_INDEX, *ids[1:]] if self._needs_answer else [IGNORE_INDEX] * len(ids)
        return Example(ids, labels, origin, num_lookalikes=self._controls.count(text))
