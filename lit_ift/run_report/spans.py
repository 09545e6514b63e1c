"""Rows as pieces of text for the page: colours, numbers on hover, and what the model would have said."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, log2
from typing import Any, Final, Literal, NamedTuple

from lit_ift.chat.example import Example
from lit_ift.data.report.preview import Segment, Segmenter, Shown, folded, shown, visible
from lit_ift.run_report.colours import Scale, limit_of
from lit_ift.run_report.scores import Answer, ReadRow, TokenReading

View = Literal["change", "margin", "surprise", "weight"]
"""What colours show."""

LEGENDS: Final[dict[View, tuple[str, str]]] = {
    "change": ("change of log p", "Blue tokens became more likely by training, orange ones less likely [nats]."),
    "margin": (
        "share in the margin",
        "Blue tokens set the chosen answer further apart from the rejected one than it was before training: chosen "
        "tokens that became more likely, rejected ones that became less likely; orange ones the reverse [nats].",
    ),
    "surprise": ("surprise", "The darker a token, the less likely the model found it: -log p [nats]."),
    "weight": (
        "propagation weight",
        "What a token's loss counts for in IFT's step; 1 is the mean of an answer. Blue tokens count more, because "
        "much loss follows them, orange ones less. The scale is that of powers of two.",
    ),
}
"""Name and meaning of each view."""

SURPRISE: Final = Scale(0.0, 6.0)
WEIGHT: Final = Scale(-2.0, 2.0)
"""Of the weight's logarithm to base 2."""


class Span(NamedTuple):
    """A piece of text.

    Attributes:
        text: as it is shown.
        classes: of the style sheet.
        title: numbers for hovering; empty where there are none.
        instead: what the model would have said; empty where it says the same.
        end: line breaks behind the text.
    """

    text: str
    classes: str
    title: str = ""
    instead: str = ""
    end: str = ""


@dataclass(frozen=True)
class ShownSide:
    """An answer on the page.

    Attributes:
        title: the row's id, and the side where it has several.
        facts: figures of the answer, in words.
        prompt: its text before the first trained token.
        spans: its text from there on.
    """

    title: str
    facts: list[str]
    prompt: list[Span]
    spans: list[Span]


@dataclass(frozen=True)
class ShownRow:
    """A row on the page.

    Attributes:
        facts: figures of the row as a whole, in words.
        sides: its answers.
    """

    facts: list[str]
    sides: list[ShownSide]


@dataclass
class RowSpans:
    """Makes rows ready for the page.

    Args:
        rows: all that are shown; the scale of colours is that of them all.
        tokenizer: that of the model.
    """

    rows: Sequence[ReadRow]
    tokenizer: Any
    segmenter: Segmenter = field(init=False)

    def __post_init__(self) -> None:
        self.segmenter = Segmenter(self.tokenizer)
        self.change = Scale(-(limit := limit_of(list(self._changes()))), limit)

    def views(self) -> dict[View, Scale]:
        """What can be shown in colours, the first one first."""
        found: dict[View, Scale] = {}
        if any(row.before is not None for row in self.rows):
            found["change"] = self.change
            if any(row.row.kind == "preference" for row in self.rows):
                found["margin"] = self.change
        if self.has_weights():
            found["weight"] = WEIGHT
        return {**found, "surprise": SURPRISE}

    def has_weights(self) -> bool:
        """Whether the objective weights tokens."""
        return any(token.weight is not None for answer in self._answers() for token in answer.values())

    def shown(self) -> Iterator[ShownRow]:
        """The rows, one after the other."""
        for read in self.rows:
            sides = []
            for i, (name, side) in enumerate(zip(read.row.sides, shown(read.row), strict=True)):
                before = None if read.before is None else read.before[i]
                sides.append(self._side(side, name, read.answers[i], before))
            yield ShownRow(_pair_facts(read), sides)

    def figures(self) -> list[tuple[str, str]]:
        """What can be said of all tokens together, by name."""
        tokens = [
            (token, side.input_ids[at], None if read.before is None else read.before[i][at])
            for read in self.rows
            for i, side in enumerate(read.row.sides.values())
            for at, token in read.answers[i].items()
        ]
        found = [("rows", f"{len(self.rows):,}"), ("trained tokens", f"{len(tokens):,}")]
        if not tokens:
            return found
        compared = [(now, token_id, before) for now, token_id, before in tokens if before is not None]
        logps = [now.logp for now, _, _ in tokens]
        right = [now.prediction == token_id for now, token_id, _ in tokens]
        if compared:
            changes = [now.logp - before.logp for now, _, before in compared]
            was_right = [before.prediction == token_id for _, token_id, before in compared]
            return [
                *found,
                ("mean log p", f"{_mean([b.logp for _, _, b in compared]):.3f} → {_mean(logps):.3f} nats a token"),
                ("tokens that became more likely", f"{100 * _mean([c > 0 for c in changes]):.1f} %"),
                ("predicted rightly", f"{100 * _mean(was_right):.1f} % → {100 * _mean(right):.1f} %"),
            ]
        return [
            *found,
            ("mean log p", f"{_mean(logps):.3f} nats a token"),
            ("predicted rightly", f"{100 * _mean(right):.1f} %"),
        ]

    def _side(self, side: Shown, name: str, now: Answer, before: Answer | None) -> ShownSide:
        sign = -1 if name == "rejected" else 1
        runs: list[list[Span]] = []
        at, prompt = 0, list[Segment]()
        for segment in self.segmenter.segments(side.example):
            places = range(at, at := at + len(segment.ids))
            trained = [place for place in places if place in now]
            if not trained:
                prompt.append(segment)
                continue
            runs += [self._prompt(prompt), self._token(segment, trained, side.example, now, before, sign)]
            prompt = []
        first, *rest = [*runs, self._prompt(prompt)]
        facts = [side.figures, *_answer_facts(now, before)]
        return ShownSide(visible(side.title), facts, first, [span for run in rest for span in run])

    def _prompt(self, segments: list[Segment]) -> list[Span]:
        runs = folded(segments, tokens=False) if segments else []
        return [Span(visible(segment.text), f"prompt {segment.mark}".strip()) for segment in runs]

    def _token(
        self, segment: Segment, places: list[int], example: Example, now: Answer, before: Answer | None, sign: int
    ) -> list[Span]:
        """A token, in as many spans as it has lines."""
        here = [now[place] for place in places]
        then = None if before is None else [before[place] for place in places]
        ids = [example.input_ids[place] for place in places]
        logp = sum(token.logp for token in here)
        classes = ["t", f"s{SURPRISE.place(-logp)}"]
        if then is not None:
            change = logp - sum(token.logp for token in then)
            classes += [f"c{self.change.place(change)}", f"m{self.change.place(sign * change)}"]
        weights = [token.weight for token in here if token.weight is not None]
        if weights:
            weight = _mean(weights)
            classes.append(f"w{WEIGHT.place(log2(weight) if weight > 0 else WEIGHT.low)}")
        if segment.mark:
            classes.append(segment.mark)
        title = "\n".join(self._title(segment, ids, here, then, sign))
        said = [token.prediction for token in here]
        lines = visible(segment.text).split("\n")
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
        breaks = visible(segment.text).count("\n")
        return [
            Span(
                line,
                " ".join(classes),
                title,
                self._said(said) if i == 0 and said != ids else "",
                "\n" if i < breaks else "",
            )
            for i, line in enumerate(lines)
        ]

    def _title(
        self, segment: Segment, ids: list[int], here: list[TokenReading], then: list[TokenReading] | None, sign: int
    ) -> list[str]:
        """Numbers of a token; several tokens that share a character have one line each time."""
        logp = sum(token.logp for token in here)
        lines = [f"{visible(segment.text, blanks=True).strip()}  (token {', '.join(map(str, ids))})"]
        intuited = f"the model says: {self._said([token.prediction for token in here])}"
        weights = [token.weight for token in here if token.weight is not None]
        weight = f"propagation weight {', '.join(f'{w:.2f}' for w in weights)}"
        if then is None:
            lines += [f"log p {logp:.3f} nats, p {exp(logp):.4g}", intuited]
        else:
            was = sum(token.logp for token in then)
            lines += [f"log p {was:.3f} → {logp:.3f} nats ({logp - was:+.3f})", f"p {exp(was):.4g} → {exp(logp):.4g}"]
            lines += [f"{intuited} (before: {self._said([token.prediction for token in then])})"]
            before = [token.weight for token in then if token.weight is not None]
            weight += f" (before: {', '.join(f'{w:.2f}' for w in before)})"
            if sign < 0:
                lines.append(f"share in the margin {was - logp:+.3f} nats")
        return [*lines, weight] if weights else lines

    def _said(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return visible(text, blanks=True).replace("\n", "")

    def _answers(self) -> Iterator[Answer]:
        return (answer for read in self.rows for answer in read.answers)

    def _changes(self) -> Iterator[float]:
        for read in self.rows:
            for now, before in zip(read.answers, read.before or (), strict=False):
                yield from (now[place].logp - before[place].logp for place in now)


def _answer_facts(now: Answer, before: Answer | None) -> list[str]:
    if not now:
        return []
    logp = sum(token.logp for token in now.values())
    if before is None:
        return [f"log p {logp:.2f} nats, {logp / len(now):.3f} a token"]
    was = sum(token.logp for token in before.values())
    return [f"log p {was:.2f} → {logp:.2f} nats ({logp - was:+.2f}), {(logp - was) / len(now):+.3f} a token"]


def _pair_facts(read: ReadRow) -> list[str]:
    """The margin of a pair."""
    if read.row.kind != "preference":
        return []
    sides = list(read.row.sides)

    def margin(answers: list[Answer]) -> float:
        chosen, rejected = (answers[sides.index(side)].values() for side in ("chosen", "rejected"))
        return sum(token.logp for token in chosen) - sum(token.logp for token in rejected)

    now = margin(read.answers)
    if read.before is None:
        return [f"log p(chosen) - log p(rejected) = {now:+.2f} nats"]
    before = margin(read.before)
    return [f"margin by training {now - before:+.2f} nats: log p(chosen) - log p(rejected) {before:+.2f} → {now:+.2f}"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
