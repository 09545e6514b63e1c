"""What the page shows of a row: colours, numbers on hover, and text that stays text."""

import math
from typing import Any

import pytest
from tiny import tiny_tokenizer

from lit_ift.chat.example import Example
from lit_ift.data.report.preview import Segment, Segmenter
from lit_ift.data.rows import EncodedRow
from lit_ift.run_report.colours import DIVERGING, RISING, Scale, limit_of
from lit_ift.run_report.page import Page
from lit_ift.run_report.scores import ReadRow, TokenReading
from lit_ift.run_report.spans import RowSpans, ShownSide, Span

TOKENIZER = tiny_tokenizer()
X = TOKENIZER.encode("x")[0]


def read_row(
    kind: Any, logps: dict[str, list[float]], before: dict[str, list[float]] | None, weights: Any = None
) -> ReadRow:
    """A row "ab…" whose first token is prompt; the model always says x."""
    texts = {side: "abcdefgh"[: len(values) + 1] for side, values in logps.items()}
    return row_of(kind, texts, logps, before, weights)


def row_of(kind: Any, texts: Any, logps: Any, before: Any, weights: Any = None) -> ReadRow:
    ids = {side: TOKENIZER.encode(text) for side, text in texts.items()}
    sides = {side: Example(of, [-100, *of[1:]], "row") for side, of in ids.items()}

    def readings(values: list[float]) -> dict[int, TokenReading]:
        return {at: TokenReading(v, X, weights and weights[at - 1]) for at, v in enumerate(values, 1)}

    now = [readings(values) for values in logps.values()]
    return ReadRow(EncodedRow(kind, "row", sides), now, before and [readings(values) for values in before.values()])


def shown(row: ReadRow) -> list[ShownSide]:
    (only,) = RowSpans([row], TOKENIZER).shown()
    return only.sides


def classes(span: Span) -> set[str]:
    return set(span.classes.split())


def test_places_of_colours() -> None:
    assert len(DIVERGING) == len(RISING) == 13
    scale = Scale(-3.0, 3.0)
    assert [scale.place(v) for v in (-9, -3, -0.2, 0, 0.2, 1.5, 3, math.inf)] == [0, 0, 6, 6, 6, 9, 12, 12]
    assert (limit_of([0.1, -0.4]), limit_of([0.1, -0.6]), limit_of([99.0]), limit_of([])) == (0.5, 1.0, 10.0, 0.5)
    assert limit_of([0.4] * 95 + [7.0] * 5) == 0.5


def test_colours_and_numbers_of_a_token() -> None:
    (side,) = shown(read_row("instruction", {"answer": [-1.0, -3.0]}, {"answer": [-2.0, -2.5]}, [4.0, 0.5]))
    assert [span.text for span in side.prompt] == ["a"]
    first, second = side.spans
    assert (first.text, first.instead) == ("b", "x")
    assert classes(first) == {"t", "c12", "m12", "s2", "w12"}
    assert classes(second) == {"t", "c3", "m3", "s6", "w3"}
    assert first.title.splitlines() == [
        f"b  (token {TOKENIZER.encode('b')[0]})",
        "log p -2.000 → -1.000 nats (+1.000)",
        "p 0.1353 → 0.3679",
        "the model says: x (before: x)",
        "propagation weight 4.00 (before: 4.00)",
    ]
    assert side.facts[1] == "log p -4.50 → -4.00 nats (+0.50), +0.250 a token"


def test_a_model_alone() -> None:
    row = read_row("instruction", {"answer": [-1.0]}, None)
    (side,) = shown(row)
    (span,) = side.spans
    assert classes(span) == {"t", "s2"}
    assert span.title.splitlines()[1:] == ["log p -1.000 nats, p 0.3679", "the model says: x"]
    assert list(RowSpans([row], TOKENIZER).views()) == ["surprise"]


def test_the_margin_of_a_pair() -> None:
    row = read_row(
        "preference", {"chosen": [-1.0, -1.0], "rejected": [-5.0]}, {"chosen": [-2.0, -1.5], "rejected": [-4.0]}
    )
    assert list(RowSpans([row], TOKENIZER).views()) == ["change", "margin", "surprise"]
    (pair,) = RowSpans([row], TOKENIZER).shown()
    assert pair.facts == ["margin by training +2.50 nats: log p(chosen) - log p(rejected) +0.50 → +3.00"]
    chosen, rejected = pair.sides
    assert {"c12", "m12"} <= classes(chosen.spans[0])
    assert {"c0", "m12"} <= classes(rejected.spans[0])
    assert "share in the margin +1.000 nats" in rejected.spans[0].title
    (alone,) = RowSpans([ReadRow(row.row, row.answers, None)], TOKENIZER).shown()
    assert alone.facts == ["log p(chosen) - log p(rejected) = +3.00 nats"]


def test_tokens_that_share_a_character_are_one() -> None:
    (side,) = shown(
        row_of("instruction", {"answer": "aé\nb"}, {"answer": [-1.0, -0.5, -1.0, -1.0]}, None, [1, 3, 1, 1])
    )
    first, second, third = side.spans
    assert (first.text, first.instead) == ("é", "xx")
    assert "log p -1.500 nats" in first.title
    assert "propagation weight 1.00, 3.00" in first.title
    assert (second.text, second.end, third.text) == ("↵", "\n", "b")


def test_a_token_with_a_line_break_in_it_has_a_span_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    row = read_row("instruction", {"answer": [-1.0]}, None)
    token = Segment((X + 1,), "a\n\n  b", "trained")
    monkeypatch.setattr(Segmenter, "segments", lambda self, example: [Segment((3,), "p", "prompt"), token])
    (side,) = shown(row)
    assert [(span.text, span.instead, span.end) for span in side.spans] == [
        ("a↵", "x", "\n"),
        ("↵", "", "\n"),
        ("··b", "", ""),
    ]
    assert len({span.title for span in side.spans}) == 1


def test_figures_of_all_tokens() -> None:
    rows = [read_row("instruction", {"answer": [-1.0, -3.0]}, {"answer": [-2.0, -2.5]})]
    assert dict(RowSpans(rows, TOKENIZER).figures()) == {
        "rows": "1",
        "trained tokens": "2",
        "mean log p": "-2.250 → -2.000 nats a token",
        "tokens that became more likely": "50.0 %",
        "predicted rightly": "0.0 % → 0.0 %",
    }
    nothing = ReadRow(rows[0].row, [{}], None)
    assert RowSpans([nothing], TOKENIZER).figures() == [("rows", "1"), ("trained tokens", "0")]
    assert Page("t", [], tokens=RowSpans([nothing], TOKENIZER)).html()


@pytest.mark.parametrize("hostile", ["<script>x</script>", "</div><img src=x onerror=y>", '" onclick="x'])
def test_hostile_text_stays_text(hostile: str) -> None:
    text = f"a{hostile}\u202e\u0007"
    ids = TOKENIZER.encode(text)
    row = row_of("instruction", {"answer": text}, {"answer": [-1.0] * (len(ids) - 1)}, None)
    page = Page(hostile, [hostile], tokens=RowSpans([row], TOKENIZER)).html()
    assert "<script" not in page
    assert "<img" not in page
    assert "onclick" not in page.replace("onclick=&#34;x", "")
    assert "\u202e" not in page
    assert "\u0007" not in page
    assert "\\u202e" in page
