"""Thresholds, and the report as tables and as a page."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.example import Example
from lit_ift.data.report.account import DataReport, announce
from lit_ift.data.report.builder import ReportBuilder
from lit_ift.data.report.html import report_page
from lit_ift.data.report.terminal import About, Thresholds, as_json, figures, hints, table, violations
from lit_ift.data.rows import EncodedRow, Row
from lit_ift.errors import RowError

EVIL = "<script>alert('x')</script>&\x1b[31m[bold]\u202e"


@pytest.fixture(scope="module")
def report(tokenizer: PreTrainedTokenizerFast) -> DataReport:
    """Ten rows read: two skipped, four of the eight kept ones truncated, two with a prompt seen before."""
    builder = ReportBuilder("train", tokenizer, max_length=3, truncation="right")
    for i in range(8):
        prompt = Conversation([{"role": "user", "content": str(i % 6)}, {"role": "assistant", "content": "a"}])
        row_id = f"{EVIL}/a.jsonl:{i}"
        example = Example([300, 301, 2], [-100, 301, 2], row_id, num_cut=i % 2)
        builder.keep(
            Row("instruction", row_id, {"answer": prompt}),
            EncodedRow("instruction", row_id, {"answer": example}),
            source=EVIL if i % 2 else "plain",
        )
    builder.skip(RowError("a.jsonl:8", EVIL, f"is {EVIL}", "Mend it"))
    builder.skip(RowError("a.jsonl:9", "", "differ", "Mend it", reason="mask_disagreement"))
    return builder.build()


@pytest.mark.parametrize(
    ("option", "share"),
    [("max_skipped", 0.2), ("max_disagreements", 0.1), ("max_truncated", 0.5), ("max_duplicates", 0.25)],
)
def test_a_threshold_is_the_largest_share_that_passes(report: DataReport, option: str, share: float) -> None:
    assert violations({"train": report}, Thresholds(**{option: share})) == []
    (failed,) = violations({"train": report}, Thresholds(**{option: share - 0.01}))
    assert failed.startswith("train: ")
    assert f"{option}={share - 0.01:g}" in failed
    assert f"({share:.4f})" in failed


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("max_unstopped", "rows_unstopped"),
        ("max_without_bos", "rows_without_bos"),
        ("max_lookalikes", "rows_with_lookalikes"),
    ],
)
def test_zero_lets_no_row_pass(report: DataReport, option: str, field: str) -> None:
    assert violations({"val": report}, Thresholds(**{option: 0.0})) == []
    assert len(violations({"val": replace(report, **{field: 1})}, Thresholds(**{option: 0.0}))) == 1


def test_without_thresholds_only_a_split_without_rows_fails(report: DataReport, tokenizer) -> None:
    builder = ReportBuilder("val", tokenizer, max_length=3, truncation="right")
    builder.skip(RowError("b.jsonl:1", "", "differ", "Mend it"))
    both = {"train": report, "val": builder.build()}
    assert violations(both, Thresholds()) == ["val: none of 1 rows can be used."]
    assert as_json(both, ["x"])["ok"] is False
    assert DataReport.from_dict(as_json(both, [])["splits"]["train"]) == report


def test_weights_of_turns_are_told_with_the_losses_that_refuse_them(report: DataReport) -> None:
    assert not any("weight" in line.name for line in figures(report))
    assert not any("weight" in hint for hint in hints(report))
    weighted = replace(report, rows_weighted=2, turns_weighted=3, turn_weights=(0.25, 2.0))
    (line,) = (line for line in figures(weighted) if line.name == "turns with a weight")
    assert (line.count, line.whole, line.note, line.is_fault) == (2, 8, "3 turns, 0.25 to 2", False)
    (hint,) = (hint for hint in hints(weighted) if "weight" in hint)
    assert "refuse these rows: propagation (IFT's), " in hint
    about = About({"train": ["a.jsonl"]}, "t", "c", "0", "today")
    page = report_page({"train": weighted}, [], about)
    assert "turns with a weight" in page
    assert "3 turns, 0.25 to 2" in page


def test_every_skipped_row_has_a_line(report: DataReport) -> None:
    lines = list(figures(report))
    skipped = next(line.count for line in lines if line.name == "skipped")
    assert skipped == sum(line.count for line in lines if line.is_part) == 2


def test_names_of_columns_steer_no_terminal(report: DataReport, caplog: pytest.LogCaptureFixture) -> None:
    names = {"columns_left_out": {EVIL: 2}, "columns_renamed": {EVIL: "prompt"}, "columns_missing": {EVIL: "prompt"}}
    hostile = replace(report, unread=(EVIL,), messages={"field": (EVIL,)}, **names)
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(table(hostile))
    announce(replace(hostile, messages={}))
    for text in (console.file.getvalue(), caplog.text, report_page({"train": hostile}, [EVIL], ABOUT)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\\x1b[31m" in text


def test_the_table_shows_text_as_text(report: DataReport) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(table(report))
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]" in text
    assert "masks disagree" in text
    assert re.search(r"truncated +4 +50\.0 % +4 tokens cut +…/a\.jsonl:1, :3, :5 …", text)
    assert re.search(r"<\|im_end\|> +8 +yes", text)
    assert max(map(len, text.splitlines())) <= 200


class Tags(HTMLParser):
    """Collects the tags of a page and fails on unbalanced ones."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


ABOUT = About({"train": [f"{EVIL}/a.jsonl"]}, EVIL, f"{EVIL}, 3 characters", "0.1.0", "2031-05-06 07:08+00:00")


def test_the_page_is_self_contained_and_escaped(report: DataReport) -> None:
    page = report_page({"train": report}, [f"train: {EVIL}"], ABOUT)
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert not tags.seen & {"script", "link", "img", "iframe", "a"}
    assert {"style", "pre", "span"} <= tags.seen
    assert "<script>alert('x')</script>" in tags.text
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert not re.search(r"https?:|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 30_000
    for words in ("50.0 %", "4 tokens cut", "masks disagree", "Failed", "█"):
        assert words in tags.text


def test_the_page_says_what_was_checked_with_what_and_when(report: DataReport) -> None:
    about = About({"train": ["rows/a.jsonl"], "val": ["b.csv"]}, "me/tokenizer", "zephyr", "0.1.0", "2031-05-06 07:08")
    page = report_page({"train": report}, [], about)
    for words in ("rows/a.jsonl", "b.csv", "me/tokenizer", "zephyr", "lit-ift 0.1.0", "2031-05-06 07:08"):
        assert words in page
    assert as_json({"train": report}, [], about)["about"]["sources"]["val"] == ["b.csv"]


def test_only_thresholds_that_were_set_are_said_to_be_kept(report: DataReport) -> None:
    assert "threshold" not in report_page({"train": report}, [], ABOUT)
    assert "No threshold that was set is exceeded" in report_page({"train": report}, [], ABOUT, any_threshold=True)
    assert "No threshold" not in report_page({"train": report}, ["x"], ABOUT, any_threshold=True)


def test_the_report_gives_advice_for_truncation_and_lookalikes(report: DataReport) -> None:
    told = hints(replace(report, rows_with_lookalikes=2))
    assert any("4 of 8 rows are longer than max_length=3. Raise data.max_length" in hint for hint in told)
    assert any("2 rows hold text that looks like a control token" in hint for hint in told)
    longer = {"3": 4, "128": 3, "256": 0}
    assert any("max_length=256 would cut 0 of them" in hint for hint in hints(replace(report, rows_longer=longer)))
    assert not any("longer than" in hint for hint in hints(replace(report, rows_longer={"3": 0})))
