"""Layouts: recognised by the columns, one for a whole source, and never guessed."""

import copy
import json
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowfiles import REAL_ROWS

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.layouts import LAYOUTS, MAX_CACHED, Layout, candidates, misspelt
from lit_ift.data.parse.row_parser import RowParser, to_row
from lit_ift.data.read.readers import Record
from lit_ift.data.rows import SIDES, Row
from lit_ift.errors import RowError, UserError

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
HH = "\n\nHuman: q\n\nAssistant: "
ROWS = {
    "messages": {"messages": [USER, ASSISTANT]},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "alpaca": {"instruction": "q", "output": "a"},
    "dolly": {"instruction": "q", "response": "a"},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "ultrachat": {"data": ["q", "a"]},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "hh_rlhf": {"chosen": HH + "a", "rejected": HH + "b"},
    "orca": {"system": "", "question": "q", "chosen": "a", "rejected": "b"},
    "unpaired": {"prompt": "q", "completion": "a", "label": True},
    "scored": {"prompt": "q", "completion": "a", "score": 0.5},
    "helpsteer2": {
        "prompt": "q",
        "response": "a",
        **dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 2),
    },
}
"""A row of each layout that can be recognised; the question is q, the good answer a."""


def record(data: dict, line: int = 7) -> Record:
    return Record(data, f"rows.jsonl:{line}")


def parse(layout: str | None = None, /, **data: object) -> Row:
    return to_row(record(data), layout=layout)


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("declared", [False, True])
def test_each_layout_is_recognised_and_may_be_declared(name: str, declared: bool) -> None:
    parser = RowParser(layout=name if declared else None)
    assert parser.layout == (name if declared else None)
    row = parser.parse(record({**ROWS[name], "id": 1, "category": None}))
    assert parser.layout == name
    assert (row.kind, row.origin) == (LAYOUTS[name].kind, "rows.jsonl:7")
    assert tuple(row.sides) == SIDES[row.kind]
    expected = {"answer": "a", "chosen": "a", "rejected": "b"}
    for side, conversation in row.sides.items():
        assert turns(conversation) == [("user", "q"), ("assistant", expected[side])]
        assert conversation.target_turns == [1]
    scores = {"unpaired": 1.0, "scored": 0.5}
    assert row.score == scores.get(row.kind)


def test_every_layout_is_tried_above() -> None:
    assert set(LAYOUTS) == {*ROWS, "chosen", "text"}  # Of texts see test_text.py.


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("scored", {**ROWS["messages"], "score": 1}),
        ("scored", {"prompt": "q", "response": "a", "score": 1}),
        ("unpaired", {**ROWS["messages"], "label": 0}),
        ("messages", {**ROWS["messages"], "label": None, "prompt": "q", "prompt_id": "0"}),
        ("messages", {**ROWS["messages"], "data": {"some": "thing"}}),
        ("preference", {**ROWS["preference"], **ROWS["messages"], "score_chosen": 8.0, "score_rejected": 7.0}),
        ("preference", {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}),
        ("hh_rlhf", {"prompt": HH, "chosen": " a", "rejected": " b"}),
        ("alpaca", {**ROWS["alpaca"], "input": "x", "text": "### Instruction"}),
    ],
)
def test_the_more_specific_layout_wins(name: str, row: dict) -> None:
    parser = RowParser()
    parser.parse(record(row))
    assert parser.layout == name


@pytest.mark.parametrize(
    ("row", "fitting"),
    [
        ({**ROWS["messages"], **ROWS["prompt_completion"]}, "messages, prompt_completion"),
        ({**ROWS["messages"], "label": True, "score": 1}, "unpaired, scored"),
        ({**ROWS["alpaca"], **ROWS["dolly"]}, "alpaca, dolly"),
    ],
)
def test_several_fitting_layouts_are_an_error_of_the_source(row: dict, fitting: str) -> None:
    with pytest.raises(
        UserError, match=rf"^rows.jsonl:7: columns .* fit several layouts: {fitting}. Set layout"
    ) as raised:
        parse(**row)
    assert not isinstance(raised.value, RowError)
    declared = fitting.split(", ")[0]
    if declared != "unpaired":
        assert parse(declared, **row).kind == LAYOUTS[declared].kind


def test_a_source_of_two_layouts_is_an_error_that_names_both() -> None:
    parser = RowParser()
    parser.parse(record(ROWS["messages"], 1))
    with pytest.raises(
        UserError,
        match=r"^rows.jsonl:9: columns 'prompt', 'completion' are those of layout 'prompt_completion', but "
        r"rows.jsonl:1 has layout 'messages' \(columns 'messages'\). Split the source into one per layout, or set ",
    ) as raised:
        parser.parse(record(ROWS["prompt_completion"], 9))
    assert not isinstance(raised.value, RowError)


@pytest.mark.parametrize("first", ROWS)
@pytest.mark.parametrize("second", ROWS)
def test_no_row_is_read_by_the_layout_of_another(first: str, second: str) -> None:
    parser = RowParser()
    parser.parse(record(ROWS[first], 1))
    if first == second:
        assert parser.parse(record(ROWS[second], 2)).kind == LAYOUTS[first].kind
    else:
        with pytest.raises(UserError):
            parser.parse(record(ROWS[second], 2))
    assert parser.layout == first


def test_rows_of_a_mixed_arrow_table_are_not_taken_for_rows_with_holes() -> None:
    parser = RowParser()
    parser.parse(record({**ROWS["messages"], "prompt": None, "completion": None}))
    with pytest.raises(UserError, match="are those of layout 'prompt_completion'") as raised:
        parser.parse(record({**ROWS["prompt_completion"], "messages": None}))
    assert not isinstance(raised.value, RowError)


@pytest.mark.parametrize(
    ("name", "hole", "field"),
    [
        ("scored", {**ROWS["scored"], "score": None}, "score"),
        ("preference", {**ROWS["preference"], "chosen": None}, "chosen"),
        ("preference", {**ROWS["preference"], "chosen": None, "messages": [USER, ASSISTANT]}, "messages"),
        ("messages", {"messages": None}, "messages"),
        ("messages", {}, "messages"),
        ("dolly", {"instruction": "q"}, "response"),
        ("hh_rlhf", {**ROWS["hh_rlhf"], "chosen": "a"}, "chosen"),
        ("ultrachat", {"data": [1, 2]}, r"data\[0\]"),
    ],
)
def test_a_row_that_lacks_a_value_is_left_out_alone(name: str, hole: dict, field: str) -> None:
    parser = RowParser()
    parser.parse(record(ROWS[name], 1))
    with pytest.raises(RowError, match=f"^rows.jsonl:2: field '{field}': ") as raised:
        parser.parse(record(hole, 2))
    assert raised.value.remedy
    parser.parse(record(ROWS[name], 3))


def test_rows_before_the_first_recognised_one_do_not_decide() -> None:
    parser = RowParser()
    with pytest.raises(RowError, match="fit no known layout") as raised:
        parser.parse(record({"note": "hi"}))
    assert raised.value.reason == "layout"
    assert parser.layout is None
    parser.parse(record(ROWS["alpaca"]))
    with pytest.raises(RowError, match="field 'output': missing, but layout 'alpaca' needs it"):
        parser.parse(record({"instruction": "q"}))


@pytest.mark.slow
def test_rows_with_columns_of_their_own_cost_no_memory() -> None:
    parser = RowParser()
    for line in range(2 * MAX_CACHED):
        parser.parse(record({**ROWS["messages"], f"{line:x}": 1}, line))
    assert {cached.cache_info().maxsize for cached in (candidates, misspelt)} == {MAX_CACHED}
    with pytest.raises(RowError) as raised:
        RowParser().parse(record({"x" * 10**6 + str(line): 1 for line in range(100)}))
    assert len(str(raised.value)) < 4000


def test_unknown_columns_are_listed_with_near_misses() -> None:
    with pytest.raises(RowError, match=r"'mesages', 'id' fit no known layout. Perhaps 'mesages' should be 'messages'"):
        parse(mesages=[USER, ASSISTANT], id=1)
    with pytest.raises(RowError, match=r"'promt', 'completion' .*Perhaps .* say --columns '{prompt: promt}'"):
        parse(promt="a", completion="b")
    with pytest.raises(
        RowError, match=r"'title' fit no known layout. Say what they are.* alpaca \(instruction, output"
    ):
        parse(title="a")
    with pytest.raises(RowError, match=r"columns \(none\) fit no known layout"):
        parse()


@pytest.mark.parametrize(
    ("row", "column", "known"),
    [
        ({**ROWS["messages"], "lable": False}, "lable", "label"),
        ({**ROWS["messages"], "Scor": 0.0}, "Scor", "score"),
        ({**ROWS["prompt_completion"], "labell": 0}, "labell", "label"),
        ({**ROWS["alpaca"], "inputs": "x"}, "inputs", "input"),
        ({**ROWS["preference"], "preferences": 0.5}, "preferences", "preference"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "promt": "q"}, "promt", "prompt"),
        ({**ROWS["messages"], "tool": [{}]}, "tool", "tools"),
    ],
)
def test_a_misspelt_column_that_would_change_the_meaning_is_not_ignored(row: dict, column: str, known: str) -> None:
    with pytest.raises(RowError, match=f"field '{column}': is no column .*{{{known}: {column}}}.*{{{column}: null}}"):
        parse(**row)
    parser = RowParser()
    parser.parse(record({name: value for name, value in row.items() if name != column}, 1))
    with pytest.raises(UserError, match=f"'{column}'"):
        parser.parse(record(row, 2))
    assert parse(parser.layout, **row)
    assert RowParser(columns={column: None}).parse(record(row))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**ROWS["alpaca"], "context": "x"}, "context"),
        ({**ROWS["alpaca"], "history": [["q", "a"]]}, "history"),
        ({**ROWS["dolly"], "input": "x"}, "input"),
        ({**ROWS["orca"], "prompt": "x"}, "prompt"),
    ],
)
def test_a_part_of_the_prompt_is_not_ignored(row: dict, column: str) -> None:
    with pytest.raises(RowError, match=f"field '{column}': is ignored by layout"):
        parse(**row)
    assert parse(**{**row, column: ""})


def test_declared_layout() -> None:
    both = {**ROWS["messages"], "prompt": "p", "completion": "c"}
    assert turns(parse("prompt_completion", **both).sides["answer"]) == [("user", "p"), ("assistant", "c")]
    with pytest.raises(UserError, match=r"layout='alpacca' is not known. Did you mean 'alpaca'"):
        parse("alpacca", instruction="x", output="y")
    with pytest.raises(RowError, match=r"rows.jsonl:7: field 'output': missing, but layout 'alpaca' needs it") as error:
        parse("alpaca", instruction="x", outptu="y")
    assert error.value.reason == "layout"
    assert "'outptu' should be 'output'" in error.value.remedy


@pytest.mark.parametrize("name", ["preference", "hh_rlhf", "orca"])
def test_chosen_takes_one_answer_of_any_pair(name: str) -> None:
    row = parse("chosen", **ROWS[name])
    assert row.kind == "instruction"
    assert turns(row.sides["answer"]) == [("user", "q"), ("assistant", "a")]
    assert parse("chosen", **{**ROWS[name], "rejected": ROWS[name]["chosen"]}) == row


def test_a_layout_is_one_function_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(record: Record, _: object) -> Row:
        answer = Conversation([{"role": "user", "content": record.data["q"]}, {"role": "assistant", "content": "a"}])
        return Row("instruction", record.origin, {"answer": answer})

    monkeypatch.setitem(LAYOUTS, "mine", Layout("instruction", (("q",),), read))
    assert turns(parse(q="hi").sides["answer"]) == [("user", "hi"), ("assistant", "a")]


def test_score_range_is_checked_and_must_have_an_effect() -> None:
    for wrong in ((1.0, 1.0), (10.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0), (-1e308, 1e308)):
        with pytest.raises(UserError, match="must be two finite numbers, the lower one first"):
            RowParser(score_range=wrong)
    with pytest.raises(UserError, match="layout 'unpaired' has no score to scale"):
        RowParser(layout="unpaired", score_range=(1, 10))
    with pytest.raises(UserError, match="layout 'messages' has no score to scale"):
        RowParser(layout="messages", score_range=(1, 10)).parse(record(ROWS["messages"]))
    assert RowParser(layout="messages", score_range=(0, 5)).parse(record({**ROWS["messages"], "score": 1})).score == 0.2
    with pytest.raises(UserError, match=r"rows.jsonl:7: score_range=\[1, 10\] is set, but layout 'messages'"):
        RowParser(score_range=(1, 10)).parse(record(ROWS["messages"]))
    assert RowParser(score_range=(0, 5)).parse(record(ROWS["scored"])).score == 0.1


def prompt(layout: str | None = None, /, **data: object) -> Conversation:
    row = to_row(record(data), layout=layout, needs_answer=False)
    assert row.kind == "instruction"
    return row.sides["answer"]


@pytest.mark.parametrize("named", [False, True])
def test_rows_without_an_answer_are_prompts_where_that_is_allowed(named: bool) -> None:
    question, tool = [("user", "q")], {"role": "tool", "content": "3"}
    answered = [USER, ASSISTANT, tool]
    rows = [
        ("prompt_completion", {"prompt": "q"}, question),
        ("prompt_completion", {"prompt": "q", "completion": None}, question),
        ("prompt_completion", {"prompt": [USER, ASSISTANT, USER]}, [*question, ("assistant", "a"), *question]),
        ("messages", {"messages": [USER]}, question),
        ("messages", {"messages": answered, "tools": [{"name": "f"}]}, [*question, ("assistant", "a"), ("tool", "3")]),
        ("alpaca", {"instruction": "q", "input": ""}, question),
        ("alpaca", {"instruction": "q", "input": "x", "output": None}, [("user", "q\n\nx")]),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}]}, question),
    ]
    for layout, row, expected in rows:
        conversation = prompt(layout if named else None, **row)
        assert turns(conversation) == expected
        assert conversation.is_prompt
        assert conversation.target_turns == []
        assert conversation.tools == row.get("tools")
    for row in ({"prompt": "q"}, {"messages": [USER]}, {"instruction": "q"}):
        with pytest.raises(RowError):
            parse(**row)


def test_dolly_prompts_need_the_name_of_the_layout_where_they_have_a_context() -> None:
    assert turns(prompt(instruction="q")) == [("user", "q")]
    with pytest.raises(RowError, match="field 'context': is ignored by layout 'alpaca'"):
        prompt(instruction="q", context="x")
    assert turns(prompt("dolly", instruction="q", context="x")) == [("user", "q\n\nx")]
    parser = RowParser(needs_answer=False)
    parser.parse(record(ROWS["dolly"]))
    assert parser.parse(record({"instruction": "q", "context": "x"})).sides["answer"].is_prompt


def test_rows_with_an_answer_are_read_alike_with_and_without_need_of_one() -> None:
    for row in (
        *(row for name, row in ROWS.items() if LAYOUTS[name].kind == "instruction"),
        {"prompt": "q", "messages": [USER, ASSISTANT]},
        {"messages": [USER, ASSISTANT, {"role": "system", "content": "s"}]},
    ):
        assert prompt(**row) == parse(**row).sides["answer"]
        assert not prompt(**row).is_prompt


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": [USER, ASSISTANT]}, "field 'prompt': has no answer and ends with the turn of the assistant"),
        ({"messages": [ASSISTANT, USER]}, r"field 'messages\[0\].role': the conversation opens with the assistant"),
        ({"messages": [{"role": "system", "content": "s"}]}, "field 'messages': has no assistant turn"),
        ({"prompt": " "}, "field 'prompt': the user text is empty"),
        ({"prompt": 3}, "field 'prompt': is a int"),
        ({"prompt": "q", "instruction": "q"}, "fit several layouts: prompt_completion, alpaca"),
        ({"title": "q"}, "fit no known layout"),
    ],
)
def test_prompts_that_cannot_be_answered(row: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        prompt(**row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["q", "a", "user"]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), part),
    max_leaves=4,
)
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
RICH = [
    *ROWS.values(),
    {"messages": [USER, CALL, {"role": "tool", "content": "3"}, ASSISTANT], "tools": [{"name": "f"}], "system": "s"},
    {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "gold": "a", "preference": 0.7},
    {"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "messages": [USER, ASSISTANT]},
    {"conversations": [*ROWS["sharegpt"]["conversations"], {"from": "function_call", "value": '{"name": "f"}'}]},
]


def places(value: object) -> Iterator[tuple[object, object]]:
    """Every container within `value` with each of its keys or indices."""
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, part in parts:
        yield value, key
        yield from places(part)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=600, deadline=None)
def test_a_damaged_row_is_refused_or_still_a_sound_row(data: st.DataObject) -> None:
    row = copy.deepcopy(data.draw(st.sampled_from(RICH)))
    layout = data.draw(st.sampled_from([None, *LAYOUTS]))
    container, key = data.draw(st.sampled_from(list(places(row))))
    if data.draw(st.booleans()):
        container[key] = data.draw(JSON)
    else:
        del container[key]
    try:
        parsed = to_row(record(row), layout=layout, needs_answer=data.draw(st.booleans()))
    except UserError as error:
        assert str(error).startswith("rows.jsonl:7: ")  # noqa: PT017
        return
    text = json.dumps(row)
    assert tuple(parsed.sides)[: len(SIDES[parsed.kind])] == SIDES[parsed.kind]
    assert parsed.score is None or 0 <= parsed.score <= 1
    prompts = []
    for conversation in parsed.sides.values():
        assert conversation.target_turns or conversation.is_prompt
        assert conversation.messages[0]["role"] != "assistant"
        for message in conversation.messages:
            assert message["content"].strip() or message["tool_calls"]
            for piece in message["content"].split("\n\n"):
                assert json.dumps(piece)[1:-1] in text
        prompts.append(conversation.messages[: conversation.num_prompt_messages])
    assert all(prompt == prompts[0] for prompt in prompts)


KINDS = {"instruct": "instruction", "pairs": "preference", "thumbs": "unpaired", "ultrafeedback_scored": "scored"}


@pytest.mark.parametrize("folder", ["instruct", "pairs", "scored"])
def test_all_real_rows_are_read(folder: str) -> None:
    files = sorted((REAL_ROWS / folder).glob("*.jsonl"))
    assert files
    for path in files:
        parser = RowParser(score_range=(1, 10) if path.name.startswith("ultrafeedback_scored") else None)
        with path.open(encoding="utf-8", newline="\n") as file:
            rows = [parser.parse(Record(json.loads(line), f"{path.name}:{n}")) for n, line in enumerate(file, 1)]
        kind = next(kind for start, kind in KINDS.items() if start == folder or path.name.startswith(start))
        assert Counter(row.kind for row in rows) == {kind: len(rows)}
        assert all(conversation.target_turns for row in rows for conversation in row.sides.values())
        if kind in ("scored", "unpaired"):
            assert all(row.score is not None and 0 <= row.score <= 1 for row in rows)
            assert len({row.score for row in rows}) > 1
