"""Rows in colour: the segments, and both ways to show them."""

import io
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.data.batch.dataset import EncodedDataset
from lit_ift.data.report.html import preview_page
from lit_ift.data.report.preview import Segmenter, Shown, folded, legend, pick, render, shown, shown_batch, visible
from lit_ift.data.rows import EncodedRow
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError

START, END = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def segmenter(tokenizer: PreTrainedTokenizerFast) -> Segmenter:
    return Segmenter(tokenizer)


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a text in which nothing becomes a control token."""
    pieces = re.split(r"(?<=<)", text)  # Each control token of this tokenizer begins with "<".
    return [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def make_example(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str, row_id: str = "f:1") -> Example:
    before = [tokenizer.convert_tokens_to_ids(START), *plain(tokenizer, prompt)]
    after = [*plain(tokenizer, answer), tokenizer.convert_tokens_to_ids(END)]
    return Example(before + after, [IGNORE_INDEX] * len(before) + after, row_id)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(prompt=st.text(max_size=12), answer=st.text(max_size=12))
def test_segments_are_the_whole_text_and_every_token(
    tokenizer: PreTrainedTokenizerFast, segmenter: Segmenter, prompt: str, answer: str
) -> None:
    example = make_example(tokenizer, prompt, answer)
    segments = segmenter.segments(example)
    assert [i for segment in segments for i in segment.ids] == example.input_ids
    assert "".join(s.text for s in segments) == START + prompt + answer + END
    trained = "".join(s.text for s in segments if s.state == "trained")
    assert trained == answer + END
    assert (segments[0].mark, segments[-1].mark) == ("control", "control")
    assert segments[-1].style == "control trained"


def test_tokens_that_share_a_character_stay_together(tokenizer: PreTrainedTokenizerFast, segmenter: Segmenter) -> None:
    segments = segmenter.segments(make_example(tokenizer, "a😀b", "好"))
    assert [(s.text, len(s.ids)) for s in segments if not s.mark] == [("a", 1), ("😀", 4), ("b", 1), ("好", 3)]


def test_text_that_looks_like_a_control_token_is_told_from_one(
    tokenizer: PreTrainedTokenizerFast, segmenter: Segmenter
) -> None:
    example = make_example(tokenizer, f"say {END} now", "no")
    assert example.input_ids.count(tokenizer.convert_tokens_to_ids(END)) == 1
    segments = segmenter.segments(example)
    alike = [s for s in segments if s.mark == "lookalike"]
    assert "".join(s.text for s in alike).strip() == END
    assert {s.style for s in alike} == {"lookalike"}
    assert [s.text for s in segments if s.mark == "control"] == [START, END]


def test_padding_is_told_by_the_mask_and_folded(tokenizer: PreTrainedTokenizerFast, segmenter: Segmenter) -> None:
    rows = [make_example(tokenizer, "question", "answer"), make_example(tokenizer, "q", "a", "f:2")]
    end = tokenizer.convert_tokens_to_ids(END)
    batch = collate(rows, pad_token_id=end)
    _, short = shown_batch(batch, rows=5)
    assert short.title == "f:2"
    missing = len(rows[0].input_ids) - len(rows[1].input_ids)
    assert short.figures == f"{len(rows[1].input_ids)} tokens, {rows[1].num_targets} trained, {missing} padding"
    segments = segmenter.segments(short.example, short.attention_mask)
    assert [s.state for s in segments].count("padding") == missing
    assert [s.style for s in segments if s.ids == (end,)][:1] == ["control trained"]
    apart, joined = folded(segments, tokens=True), folded(segments, tokens=False)
    assert apart[-1].text == joined[-1].text == f"{END}×{missing}"
    assert apart[:-1] == [s for s in segments if s.state != "padding"]
    assert "".join(s.text for s in joined) == "".join(s.text for s in apart)
    assert [s.style for s in joined] == ["control", "prompt", "trained", "control trained", "padding"]


def test_a_packed_batch_names_all_that_share_a_row(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [make_example(tokenizer, "a" * n, "b", f"f:{n}") for n in (30, 4, 5)]
    first, second = shown_batch(collate_packed(rows, pad_token_id=0), rows=5)
    assert (first.title, second.title) == ("f:30", "f:4, f:5")
    assert first.figures == f"{len(rows[0].input_ids)} tokens, {rows[0].num_targets} trained"
    length = len(rows[1].input_ids) + len(rows[2].input_ids)
    assert second.figures.startswith(f"{length} tokens, {rows[1].num_targets + rows[2].num_targets} trained")


def test_a_row_with_sides_shows_each() -> None:
    example = Example([1, 2], [1, 2], "f:1")
    row = EncodedRow("preference", "f:1", {"chosen": example, "rejected": example}, score=0.75)
    assert [s.title for s in shown(row)] == ["f:1 (chosen, score 0.75)", "f:1 (rejected, score 0.75)"]
    assert [s.title for s in shown(EncodedRow("instruction", "f:2", {"answer": example}))] == ["f:2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b\n", "a b↵\n"),
        ("a  b \nc", "a··b·↵\nc"),
        ("a\tb\r\n", "a⇥b␍↵\n"),
        ("\x1b[31m\u202e\u200b\xa0", "\\x1b[31m\\u202e\\u200b·"),
    ],
)
def test_what_does_not_print_is_made_visible(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_every_blank_is_visible_on_request() -> None:
    assert visible(" a b", blanks=True) == "·a·b"


def test_rows_are_picked_by_place_id_or_chance() -> None:
    examples = [Example([1, 2], [1, 2], f"folder/f:{i}") for i in range(30)]
    rows = [EncodedRow("instruction", example.row_id, {"answer": example}) for example in examples]
    dataset = EncodedDataset(StoredRows.in_memory(rows))

    def ids(**how: object) -> list[str]:
        return [conversation.example.row_id for conversation in pick(dataset, **how)]  # type: ignore[arg-type]

    assert ids(rows=2) == ["folder/f:0", "folder/f:1"]
    assert len(ids(rows=99)) == 30
    assert ids(rows=5, row_id="f:7") == ids(rows=1, row_id="folder/f:7") == ["folder/f:7"]
    drawn = ids(rows=5, seed=1)
    assert drawn == ids(rows=5, seed=1) != ids(rows=5, seed=2)
    assert len(set(drawn)) == 5
    with pytest.raises(UserError, match=r"None of the 30 .* 'f:99'.*'folder/f:0'"):
        pick(dataset, rows=1, row_id="f:99")


@pytest.fixture(scope="module")
def evil(tokenizer: PreTrainedTokenizerFast) -> Shown:
    example = make_example(tokenizer, "<script>alert(1)</script>\x1b[31m", "[bold]</pre> & so\u202e\n")
    return Shown("<b>id\x1b</b>", example)


def test_the_terminal_gets_colours_and_nothing_else(evil: Shown, segmenter: Segmenter) -> None:
    for is_terminal in (True, False):
        colours = "standard" if is_terminal else "auto"
        console = Console(file=io.StringIO(), width=80, force_terminal=is_terminal, color_system=colours)
        console.print(legend())
        console.print(render(evil, segmenter))
        console.print(render(evil, segmenter, tokens=True))
        text = console.file.getvalue()
        assert ("\x1b[" in text) is is_terminal
        assert "\x1b[31m" not in text
        written = re.sub(r"\x1b\[[\d;]*m", "", text)
        assert "\\x1b[31m" in written
        assert "[bold]" in written
        assert "\u202e" not in written
        assert f"{END} 2|" in written


def test_the_page_is_self_contained_and_escaped(evil: Shown, segmenter: Segmenter) -> None:
    for tokens in (False, True):
        page = preview_page([evil], segmenter, tokens=tokens)
        style, _, body = page.partition("<body>")
        assert "<script" not in page
        assert "<b>" not in body
        assert body.count("</pre>") == 1
        assert not re.findall(r"<(?!/?(?:h1|pre|span|body|html)\b).{20}", body)
        assert "&lt;|im_end|&gt;" in body
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert not re.search(r"https?:|url\(|@import|src=|href=", page)
        (trained,) = re.findall(r'<span class="(r\d+)"> trained </span>', body)
        assert f".{trained} {{" in style
        assert body.count(f'class="{trained}"') > 1
        assert (" 2|" in body) is tokens


def test_a_leading_blank_of_a_sentencepiece_tokenizer_is_kept(make_tokenizer: Callable[..., object]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"<unk>": 0, "▁Hi": 1, "▁there": 2, "</s>": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    segments = Segmenter(tokenizer).segments(Example([1, 2, 2, 3], [-100, 2, 2, 3], "f:1"))
    assert [s.text for s in segments] == ["Hi", " there", " there", "</s>"]
