"""Encoded rows in colour: what is trained on, what is prompt, what is padding."""

import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from lit_ift.chat.example import Example
from lit_ift.chat.turn_format import added_tokens_pattern
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.report.builder import control_ids
from lit_ift.data.rows import ANSWER_SIDES, EncodedRow
from lit_ift.errors import UserError, escaped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_ift.data.batch.dataset import EncodedDataset

State = Literal["prompt", "trained", "padding"]
Mark = Literal["", "control", "lookalike"]

STYLES: Final[dict[str, str]] = {
    "prompt": "bright_black",
    "trained": "black on green",
    "padding": "bright_black strike",
    "control": "bold magenta",
    "control trained": "bold black on bright_magenta",
    "lookalike": "bold bright_white on red",
}

LEGEND: Final[dict[str, str]] = {
    "trained": "trained",
    "prompt": "prompt",
    "padding": "padding",
    "control": "control token",
    "control trained": "control token, trained",
    "lookalike": "looks like a control token, but is text",
}

MOST_BYTES: Final = 4
"""Tokens that may share one character: UTF-8 takes four bytes at most."""

PIECE: Final = re.compile(r" \(piece \d+ of \d+\)$")
"""What a piece's id ends with, after that of the text."""

WHITE: Final = {"\n": "↵\n", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Segment:
    """Tokens that belong together: mostly one, or those that share a character.

    Args:
        ids: the tokens.
        text: what they stand for.
        state: whether they are trained on.
        mark: whether they are a control token, or part of a text that looks like one.
    """

    ids: tuple[int, ...]
    text: str
    state: State
    mark: Mark = ""

    @property
    def style(self) -> str:
        """The key of the segment's style in `STYLES` and `LEGEND`."""
        if self.mark == "control" and self.state != "padding":
            return "control trained" if self.state == "trained" else "control"
        return self.mark if self.mark == "lookalike" else self.state


@dataclass(frozen=True)
class Shown:
    """A conversation to show.

    Args:
        title: the row's id, and the side where it has several.
        example: its tokens.
        attention_mask: 0 on padding; None where there is none.
    """

    title: str
    example: Example
    attention_mask: Sequence[int] | None = None

    @property
    def figures(self) -> str:
        """Counts of tokens."""
        example, mask = self.example, self.attention_mask
        padding = 0 if mask is None else len(mask) - sum(mask)
        said = [f"{len(example.input_ids) - padding:,} tokens", f"{example.num_targets:,} trained"]
        said += [f"{padding:,} padding"] * (padding > 0)
        said += [f"{example.num_cut:,} cut off"] * (example.num_cut > 0)
        return ", ".join(said)


class Segmenter:
    """Splits encoded conversations into segments.

    Args:
        tokenizer: the one that encoded them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.control_ids = control_ids(tokenizer)

    @cached_property
    def _control_text(self) -> re.Pattern[str]:
        texts = {self.tokenizer.decode([token_id]) for token_id in self.control_ids}
        return added_tokens_pattern(text for text in texts if text.strip())

    def segments(self, example: Example, attention_mask: Sequence[int] | None = None) -> list[Segment]:
        """The conversation in order; the texts together are what its tokens stand for.

        Args:
            example: what to show.
            attention_mask: 0 on padding, length T; without it there is none.
        """
        mask = [1] * len(example.input_ids) if attention_mask is None else attention_mask
        states: list[State] = [
            "padding" if not real else "prompt" if label == IGNORE_INDEX else "trained"
            for label, real in zip(example.labels, mask, strict=True)
        ]
        return self._with_lookalikes(list(self._segments(example.input_ids, states)))

    def _segments(self, ids: Sequence[int], states: Sequence[State]) -> Iterator[Segment]:
        context = begin = 0
        for end in range(1, len(ids) + 1):
            last = end == len(ids)
            is_control = ids[end - 1] in self.control_ids
            text = self._text(ids[context:end])[len(self._text(ids[context:begin])) :]
            closes = last or is_control or ids[end] in self.control_ids or states[end] != states[end - 1]
            if text.endswith("\N{REPLACEMENT CHARACTER}") and not closes and end - begin < MOST_BYTES:
                continue  # The character goes on in the next token.
            yield Segment(tuple(ids[begin:end]), text, states[end - 1], "control" if is_control else "")
            # One segment back, since some tokenizers drop a blank at the start of a text.
            context, begin = begin, end

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _with_lookalikes(self, segments: list[Segment]) -> list[Segment]:
        # A control token ends the text: what looks like one must lie between two of them.
        text = "".join("\0" * len(s.text) if s.mark == "control" else s.text for s in segments)
        spans = [match.span() for match in self._control_text.finditer(text)]
        marked = []
        position = 0
        for segment in segments:
            begin, position = position, position + len(segment.text)
            looks_alike = any(start < position and begin < end for start, end in spans)
            marked.append(replace(segment, mark="lookalike") if looks_alike else segment)
        return marked


def folded(segments: Sequence[Segment], *, tokens: bool) -> list[Segment]:
    """`segments` as they are shown: every run of equal padding is told in one, with its length.

    Args:
        segments: of a conversation.
        tokens: keep tokens apart; otherwise neighbours of one style are joined, so that blanks show as one run.
    """
    told = []
    for (state, ids), run in groupby(segments, key=lambda segment: (segment.state, segment.ids)):
        equal = list(run)
        if state == "padding" and len(equal) > 1:
            told.append(replace(equal[0], ids=ids, text=f"{equal[0].text}×{len(equal)}"))
        else:
            told += equal
    if tokens:
        return told
    runs = (list(run) for _, run in groupby(told, key=lambda segment: (segment.state, segment.mark)))
    return [
        replace(run[0], ids=tuple(i for s in run for i in s.ids), text="".join(s.text for s in run)) for run in runs
    ]


def visible(text: str, *, blanks: bool = False) -> str:
    """`text` with white space at its borders, and everything that would not print, made visible.

    Args:
        text: what to show.
        blanks: make every blank visible, not only those in rows and at the end of a line.
    """
    text = text.replace(" ", "·") if blanks else re.sub(r" {2,}| +(?=\n)", lambda m: "·" * len(m[0]), text)
    return "".join(WHITE.get(c) or (c if c.isprintable() or c == " " else _escaped(c)) for c in text)


def _escaped(character: str) -> str:
    # Among them those that start terminal commands or turn the direction of writing.
    return "·" if unicodedata.category(character) == "Zs" else escaped(character)


def pick(dataset: "EncodedDataset", *, rows: int, row_id: str | None = None, seed: int | None = None) -> list[Shown]:
    """Rows of an `EncodedDataset`: the one of an id, some drawn at random, or the first ones.

    Args:
        dataset: the rows.
        rows: how many.
        row_id: the id, or how it ends after a folder; of a text that was split all pieces are shown.
        seed: draws rows at random.

    Raises:
        UserError: no row has the id.
    """
    if row_id is not None:
        pieces: list[Shown] = []
        for index in range(len(dataset)):
            found = shown(dataset.rows[index])
            name = PIECE.sub("", found[0].example.row_id)
            if name == row_id or name.endswith(f"/{row_id}"):
                pieces += found
            elif pieces:
                break
        if pieces:
            return pieces
        raise UserError(
            f"None of the {len(dataset):,} encoded rows has the id {row_id!r}. Ids look like "
            f"{dataset.rows[0].row_id!r}; `lit-ift data check` says whether the row was skipped, and why."
        )
    indices = range(min(rows, len(dataset)))
    chosen = indices if seed is None else random.Random(seed).sample(range(len(dataset)), len(indices))
    return [side for index in chosen for side in shown(dataset.rows[index])]


def shown(row: Example | EncodedRow) -> list[Shown]:
    """The conversations of a row."""
    if isinstance(row, Example):
        return [Shown(row.row_id, row)]
    score = "" if row.score is None else f", score {row.score:g}"
    return [
        Shown(f"{row.row_id} ({side}{score})" if len(row.sides) > 1 or score else row.row_id, example)
        for side, example in row.sides.items()
    ]


def shown_batch(batch: Mapping[str, Any], *, rows: int) -> list[Shown]:
    """The first rows of a batch as the model gets it, padding included; of every answer that they have.

    Packed examples that share a row of the batch are shown as that row, with the names of them all.
    """
    names = _example_names(batch)
    packed = "sequence_ids" in batch
    masks = batch["sequence_ids"] >= 0 if packed else batch["attention_mask"].bool()
    if packed:
        members = [list(dict.fromkeys(ids[ids >= 0].tolist())) for ids in batch["sequence_ids"]]
        titles = [", ".join(names[i] for i in row) for row in members[:rows]]
    else:
        answers = batch.get("answer_rows")
        titles = names[: rows if answers is None else int((answers < rows).sum())]
    return [
        Shown(title, Example(batch["input_ids"][i].tolist(), batch["labels"][i].tolist(), title), masks[i].tolist())
        for i, title in enumerate(titles)
    ]


def _example_names(batch: Mapping[str, Any]) -> list[str]:
    """The row of each example of a batch, and the side where a row has several."""
    if "answer_rows" not in batch:
        return list(batch["row_ids"])
    rows = batch["answer_rows"].tolist()
    sides = [ANSWER_SIDES[side] for side in batch["answer_sides"].tolist()]
    ids = [batch["row_ids"][row] for row in rows]
    return [f"{ids[i]} ({side})" if rows.count(rows[i]) > 1 else ids[i] for i, side in enumerate(sides)]


def legend() -> Text:
    """What the colours mean."""
    line = Text()
    for style, words in LEGEND.items():
        line.append(f" {words} ", style=STYLES[style]).append("  ")
    return line.append("↵ line break  ⇥ tab  · blanks", style="bright_black")


def render(conversation: Shown, segmenter: Segmenter, *, tokens: bool = False) -> RenderableType:
    """A conversation for the terminal.

    Args:
        conversation: what to show.
        segmenter: for its tokenizer.
        tokens: show the borders of tokens and their ids.
    """
    head = Text(f"\n{visible(conversation.title)}", style="bold").append(f"  {conversation.figures}", style="not bold")
    body = Text()
    for segment in folded(segmenter.segments(conversation.example, conversation.attention_mask), tokens=tokens):
        style = STYLES[segment.style]
        text = visible(segment.text, blanks=tokens)
        if not tokens:
            body.append(text, style=style)
            continue
        breaks = len(text) - len(text.rstrip("\n"))
        body.append(text.rstrip("\n"), style=style)
        body.append(f" {','.join(map(str, segment.ids))}|" + "\n" * breaks, style="cyan")
    return Group(head, body)
