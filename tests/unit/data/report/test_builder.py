"""The report: every count against rows made by hand, and its way through JSON."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.report.account import DataReport, NoUsableRowError, announce, logger, warnings
from lit_ift.data.report.builder import NUM_BINS, NUM_NAMED, ReportBuilder
from lit_ift.data.report.faults import LONGEST_MESSAGE, NUM_ALIKE, NUM_DIFFERENT
from lit_ift.data.rows import EncodedRow, Row, RowKind
from lit_ift.errors import RowError, RowReason

Builder = ReportBuilder
END, WORD, OTHER, PROMPT = 2, 300, 301, 302
"""Ids of the tokenizer's end-of-turn token and of ordinary ones."""


@pytest.fixture
def builder(tokenizer: PreTrainedTokenizerFast) -> Builder:
    return ReportBuilder("train", tokenizer, max_length=64, truncation="right")


def example(trained: str, row_id: str, **counts: Any) -> Example:
    """An example from letters: p prompt, w word, o another word, e end of turn; the last three are trained."""
    ids = [{"p": PROMPT, "w": WORD, "o": OTHER, "e": END}[letter] for letter in trained]
    return Example(ids, [IGNORE_INDEX if i == PROMPT else i for i in ids], row_id, **counts)


def keep(
    builder: Builder,
    tokens: str | Mapping[str, str],
    row_id: str = "f:1",
    *,
    prompt: str = "Why?",
    kind: RowKind = "instruction",
    source: str = "",
    **counts: Any,
) -> None:
    sides = {"answer": tokens} if isinstance(tokens, str) else tokens
    conversation = Conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": "So."}])
    row = Row(kind, row_id, dict.fromkeys(sides, conversation))
    encoded = EncodedRow(kind, row_id, {side: example(text, row_id, **counts) for side, text in sides.items()})
    builder.keep(row, encoded, source=source)


def bad(row_id: str, reason: RowReason = "field", problem: str = "is wrong") -> RowError:
    return RowError(row_id, "x", problem, "Mend it", reason=reason)


def test_tokens_are_letters(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token_id == END
    assert len({WORD, OTHER, PROMPT, END}) == 4


def test_rows_are_counted_by_fate(builder: Builder) -> None:
    keep(builder, "ppwe", "f:1")
    keep(builder, "pwwe", "f:2", prompt="How?", num_cut=3)
    keep(builder, "pppp", "f:3", prompt="who?", num_lookalikes=1, num_split_starts=1)
    builder.skip(bad("f:4"))
    builder.skip(bad("f:5", "mask_disagreement"))
    report = builder.build()
    assert (report.rows_read, report.rows_kept, report.rows_skipped) == (5, 3, 2)
    assert report.skipped_by_reason == {"field": 1, "mask_disagreement": 1}
    assert (report.rows_truncated, report.tokens_cut) == (1, 3)
    assert (report.rows_with_lookalikes, report.rows_with_split_start, report.rows_without_target) == (1, 1, 1)
    assert report.rows_with_stop == 2
    assert (report.tokens, report.target_tokens, report.longest) == (12, 5, 4)
    assert report.row_ids == {
        "truncated": ("f:2",),
        "no_target": ("f:3",),
        "lookalike": ("f:3",),
        "split_start": ("f:3",),
        "skipped/field": ("f:4",),
        "skipped/mask_disagreement": ("f:5",),
    }
    assert [message.partition(":")[0] for message in report.skipped] == ["f", "f"]


def test_turns_with_a_weight_are_counted_with_the_range_of_their_weights(builder: Builder) -> None:
    keep(builder, "pwepwepwe", "f:1", weights=[1, 0.5, 0.5, 1, 1, 1, 1, 2, 2])
    keep(builder, "pwepwe", "f:2", weights=[1, 0.25, 0.25, 1, 0.25, 0.25])
    keep(builder, "pwe", "f:3", weights=[0.5, 1, 1])  # Of the prompt no weight counts.
    keep(builder, "pwe", "f:4")
    report = builder.build()
    assert (report.rows_weighted, report.row_ids["weighted"]) == (2, ("f:1", "f:2"))
    assert (report.turns_weighted, report.turn_weights) == (4, (0.25, 2))
    assert DataReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report


def test_a_prompt_counts_as_repeated_whatever_its_case_and_blanks(builder: Builder) -> None:
    for i, prompt in enumerate(("Why?", "why?", "How?", " WHY? ", "When?", "how?")):
        keep(builder, "pwe", f"f:{i}", prompt=prompt)
    report = builder.build()
    assert (report.rows_duplicate, report.duplicate_prompts) == (3, 2)
    assert report.row_ids["duplicate"] == ("f:1", "f:3", "f:5")


def test_turn_ends_tell_cut_turns_from_those_without_a_stop(builder: Builder) -> None:
    keep(builder, "pwepwe", "f:1")
    keep(builder, "pwopwe", "f:2")  # The first turn runs into the prompt without a stop.
    keep(builder, "pwepwo", "f:3", num_cut=4)
    keep(builder, "pwe", "f:4", num_cut=4)  # Cut right behind a turn.
    keep(builder, "pwo", "f:5")
    report = builder.build()
    assert report.trained_turns == 8
    assert (report.turns_cut, report.rows_cut_turn, report.row_ids["cut_turn"]) == (1, 1, ("f:3",))
    assert (report.turns_unstopped, report.rows_unstopped, report.row_ids["unstopped"]) == (2, 2, ("f:2", "f:5"))
    assert [(end.token_id, end.turns, end.is_control, end.stops) for end in report.turn_ends] == [
        (END, 5, True, True),
        (OTHER, 2, False, False),
    ]
    assert report.turn_ends[0].token == "<|im_end|>"
    assert any("2 of 8 trained turns" in warning for warning in warnings(report))


def test_no_plain_token_is_a_stop_however_usual_it_is(builder: Builder) -> None:
    for i in range(199):
        keep(builder, "pwo", f"f:{i}")
    keep(builder, "pwopwe", "f:200")
    report = builder.build()
    assert (report.turns_unstopped, report.rows_unstopped) == (200, 200)
    assert [(end.token_id, end.stops) for end in report.turn_ends] == [(OTHER, False), (END, True)]
    assert any("data.chat_template to the file" in warning for warning in warnings(report))


def test_a_plain_end_that_the_template_writes_is_a_stop(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.decode([OTHER])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '" + end + "\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    builder = ReportBuilder("train", tokenizer, max_length=64, truncation="right")
    keep(builder, "pwo", "f:1")
    keep(builder, "pwow", "f:2")
    report = builder.build()
    assert (report.turns_unstopped, report.row_ids["unstopped"]) == (1, ("f:2",))


def test_thinking_that_the_template_leaves_out_is_counted(builder: Builder) -> None:
    keep(builder, "pwe", "f:1", num_dropped_thoughts=2)
    keep(builder, "pwe", "f:2")
    report = builder.build()
    assert report.rows_with_dropped_thoughts == 1
    assert report.row_ids["dropped_thoughts"] == ("f:1",)


def test_no_trained_end_of_sequence_token_is_worth_a_warning(builder: Builder) -> None:
    keep(builder, "pwo")
    report = builder.build()
    assert report.rows_with_stop == 0
    assert any("end-of-sequence" in warning for warning in warnings(report))


def test_missing_bos_is_counted_where_the_tokenizer_writes_one(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(bos_token="</s>")
    plain = ReportBuilder("train", tokenizer, max_length=9, truncation="right")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", bos)])
    strict = ReportBuilder("train", tokenizer, max_length=9, truncation="right")
    for builder in (plain, strict):
        keep(builder, "pwe")
    assert plain.build().rows_without_bos == 0
    assert strict.build().rows_without_bos == 1


def test_preference_rows_are_counted_by_side_and_sources_by_weight(tokenizer: PreTrainedTokenizerFast) -> None:
    builder = ReportBuilder("train", tokenizer, max_length=64, truncation="drop", weights={"b": 2.5})
    keep(builder, {"chosen": "pwwe", "rejected": "pwe"}, "a:1", kind="preference", source="a")
    keep(builder, {"chosen": "pe", "rejected": "pwe"}, "b:1", kind="preference", source="b", prompt="How?")
    keep(builder, "pppwe", "b:2", source="b", prompt="When?")
    report = builder.build()
    assert report.kinds == {"preference": 2, "instruction": 1}
    assert {side: (c.rows, c.tokens, c.target_tokens) for side, c in report.sides.items()} == {
        "chosen": (2, 6, 4),
        "rejected": (2, 6, 4),
    }
    assert {name: (c.rows, c.tokens, c.target_tokens, c.weight) for name, c in report.sources.items()} == {
        "a": (1, 7, 5, 1.0),
        "b": (2, 10, 5, 2.5),
    }
    assert (report.tokens_per_epoch, report.target_tokens_per_epoch) == (32, 18)
    assert sum(report.input_lengths.counts) == 5
    assert report.turns == {"2": 3}


def test_names_and_messages_are_bounded(builder: Builder) -> None:
    for i in range(3 * NUM_NAMED):
        keep(builder, "pwo", f"f:{i}", num_cut=1)
        builder.skip(bad(f"g:{i}", problem="x" * 10_000))
    report = builder.build()
    assert report.rows_truncated == report.rows_skipped == 3 * NUM_NAMED
    assert all(len(ids) == NUM_NAMED for ids in report.row_ids.values())
    (message,) = report.skipped
    assert message.endswith(f"xx… (the first of {3 * NUM_NAMED} such rows)")
    assert len(message) < LONGEST_MESSAGE + 50
    assert len(json.dumps(report.as_dict())) < 40_000


def full_report(builder: Builder) -> DataReport:
    keep(builder, {"chosen": "pwwe", "rejected": "pwo"}, "a:1", kind="preference", source="a")
    keep(builder, "pwo", "a:2", num_cut=2)
    builder.skip(bad("a:3"))
    return builder.build()


def test_the_report_survives_json(builder: Builder) -> None:
    empty = builder.build()
    for report in (empty, full_report(builder)):
        assert DataReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    with pytest.raises(TypeError, match="unknown"):
        DataReport.from_dict({**empty.as_dict(), "unknown": 1})


def test_the_summary_names_no_rows(builder: Builder) -> None:
    summary = full_report(builder).summary()
    text = json.dumps(summary)
    assert "a:" not in text
    assert (summary["rows_kept"], summary["tokens_per_epoch"]) == (2, 10)
    assert summary["turn_ends"] == {"<|im_end|>": 1, builder.tokenizer.decode([OTHER]): 1}
    assert "counts" not in text


def test_a_split_without_a_usable_row_has_a_report(builder: Builder) -> None:
    builder.skip(bad("f:1"))
    error = NoUsableRowError(builder.build())
    assert str(error) == "train: none of 1 rows can be used.\nf:1: field 'x': is wrong. Mend it"
    assert error.report.rows_read == 1


def test_announcing_can_be_turned_off(builder: Builder, caplog: Any, capsys: Any) -> None:
    report = full_report(builder)
    logger.disabled = True
    try:
        announce(report)
    finally:
        logger.disabled = False
    assert not caplog.records
    assert not capsys.readouterr().out
    announce(report)
    assert "skipped a:3" in caplog.text
    assert "3 rows read, 2 kept" in capsys.readouterr().out


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_lengths_describe_what_was_counted(tokenizer: PreTrainedTokenizerFast, lengths: list[int]) -> None:
    builder = ReportBuilder("train", tokenizer, max_length=4000, truncation="right")
    for length in lengths:
        keep(builder, "p" * length)
    found = builder.build().input_lengths
    ordered = sorted(lengths)
    assert (found.total, found.longest) == (sum(lengths), ordered[-1])
    assert found.median == ordered[(len(ordered) - 1) // 2]
    assert sum(length <= found.p95 for length in lengths) >= 0.95 * len(lengths)
    assert sum(length < found.p95 for length in lengths) < 0.95 * len(lengths)
    assert len(found.counts) == len(found.edges) - 1 <= NUM_BINS
    for left, right, number in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert number == sum(left <= length < right for length in lengths)


def test_every_different_fault_is_told_once_however_rare(builder: Builder) -> None:
    for i in range(500):
        builder.skip(RowError(f"f:{i}", f"messages[{i % 7}].content", f"is empty, {i} characters", "Mend it"))
    builder.skip(RowError("f:500", "prompt", "must be a text, not 7", "Mend it"))
    builder.skip(RowError("f:501", "messages[3].role", "'bot' is no role", "Mend it"))
    builder.skip(RowError("f:502", "messages[1].role", "'robot' is no role", "Mend it"))
    builder.skip(RowError("f:503", "", "not valid JSON: Extra data at column 77", "Mend it", reason="unreadable"))
    builder.skip(RowError("f:504", "", "not valid JSON: Extra data at column 9", "Mend it", reason="unreadable"))
    messages = builder.build().messages
    assert [message.partition(":")[2].partition(":")[0] for message in messages["field"]] == ["0", "500", "501", "502"]
    assert [message.rpartition("Mend it")[2] for message in messages["field"]] == [
        " (the first of 500 such rows)",
        "",
        "",
        "",
    ]
    assert len(messages["unreadable"]) == 1
    assert "(the first of 2 such rows)" in messages["unreadable"][0]


def test_faults_of_ever_new_names_are_bounded_and_hide_no_other(builder: Builder) -> None:
    for i in range(1000):
        name = "".join(chr(97 + int(digit)) for digit in str(i))
        builder.skip(RowError(f"f:{i}", "", f"the column '{name}' is not known", "Mend it"))
        builder.skip(RowError(f"g:{i}", name, "is empty", "Mend it"))
    builder.skip(RowError("h:1", "a", "is too old", "Mend it"))
    messages = builder.build().messages["field"]
    assert len(messages) == 2 * (NUM_ALIKE + 1) + 1
    assert sum("(the first of 980 such rows)" in message for message in messages) == 2
    assert any(message.startswith("h:1") for message in messages)
    for i in range(1000):
        name = "".join(chr(97 + int(digit)) for digit in str(i))
        builder.skip(RowError(f"f:{i}", "", f"{name} is wrong", "Mend it"))
    assert len(builder.build().messages["field"]) <= 2 * NUM_ALIKE + NUM_DIFFERENT + NUM_ALIKE + 1


def test_lengths_before_truncation_say_what_other_limits_would_cut(builder: Builder) -> None:
    keep(builder, "pwe", "f:1")
    keep(builder, "pwe", "f:2", num_cut=197)
    keep(builder, {"chosen": "pwe", "rejected": "pwwwe"}, "f:3", kind="preference", num_cut=595)
    for length, reason in ((1000, "too_long"), (128, "no_target")):
        error = bad("f:4", reason)
        error.num_tokens = length
        builder.skip(error)
    report = builder.build()
    assert report.rows_longer == {"64": 4, "128": 3, "256": 2, "512": 2, "1024": 0}
    assert report.rows_measured == 5
    assert (report.whole_lengths.longest, report.whole_lengths.total) == (1000, 3 + 200 + 600 + 1000 + 128)
    assert report.input_lengths.longest == 5
