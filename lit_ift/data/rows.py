"""What a row is: before tokenization the answers to one prompt and their worth, after it token ids and labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.example import Example
from lit_ift.data.parse.messages import normalise, prompt_key

RowKind = Literal["instruction", "preference", "unpaired", "scored"]

ROW_KINDS: Final[tuple[RowKind, ...]] = get_args(RowKind)
"""Row kinds by the number that stands for them in batches and stored rows."""

SIDES: Final[dict[RowKind, tuple[str, ...]]] = {
    "instruction": ("answer",),
    "preference": ("chosen", "rejected"),
    "unpaired": ("answer",),
    "scored": ("answer",),
}
"""The answers that rows of each kind have; a preference row may also have a ``gold`` one."""

ANSWER_SIDES: Final = ("answer", "chosen", "rejected", "gold", "mismatched")
"""Sides by the number that stands for them in batches. A mismatched one is the answer to another row's prompt."""


@dataclass(frozen=True)
class Document:
    """A raw text to learn, or in rows that need no answer one to go on from.

    Args:
        text: all of it, without control tokens.
    """

    text: str


Side = Conversation | Document
"""What a side of a row may be."""


@dataclass(frozen=True)
class Row:
    """One checked row: the answers to one prompt and what is known of their worth.

    Args:
        kind: which of the other fields there are.
        origin: where it came from, as ``file:line`` or ``source#index``.
        sides: a conversation for each name in ``SIDES[kind]``, and perhaps ``gold``, in that order. All begin with
            the same prompt. An instruction row may have a document instead.
        score: scored: worth of the answer in [0, 1]; unpaired: 1 for a good answer, 0 for a bad one; preference: how
            likely the chosen answer is the better one, in [0.5, 1], None where it was simply chosen.
    """

    kind: RowKind
    origin: str
    sides: Mapping[str, Side]
    score: float | None = None

    @property
    def key(self) -> str:
        """Equal for rows that ask the same thing or, without a question, say it; case and white space aside."""
        side = next(iter(self.sides.values()))
        return normalise(side.text) if isinstance(side, Document) else prompt_key(side)

    @property
    def is_text(self) -> bool:
        """Whether it is a document rather than a conversation."""
        return any(isinstance(side, Document) for side in self.sides.values())


@dataclass(frozen=True)
class EncodedRow:
    """A `Row` whose conversations are tokenized.

    Args:
        kind: as in `Row`.
        row_id: the row's origin.
        sides: an example for each conversation of the row, in the same order.
        score: as in `Row`.
    """

    kind: RowKind
    row_id: str
    sides: Mapping[str, Example]
    score: float | None = None

    @property
    def num_tokens(self) -> int:
        """Input tokens of all sides."""
        return sum(len(example.input_ids) for example in self.sides.values())

    def as_dummy(self) -> "EncodedRow":
        """The same tokens with nothing to train on, and without an id."""
        return replace(self, row_id="", sides={name: example.as_dummy() for name, example in self.sides.items()})
