"""Preference pairs: one prompt, two different answers, and a row that is anything else is refused."""

import json
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rowfiles import REAL_ROWS

from lit_ift.data.parse.row_parser import RowParser, to_row
from lit_ift.data.read.readers import Record
from lit_ift.data.rows import Row
from lit_ift.errors import RowError, UserError

USER = {"role": "user", "content": "q"}
MORE = {"role": "user", "content": "more"}
SYSTEM = {"role": "system", "content": "s"}
GOOD = {"role": "assistant", "content": "a"}
BAD = {"role": "assistant", "content": "b"}
TOOL = {"role": "tool", "content": "3"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


def parse(layout: str | None = None, /, **data: object) -> Row:
    return to_row(Record(data, "rows.jsonl:7"), layout=layout)


def split(row: Row) -> dict[str, tuple[list, list]]:
    """Each side as prompt and answer."""
    return {
        side: (list(c.messages[: c.num_prompt_messages]), list(c.messages[c.num_prompt_messages :]))
        for side, c in row.sides.items()
    }


def human(*texts: str) -> str:
    marks = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(marks[i % 2] + text for i, text in enumerate(texts))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q\n", "chosen": [{**USER, "content": "q"}, GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": human("q", "a"), "rejected": human("q", "b")},
        {"prompt": human("q"), "chosen": human("q", "a"), "rejected": human("q", "b")},
        {"prompt": human("q", ""), "chosen": " a", "rejected": " b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
    ],
)
def test_one_pair_in_all_writings(row: dict) -> None:
    whole = parse(**row)
    assert (whole.kind, whole.score) == ("preference", None)
    prompt = [{**USER, "content": row["prompt"]}] if row.get("prompt") == "q\n" else [USER]
    assert split(whole) == {"chosen": (prompt, [GOOD]), "rejected": (prompt, [BAD])}
    with_system = parse(**row, system="s")
    assert split(with_system) == {"chosen": ([SYSTEM, *prompt], [GOOD]), "rejected": ([SYSTEM, *prompt], [BAD])}
    assert parse(**row, tools=[{"name": "f"}]).sides["rejected"].tools == [{"name": "f"}]


def test_implicit_prompt_is_what_both_sides_begin_with() -> None:
    before = [SYSTEM, USER, GOOD, MORE]
    row = parse(chosen=[*before, CALL, TOOL, GOOD], rejected=[*before, CALL, TOOL, BAD])
    assert split(row)["chosen"] == (before, [CALL, TOOL, GOOD])
    assert row.sides["chosen"].target_turns == [4, 6]
    row = parse(chosen=[*before, CALL, TOOL, GOOD], rejected=[*before, BAD])
    assert split(row)["rejected"] == (before, [BAD])
    row = parse(chosen=[*before, GOOD], rejected=[*before, GOOD, BAD])
    assert split(row) == {"chosen": (before, [GOOD]), "rejected": (before, [GOOD, BAD])}


def test_the_repeated_prompt_may_have_a_system_turn_of_its_own_or_not() -> None:
    for repeated in ([SYSTEM, USER], [USER]):
        row = parse(prompt=[SYSTEM, USER], chosen=[*repeated, GOOD], rejected=[*repeated, BAD])
        assert split(row) == {"chosen": ([SYSTEM, USER], [GOOD]), "rejected": ([SYSTEM, USER], [BAD])}
    with pytest.raises(RowError, match="field 'chosen': does not begin with the same prompt as 'prompt'"):
        parse(prompt=[USER], chosen=[SYSTEM, USER, GOOD], rejected=[SYSTEM, USER, BAD])


@pytest.mark.parametrize("gold", ["g", [{"role": "assistant", "content": "g"}], [USER, {**GOOD, "content": "g"}]])
@pytest.mark.parametrize("implicit", [False, True])
def test_gold_makes_a_triple(gold: object, implicit: bool) -> None:
    pair = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    row = parse(**pair, gold=gold, **({} if implicit else {"prompt": "q"}))
    assert list(row.sides) == ["chosen", "rejected", "gold"]
    assert split(row)["gold"] == ([USER], [{"role": "assistant", "content": "g"}])
    for wrong in ("", [MORE, GOOD], [USER], 3):
        with pytest.raises(RowError, match="field 'gold"):
            parse(**pair, gold=wrong)


@pytest.mark.parametrize(("value", "score"), [(0.5, 0.5), (1, 1.0), ("0.75", 0.75), (None, None)])
@pytest.mark.parametrize("transcript", [False, True])
def test_soft_preference(value: object, score: float | None, transcript: bool) -> None:
    pair = {"chosen": human("q", "a"), "rejected": human("q", "b")}
    pair = pair if transcript else {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert parse(**pair, preference=value).score == score


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0.49, r"is 0.49, outside \[0.5, 1\].*swap the two"),
        (math.nan, "is nan"),
        (True, "is a bool"),
        ("chosen", "is a str"),
    ],
)
def test_bad_soft_preference(value: object, problem: str) -> None:
    with pytest.raises(RowError, match=f"field 'preference': {problem}"):
        parse(prompt="q", chosen="a", rejected="b", preference=value)


@pytest.mark.parametrize("value", [1.01, 5, -1])
def test_a_preference_that_is_no_probability_stops_the_source(value: float) -> None:
    with pytest.raises(UserError, match=r"field 'preference' is .*from 0.5 to 1.*{preference: null}") as raised:
        parse(prompt="q", chosen="a", rejected="b", preference=value)
    assert not isinstance(raised.value, RowError)


def test_transcripts_of_several_turns() -> None:
    row = parse(chosen=human("q", "x\n\ny", "more", "a"), rejected=human("q", "x\n\ny", "more", " b\n"))
    before = [USER, {"role": "assistant", "content": "x\n\ny"}, MORE]
    assert split(row) == {"chosen": (before, [GOOD]), "rejected": (before, [BAD])}


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a\n"}, "rejected", "is the same answer as 'chosen'"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "rejected", "is the same answer as 'chosen'"),
        ({"chosen": human("q", "a"), "rejected": human("q", "a ")}, "rejected", "is the same answer as 'chosen'"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen", "the assistant text is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "rejected", "the assistant text is empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt", "the user text is empty"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt", r"is a int \(3\)"),
        ({"prompt": "q", "chosen": 1, "rejected": 2}, "chosen", r"is a int \(1\)"),
        ({"prompt": "q", "chosen": [], "rejected": [BAD]}, "chosen", "is an empty list"),
        ({"prompt": [GOOD], "chosen": "a", "rejected": "b"}, r"prompt\[0\].role", "opens with the assistant"),
        ({"prompt": "q", "chosen": [MORE, GOOD], "rejected": [BAD]}, "chosen", "not begin with the same prompt"),
        ({"prompt": "q", "chosen": [USER], "rejected": [BAD]}, "chosen", "not begin with the same prompt"),
        ({"prompt": "q", "chosen": [GOOD, TOOL], "rejected": [BAD]}, "chosen", "does not end with an assistant"),
        ({"prompt": "q", "chosen": [GOOD, MORE, GOOD], "rejected": [BAD]}, "chosen", "has a user turn inside"),
        ({"chosen": "a", "rejected": "b"}, "chosen", "is a string, and there is no prompt column"),
        ({"chosen": [USER, GOOD], "rejected": "b"}, "rejected", "is a string, and there is no prompt column"),
        ({"messages": [GOOD], "rejected": "b"}, r"messages\[0\].role", "opens with the assistant"),
        ({"chosen": {"role": "user"}, "rejected": [USER, BAD]}, r"chosen\[0\].content", "is missing"),
        ({"chosen": GOOD, "rejected": BAD}, r"chosen\[0\].role", "opens with the assistant"),
        ({"chosen": [GOOD], "rejected": [BAD]}, r"chosen\[0\].role", "opens with the assistant"),
        ({"chosen": [USER, GOOD], "rejected": [MORE, BAD]}, "rejected", "not begin with the same prompt"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, MORE, BAD]}, "rejected", "not begin with the same prompt"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "rejected", "does not end with an assistant"),
        ({"chosen": [USER, GOOD, MORE], "rejected": [USER, GOOD, MORE]}, "chosen", "does not end with an assistant"),
        ({"chosen": [USER, GOOD, MORE], "rejected": [USER, BAD]}, "chosen", "does not end with an assistant"),
        ({"chosen": human("q", "a"), "rejected": human("more", "b")}, "rejected", "not begin with the same prompt"),
        ({"chosen": human("q", "a"), "rejected": human("q", "")}, "rejected", "the assistant text is empty"),
        ({"chosen": human("q", "a"), "rejected": human("q", "b", "more")}, "rejected", "does not end with an assist"),
        ({"chosen": human("q", "a"), "rejected": human("q", "x", "more", "b")}, "rejected", "the same prompt"),
        ({"chosen": human("q") + human("q", "a"), "rejected": human("q", "b")}, "chosen", "turn 2 is again of Human"),
        ({"chosen": human("q", "a"), "rejected": "b"}, "rejected", "does not begin with the mark of a human turn"),
        ({"chosen": human("q", "a"), "rejected": [USER, BAD]}, "rejected", "is a list"),
        ({"prompt": "q", "chosen": human("q", "a"), "rejected": human("q", "b")}, "prompt", "not the start of"),
        ({"question": "", "chosen": "a", "rejected": "b"}, "question", "the user text is empty"),
        ({"question": "q", "chosen": ["a"], "rejected": "b"}, "chosen", "is a list"),
    ],
)
def test_bad_pairs(row: dict, field: str, problem: str) -> None:
    with pytest.raises(RowError, match=f"^rows.jsonl:7: field '{field}': .*{problem}") as raised:
        parse(**row)
    assert raised.value.remedy


TEXT = st.text("ab \n", min_size=1, max_size=4).filter(str.strip)


@pytest.mark.slow
@given(st.lists(st.tuples(TEXT, TEXT), max_size=2), TEXT, TEXT, TEXT)
def test_explicit_and_implicit_prompts_and_transcripts_give_the_same_row(
    history: list[tuple[str, str]], question: str, good: str, bad: str
) -> None:
    # Blank lines between the turns of a transcript are not part of them.
    texts = [text.strip() for turn in history for text in turn] + [question.strip()]
    good, bad = good.strip(), bad.strip()
    assume(good != bad)
    prompt = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    chosen, rejected = ({"role": "assistant", "content": text} for text in (good, bad))
    expected = {"chosen": (prompt, [chosen]), "rejected": (prompt, [rejected])}
    for row in (
        {"prompt": prompt, "chosen": good, "rejected": bad},
        {"prompt": prompt, "chosen": [*prompt, chosen], "rejected": [rejected]},
        {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]},
        {"chosen": human(*texts, good), "rejected": human(*texts, bad)},
    ):
        assert split(parse(**row)) == expected


def test_real_transcripts_give_the_rows_that_they_were_split_into() -> None:
    refused = []
    with (REAL_ROWS / "pairs" / "hh.jsonl").open(encoding="utf-8", newline="\n") as file:
        for data in map(json.loads, file):
            sides = {
                side: human(*(turn["content"] for turn in [*data["prompt"], *data[side]]))
                for side in ("chosen", "rejected")
            }
            try:
                row = parse(**sides)
            except RowError as error:
                refused.append((data["id"], error.problem))
                continue
            expected = parse(prompt=data["prompt"], chosen=data["chosen"], rejected=data["rejected"])
            assert stripped(row) == stripped(expected)
    assert refused == []


def stripped(row: Row) -> dict[str, list[tuple[str, str]]]:
    return {side: [(m["role"], m["content"].strip()) for m in c.messages] for side, c in row.sides.items()}


@pytest.mark.parametrize("scores", [(7, 3), (5, 5), (None, 9), ("8.5", "8")])
def test_scores_that_agree_with_the_order_are_fine(scores: tuple[object, object]) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": scores[0], "score_rejected": scores[1]}
    assert to_row(Record(row, "r#0")).score is None


def test_scores_against_the_order_are_refused() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 7.5}
    with pytest.raises(RowError, match=r"r#0: field 'score_chosen': is 3, below score_rejected \(7.5\)"):
        to_row(Record(row, "r#0"))


def test_soft_labels_from_scores() -> None:
    """Scores 8 and 7, scale 2: σ(1/2). Equal scores are a coin flip, and a great difference overflows nothing."""
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}

    def label(parser: RowParser, chosen: object, rejected: object) -> float | None:
        data = {**pair, "score_chosen": chosen, "score_rejected": rejected}
        return parser.parse(Record(data, "rows.jsonl:7")).score

    assert label(RowParser(preference_scale=2.0), 8, 7) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert label(RowParser(preference_scale=2.0), 7.5, 7.5) == 0.5
    assert label(RowParser(preference_scale=1e-3), 1e6, 0) == 1.0
    assert label(RowParser(), 8, 7) is None
    for data, problem in (
        (pair, "field 'score_chosen': is missing"),
        ({**pair, "score_chosen": 8}, "field 'score_rejected': is missing"),
        ({**pair, "score_chosen": 8, "score_rejected": 7, "preference": 0.9}, "and preference_scale is set as well"),
        ({**pair, "score_chosen": 6, "score_rejected": 7}, "below score_rejected"),
        ({**pair, "score_chosen": "eight", "score_rejected": 7}, "field 'score_chosen'"),
    ):
        with pytest.raises(RowError, match=problem):
            RowParser(preference_scale=1.0).parse(Record(data, "rows.jsonl:7"))
    with pytest.raises(UserError, match="preference_scale=1 is set, but layout 'unpaired' has no pairs"):
        RowParser(preference_scale=1.0, layout="unpaired")
    with pytest.raises(UserError, match=r"rows.jsonl:7: preference_scale=1 is set, but layout 'prompt_completion'"):
        RowParser(preference_scale=1.0).parse(Record({"prompt": "q", "completion": "a"}, "rows.jsonl:7"))
