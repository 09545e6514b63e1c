"""Scores and thumbs: scaled to [0, 1], about the last reply alone, and never guessed from a wrong value."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.readers import Record
from lit_ift.data.rows import Row
from lit_ift.errors import RowError, UserError

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
TOOL = {"role": "tool", "content": "3"}
MARKS = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}


def parse(score_range: tuple[float, float] | None = None, /, **data: object) -> Row:
    return to_row(Record(data, "rows.csv#7"), score_range=score_range)


def pairs(row: Row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.sides["answer"].messages]


@pytest.mark.slow
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(0, 1))
def test_scores_are_scaled_to_the_unit_interval(low: float, width: float, share: float) -> None:
    high = low + width
    score = min(high, max(low, low + share * width))
    scaled = parse((low, high), prompt="q", completion="a", score=score).score
    assert scaled is not None
    assert 0 <= scaled <= 1
    assert scaled == pytest.approx(share, abs=1e-6)
    assert parse((low, high), prompt="q", completion="a", score=low).score == 0
    assert parse((low, high), prompt="q", completion="a", score=high).score == 1
    for outside in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf)):
        with pytest.raises(RowError, match="the declared score_range"):
            parse((low, high), prompt="q", completion="a", score=outside)


@pytest.mark.parametrize(
    ("value", "score"), [(0, 0.0), (1, 1.0), (0.25, 0.25), ("0.5", 0.5), (" 1 ", 1.0), ("1e-1", 0.1), (".5", 0.5)]
)
def test_scores_that_are_numbers(value: object, score: float) -> None:
    assert parse(prompt="q", response="a", score=value).score == score


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (True, "is a bool"),
        (math.nan, "is nan"),
        (math.inf, "is inf"),
        (10**400, "is inf"),
        ("8/10", r"is a str \('8/10'\)"),
        ("0,5", r"is a str \('0,5'\)"),
        ("nan", r"is a str \('nan'\)"),
        ("1_0", r"is a str"),
        ("", r"is a str"),
        ("٣", r"is a str"),
        ([0.5], "is a list"),
    ],
)
def test_scores_that_are_none(value: object, problem: str) -> None:
    with pytest.raises(RowError, match=f"^rows.csv#7: field 'score': {problem}") as raised:
        parse(prompt="q", response="a", score=value)
    assert raised.value.remedy


@pytest.mark.parametrize("value", [8.5, -0.01, "8.5", 2])
def test_a_score_outside_the_range_stops_the_source_unless_the_range_is_declared(value: object) -> None:
    """Without a range, the rows that would be left after skipping it are those of the worst answers."""
    with pytest.raises(UserError, match=r"'score' is .*outside \[0, 1\]. Declare .* score_range: \[1, 10\]") as raised:
        parse(prompt="q", response="a", score=value)
    assert not isinstance(raised.value, RowError)
    with pytest.raises(RowError, match=r"field 'score': is .*, outside \[0.25, 0.75\], the declared score_range"):
        parse((0.25, 0.75), prompt="q", response="a", score=value)


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (True, 1),
        (False, 0),
        (1, 1),
        (0, 0),
        (1.0, 1),
        ("true", 1),
        ("False", 0),
        ("1", 1),
        ("0", 0),
        ("1.0", 1),
        (0.0, 0),
    ],
)
def test_labels(value: object, score: float) -> None:
    row = parse(messages=[USER, ASSISTANT], label=value)
    assert (row.kind, row.score) == ("unpaired", score)


@pytest.mark.parametrize("value", [math.nan, "", "yes", "math", [True]])
def test_other_labels_are_refused(value: object) -> None:
    with pytest.raises(RowError, match=r"field 'label': .* It must be true or 1 for a good answer.*{label: null}"):
        parse(messages=[USER, ASSISTANT], label=value)


@pytest.mark.parametrize("value", [-1, 2, 0.5, "3", 10**400])
def test_numbers_that_are_no_labels_stop_the_source(value: object) -> None:
    """Skipped, they would leave the rows with 1: of labels from 1 to 5 the worst answers, as good ones."""
    with pytest.raises(UserError, match=r"field 'label' is .*{score: label}.*{label: null}") as raised:
        parse(messages=[USER, ASSISTANT], label=value)
    assert not isinstance(raised.value, RowError)


def test_only_the_last_reply_is_judged() -> None:
    row = parse(messages=[USER, ASSISTANT, USER, ASSISTANT, TOOL, ASSISTANT], score=1)
    assert row.sides["answer"].target_turns == [3, 5]
    row = parse(prompt=[USER, ASSISTANT, USER], completion=[ASSISTANT], label=True)
    assert row.sides["answer"].target_turns == [3]
    row = parse(messages=[USER, TOOL, ASSISTANT], score=1)
    assert row.sides["answer"].num_prompt_messages == 2
    assert pairs(parse(prompt="q", completion="a", score=1, system="s"))[0] == ("system", "s")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [USER, ASSISTANT, USER]}, "field 'messages': does not end with an assistant turn"),
        ({"messages": [ASSISTANT]}, r"field 'messages\[0\].role': the conversation opens with the assistant"),
        ({"messages": [USER, ASSISTANT, TOOL]}, "field 'messages': does not end with an assistant turn"),
        ({"prompt": "q", "completion": [ASSISTANT, USER, ASSISTANT]}, "field 'completion': has a user turn inside"),
        ({"prompt": "q", "completion": [USER]}, "field 'completion': has no assistant turn"),
        ({"prompt": "q", "completion": [TOOL, ASSISTANT]}, "field 'completion': has a tool turn inside"),
        ({"prompt": "q", "completion": ""}, "field 'completion': the assistant text is empty"),
        ({"prompt": "q", "completion": 3}, "field 'completion': is a int"),
        ({"prompt": "", "completion": "a"}, "field 'prompt': the user text is empty"),
        ({"prompt": "q", "completion": "a", "response": "b"}, "field 'response': is ignored .*Keep one answer"),
        (
            {"prompt": "q", "completion": "a", "messages": [USER, ASSISTANT]},
            "hold an answer each .layouts messages and p",
        ),
    ],
)
def test_bad_answers(row: dict, problem: str) -> None:
    for worth in ({"score": 1}, {"label": True}):
        with pytest.raises(RowError, match=problem):
            parse(**row, **worth)


def test_helpsteer2() -> None:
    row = parse(prompt="q", response="a", **MARKS)
    assert (row.kind, row.score) == ("scored", 0.75)
    assert pairs(row) == [("user", "q"), ("assistant", "a")]
    prompt = "one\nline\n\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\n\nthree <extra_id_1>"
    row = parse(prompt=prompt, response="four", **MARKS)
    expected = [("user", "one\nline"), ("assistant", "two"), ("user", "\nthree <extra_id_1>"), ("assistant", "four")]
    assert pairs(row) == expected
    assert row.sides["answer"].target_turns == [3]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"helpfulness": 5}, r"field 'helpfulness': is 5, outside \[0, 4\]"),
        ({"verbosity": -1}, r"field 'verbosity': is -1, outside \[0, 4\]"),
        ({"coherence": "high"}, "field 'coherence': is a str"),
        ({"prompt": "q\n<extra_id_1>Assistant\na"}, "field 'prompt': ends with the turn of the assistant"),
        ({"prompt": "q\n<extra_id_1>User\nq"}, "field 'prompt': turn 2 is again of User"),
        ({"prompt": "<extra_id_1>User\nq"}, "field 'prompt': the user text is empty"),
        ({"prompt": ["q"]}, "field 'prompt': is a list"),
        ({"response": " "}, "field 'response': the assistant text is empty"),
    ],
)
def test_bad_helpsteer2_rows(change: dict, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        parse(**{"prompt": "q", "response": "a", **MARKS, **change})
