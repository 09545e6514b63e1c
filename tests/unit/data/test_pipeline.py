"""Rows of all kinds stream through in order, whatever the chunks; each one is kept, or reported with its reason."""

from collections.abc import Iterator
from typing import Any

import pytest
from tiny import tiny_tokenizer

from lit_ift.data import pipeline as encode
from lit_ift.data.pipeline import EncodingOptions, OnBadRow, ResolvedSource, encode_sources
from lit_ift.data.read.record import OnRowError, Record
from lit_ift.data.report.account import DataReport
from lit_ift.data.report.builder import ReportBuilder
from lit_ift.data.rows import SIDES, EncodedRow, Row
from lit_ift.errors import RowError, UserError

GOOD = {"prompt": "q", "completion": "an answer"}


def part(name: str, rows: list[dict[str, Any] | None], **options: Any) -> ResolvedSource:
    """Rows by their number; None is one that cannot be read."""

    def read(on_row_error: OnRowError) -> Iterator[Record]:
        for number, row in enumerate(rows):
            if row is None:
                on_row_error(RowError(f"{name}:{number}", "", "not valid JSON", "Mend it", reason="unreadable"))
            else:
                yield Record(row, f"{name}:{number}")

    return ResolvedSource(name, read, **options)


def run(
    parts: list[ResolvedSource],
    *,
    on_bad_row: OnBadRow = "skip",
    kinds: tuple[Any, ...] = ("instruction",),
    **options: Any,
) -> tuple[list[EncodedRow], DataReport]:
    tokenizer = tiny_tokenizer()
    report = ReportBuilder("train", tokenizer, max_length=64, truncation="drop")
    how = EncodingOptions(tokenizer, 64, "drop", frozenset(kinds), on_bad_row=on_bad_row)
    return list(encode_sources(parts, how, report, **options)), report.build()


@pytest.mark.parametrize(("rows", "characters"), [(1, 10**9), (2, 10**9), (3, 10**9), (100, 1), (100, 25)])
def test_chunks_change_nothing(rows: int, characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"prompt": "q" * 99, "completion": "a"}
    parts = [part("a", [GOOD, None, GOOD, {"prompt": "q"}, long, GOOD]), part("b", [GOOD, None])]
    whole = run(parts)
    assert [row.row_id for row in whole[0]] == ["a:0", "a:2", "a:5", "b:0"]
    assert whole[1].skipped_by_reason == {"unreadable": 2, "layout": 1, "too_long": 1}
    assert whole[1].rows_read == 8
    assert {name: count.rows for name, count in whole[1].sources.items()} == {"a": 3, "b": 1}
    monkeypatch.setattr(encode, "CHUNK", rows)
    monkeypatch.setattr(encode, "CHUNK_CHARS", characters)
    assert run(parts) == whole


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ([GOOD, None, {"prompt": "q"}], "a:1: not valid JSON"),
        ([GOOD, {"prompt": "q"}, None], "a:1: field 'completion'"),
        ([{"prompt": "q" * 99, "completion": "a"}, None], "a:1: not valid JSON"),
        ([GOOD, GOOD, None], "a:2: not valid JSON"),
    ],
)
def test_the_first_bad_row_ends_a_strict_run(rows: list[Any], place: str) -> None:
    with pytest.raises(RowError) as error:
        run([part("a", rows)], on_bad_row="error")
    assert str(error.value).startswith(place)


def test_a_strict_run_reads_no_further_than_its_first_bad_row() -> None:
    def read(on_row_error: OnRowError) -> Iterator[Record]:
        yield Record({"prompt": "q"}, "a:0")
        raise AssertionError("read on")

    with pytest.raises(RowError, match="a:0"):
        run([ResolvedSource("a", read)], on_bad_row="error")


def test_the_drop_policy_drops_rows_in_a_strict_run() -> None:
    rows, report = run([part("a", [GOOD, {"prompt": "q" * 99, "completion": "a"}])], on_bad_row="error")
    assert [row.row_id for row in rows] == ["a:0"]
    assert report.skipped_by_reason == {"too_long": 1}


def test_rows_that_belong_elsewhere_are_not_counted() -> None:
    def takes(row: Row) -> bool:
        return row.origin != "a:1"

    rows, report = run([part("a", [GOOD, GOOD, None])], takes=takes)
    assert [row.row_id for row in rows] == ["a:0"]
    assert (report.rows_read, report.rows_kept, report.rows_skipped) == (2, 1, 1)


def test_rows_of_another_kind_are_an_error_with_a_way_out() -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match=r"a:0: the rows are preference data .*'chosen' to train on the chosen"):
        run([part("a", [pair])])
    rows, _ = run([part("a", [pair], layout="chosen")])
    assert list(rows[0].sides) == ["answer"]


def test_every_kind_gets_its_sides_and_score() -> None:
    parts = [
        part("a", [GOOD]),
        part("b", [{"prompt": "q", "chosen": "a", "rejected": "bb", "preference": 0.75}]),
        part("c", [{"prompt": "q", "chosen": "a", "rejected": "bb", "gold": "ccc"}]),
        part("d", [{**GOOD, "label": False}]),
        part("e", [{**GOOD, "score": 4}], score_range=(0, 5)),
    ]
    rows, report = run(parts, kinds=tuple(SIDES))
    assert [(row.kind, list(row.sides), row.score) for row in rows] == [
        ("instruction", ["answer"], None),
        ("preference", ["chosen", "rejected"], 0.75),
        ("preference", ["chosen", "rejected", "gold"], None),
        ("unpaired", ["answer"], 0.0),
        ("scored", ["answer"], 0.8),
    ]
    tokenizer = tiny_tokenizer()
    for row, texts in zip(rows[1:3], (["a", "bb"], ["a", "bb", "ccc"]), strict=True):
        trained = [[label for label in side.labels if label != -100] for side in row.sides.values()]
        assert [tokenizer.decode(ids) for ids in trained] == [f"{text}<|im_end|>" for text in texts]
    assert report.kinds == {"instruction": 1, "preference": 2, "unpaired": 1, "scored": 1}
