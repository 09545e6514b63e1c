"""Columns: read by the user's names and by everyday ones, and never ignored where they change what a row means."""

import json

import pytest

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.columns import MEANINGS
from lit_ift.data.parse.layouts import LAYOUTS
from lit_ift.data.parse.row_parser import RowParser
from lit_ift.data.read.readers import Record
from lit_ift.data.rows import Row
from lit_ift.errors import RowError, UserError

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
ANSWERED = {
    "messages": {"messages": [USER, ASSISTANT]},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "dolly": {"instruction": "q", "context": "", "response": "a"},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "ultrachat": {"data": ["q", "a"]},
}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def parse(data: dict, layout: str | None = None, **options: object) -> Row:
    return RowParser(layout=layout, **options).parse(Record(data, "rows.jsonl:7"))


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def is_asked_and_answered(row: Row) -> bool:
    return turns(row.sides["answer"]) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("name", ANSWERED)
def test_a_label_or_score_counts_whatever_the_layout(name: str, declared: bool) -> None:
    layout = name if declared else None
    for column in ("label", "Label", "kto_tag", "KTO-Tag"):
        for value, worth in ((False, 0.0), (1, 1.0)):
            row = parse({**ANSWERED[name], column: value}, layout)
            assert (row.kind, row.score) == ("unpaired", worth)
            assert is_asked_and_answered(row)
    row = parse({**ANSWERED[name], "score": 2}, layout, score_range=(1, 5))
    assert (row.kind, row.score) == ("scored", 0.25)
    assert row.sides["answer"].num_prompt_messages == 1
    row = parse({**ANSWERED[name], "label": None, "score": None}, layout)
    assert row.kind == "instruction"


@pytest.mark.parametrize("name", ANSWERED)
def test_the_last_reply_alone_is_judged(name: str) -> None:
    longer = {
        "messages": {"messages": [USER, ASSISTANT] * 2},
        "sharegpt": {"conversations": [HUMAN, GPT] * 2},
        "ultrachat": {"data": ["q", "a"] * 2},
    }
    if name in longer:
        assert parse({**longer[name], "label": True}).sides["answer"].target_turns == [3]


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("column", [*MEANINGS, "Rating", "Thumbs Up", "IMAGES", "margin", "winner"])
def test_no_layout_ignores_a_column_that_changes_the_meaning(column: str, declared: bool) -> None:
    """It is read, which shows in the row, or refused with the way out; said to mean nothing, it changes nothing."""
    for name, data in {**ANSWERED, "preference": PAIR}.items():
        layout = name if declared else None
        plain = parse(data, layout)
        if column in data:
            continue
        try:
            row = parse({**data, column: 0.5}, layout)
        except UserError as error:
            assert f"'{column}'" in str(error)  # noqa: PT017
            if column not in ("chosen", "rejected", "gold", "label", "preference", "score"):
                assert f"{column.lower().replace(' ', '_')}: null}}'" in str(error)  # noqa: PT017
        else:
            assert row != plain or column in ("score_chosen", "score_rejected")
        parser = RowParser(layout=layout, columns={column: None})
        assert parser.parse(Record({**data, column: 0.5}, "rows.jsonl:7")) == plain
        assert parser.names.left_out[column] == 1


def test_a_refusal_names_what_would_be_read_and_every_column_that_is_in_the_way() -> None:
    with pytest.raises(RowError) as raised:
        parse({**ANSWERED["alpaca"], "rating": 1, "stars": 2})
    assert str(raised.value) == (
        "rows.jsonl:7: field 'rating': holds how good the answer is, which layout 'alpaca' does not read. --columns "
        "'{score: rating}' says that it is the score; --columns '{rating: null, stars: null}' says that they mean "
        "nothing (in a configuration: data.columns)"
    )
    rated = {**ANSWERED["alpaca"], "rating": 1}
    assert parse(rated, columns={"score": "rating"}).score == 1.0
    assert parse(rated, columns={"rating": None}).kind == "instruction"


@pytest.mark.parametrize("layout", ["sharegpt", "messages", "alpaca"])
def test_a_declared_layout_that_ignores_the_answers_of_a_pair_refuses(layout: str) -> None:
    with pytest.raises(RowError, match=r"field 'chosen': .*layout: preference.*{chosen: null, rejected: null}"):
        parse({**ANSWERED[layout], "chosen": "a", "rejected": "b"}, layout)


def test_empty_lists_and_texts_say_nothing() -> None:
    for nothing in ([], "", None, {}):
        for column in ("images", "rating", "winner"):
            assert is_asked_and_answered(parse({**ANSWERED["messages"], column: nothing}))


def test_rows_of_a_declared_layout_agree_on_their_kind() -> None:
    parser = RowParser(layout="alpaca")
    parser.parse(Record({**ANSWERED["alpaca"], "label": True}, "rows.jsonl:1"))
    with pytest.raises(RowError, match=r"rows.jsonl:2: field 'label': is missing, but the rows before have one"):
        parser.parse(Record(ANSWERED["alpaca"], "rows.jsonl:2"))
    parser = RowParser(layout="alpaca")
    parser.parse(Record(ANSWERED["alpaca"], "rows.jsonl:1"))
    with pytest.raises(UserError, match=r"rows.jsonl:2: the row is unpaired data, but the rows before are instruction"):
        parser.parse(Record({**ANSWERED["alpaca"], "label": False}, "rows.jsonl:2"))


B, OTHER = {"from": "gpt", "value": "b"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "data",
    [
        {"messages": [USER, ASSISTANT], "rejected_response": "b"},
        {"messages": [USER, ASSISTANT], "rejected_messages": [USER, OTHER]},
        {"messages": [USER], "chosen": ASSISTANT, "rejected": OTHER},
        {"messages": [USER], "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        {"messages": [USER, ASSISTANT], "chosen": "a", "rejected": "b"},
        {"instruction": "q", "output": "a", "chosen": "a", "rejected": "b"},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": B},
        {"conversations": [HUMAN], "chosen": "a", "rejected": "b"},
        {"conversations": [HUMAN], "chosen": [GPT], "rejected": [B]},
        {"conversations": [HUMAN], "chosen": [HUMAN, GPT], "rejected": [HUMAN, B]},
        {"conversations": [HUMAN], "chosen": ASSISTANT, "rejected": OTHER},
        {"conversations": [HUMAN, GPT], "rejected": B},
        {"chosen": [HUMAN, GPT], "rejected": [HUMAN, B]},
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": GPT, "rejected": [B]},
        {"instruction": "q", "input": None, "output": "a", "rejected": "b"},
        {"instruction": "q", "context": "", "response": "a", "rejected_response": "b"},
        {"prompt": "q", "completion": "a", "rejected": "b"},
        {"prompt": "q", "chosen_response": "a", "rejected_response": "b"},
        {"query": "q", "response": "a", "rejected_response": "b"},
        {"query": "q", "chosen": "a", "rejected": "b"},
        {"Input": "q", "Chosen": "a", "Rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
    ],
)
def test_pairs_in_every_form(data: dict) -> None:
    row = parse(data)
    assert row.kind == "preference"
    assert {side: turns(it) for side, it in row.sides.items()} == {
        "chosen": [("user", "q"), ("assistant", "a")],
        "rejected": [("user", "q"), ("assistant", "b")],
    }
    assert all(side.num_prompt_messages == 1 for side in row.sides.values())


def test_the_prompt_of_an_alpaca_or_dolly_pair_has_its_input() -> None:
    for column in ("input", "context"):
        row = parse({"instruction": "q", column: "x", "chosen": "a", "rejected": "b"})
        assert turns(row.sides["rejected"]) == [("user", "q\n\nx"), ("assistant", "b")]
    with pytest.raises(RowError, match="field 'context': is there, and so is 'input'"):
        parse({"instruction": "q", "input": "x", "context": "y", "chosen": "a", "rejected": "b"})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            {"messages": [USER, OTHER], "chosen": "a", "rejected": "b"},
            "'chosen': is not the answer that the row has",
        ),
        ({**PAIR, "completion": "c"}, "'chosen': is not the answer that the row has"),
        (
            {"instruction": "q", "output": "c", "chosen": "a", "rejected": "b"},
            "'chosen': is not the answer that the row",
        ),
        (
            {"conversations": [HUMAN], "chosen": HUMAN, "rejected": B},
            "'chosen': does not begin with .* 'conversations'",
        ),
        ({"conversations": [HUMAN], "prompt": "q", "chosen": "a", "rejected": "b"}, "holds a prompt, and so does 'pro"),
        ({"conversations": [HUMAN], "rejected": "b"}, "'conversations': does not end with an assistant turn"),
        ({**PAIR, "winner": "rejected"}, "'winner': holds which answer is the better one"),
        ({**PAIR, "margin": -1.0}, "'margin': holds by how much"),
        ({**PAIR, "label": True}, "'label'"),
        ({**PAIR, "chosen_score": 1, "rejected_score": 2}, "'chosen_score': is 1, below"),
        ({**PAIR, "chosen-rating": 1, "rejected-rating": 2}, "'chosen-rating': is 1, below"),
        ({"messages": [USER, ASSISTANT], "chosen": "a"}, "'chosen'"),
        ({"messages": [USER, ASSISTANT], "score_chosen": 1.0}, "'score_chosen'"),
    ],
)
def test_what_a_pair_says_is_read_or_refused(data: dict, problem: str) -> None:
    with pytest.raises(RowError, match=f"^rows.jsonl:7: .*{problem}"):
        parse(data)


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer"),
        ("Question", "Answer"),
        ("prompt", "response"),
        ("INPUT", "OUTPUT"),
        (" Query ", "Response"),
        ("question", "output"),
        ("Instruction", "Answer"),
        ("Prompt", "Completion"),
        ("Instruction", "Output"),
    ],
)
def test_everyday_names(names: tuple[str, str]) -> None:
    question, answer = names
    for more in ({}, {"id": 3, "Category": "x", "title": None}):
        assert is_asked_and_answered(parse({question: "q", answer: "a", **more}))
    row = parse({question: "q", answer: "a", "Label": False})
    assert (row.kind, row.score) == ("unpaired", 0.0)
    with pytest.raises(RowError, match="field 'rating'"):
        parse({question: "q", answer: "a", "rating": 3})


@pytest.mark.parametrize(
    "data",
    [
        {"question": "q", "query": "q", "answer": "a"},
        {"question": "q", "answer": "a", "response": "b"},
        {"instruction": "q", "input": "x", "answer": "a"},
        {"question": "q", "answer": "a", "context": "x"},
        {"question": "q", "answer": "a", "choices": ["a", "b"]},
        {"input": "q"},
    ],
)
def test_everyday_names_that_are_not_clear_are_not_guessed(data: dict) -> None:
    with pytest.raises(RowError, match=r"fit no known layout.*--columns '{"):
        parse(data)


def test_a_row_with_a_gap_is_read_by_the_names_of_the_rows_before() -> None:
    parser = RowParser()
    parser.parse(Record({"Question": "q", "Answer": "a"}, "rows.csv:2"))
    with pytest.raises(RowError, match=r"rows.csv:3: field 'Answer': is null, but layout 'prompt_completion' needs it"):
        parser.parse(Record({"Question": "q", "Answer": None}, "rows.csv:3"))
    with pytest.raises(RowError, match=r"rows.csv:4: field 'Answer': the assistant text is empty"):
        parser.parse(Record({"Question": "q", "Answer": ""}, "rows.csv:4"))
    assert parser.names.renamed == {"Question": "prompt", "Answer": "completion"}


def test_a_declared_layout_names_the_column_that_it_may_be_read_from() -> None:
    with pytest.raises(RowError, match=r"field 'output': missing.*'response' should be 'output'.*{output: response}"):
        parse({"instruction": "q", "response": "a"}, "alpaca")


def test_prompts_to_answer_have_everyday_names() -> None:
    for name in ("question", "Query", "input", "Prompt"):
        row = RowParser(needs_answer=False).parse(Record({name: "q"}, "rows.csv:2"))
        assert turns(row.sides["answer"]) == [("user", "q")]


def test_the_users_names_come_first() -> None:
    columns = {"prompt": "ask", "completion": "say", "system": "Rules", "note": None}
    data = {"ask": "q", "say": "a", "prompt": "other", "note": "x", "Completion": "c"}
    parser = RowParser(columns=columns)
    assert is_asked_and_answered(parser.parse(Record(data, "rows.jsonl:1")))
    assert parser.names.left_out == {"prompt": 1, "note": 1, "Completion": 1}
    assert parser.names.given.keys() - parser.names.found == {"Rules"}
    with pytest.raises(RowError, match=r"rows.jsonl:2: field 'say': missing, but layout 'prompt_completion' needs it"):
        parser.parse(Record({"ask": "q"}, "rows.jsonl:2"))
    with pytest.raises(RowError, match=r"rows.jsonl:3: field 'say': is a int"):
        parser.parse(Record({"ask": "q", "say": 3}, "rows.jsonl:3"))
    swapped = parse({"prompt": "a", "completion": "q"}, columns={"prompt": "completion", "completion": "prompt"})
    assert is_asked_and_answered(swapped)
    in_a_layout = parse({"x": [HUMAN, GPT]}, "sharegpt", columns={"conversations": "x"})
    assert is_asked_and_answered(in_a_layout)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"promt": "Question"}, "no layout reads a column 'promt'. Did you mean 'prompt'"),
        ({"prompt": "x", "completion": "x"}, "'x' is said to be two things"),
        ({"score": "x", "x": None}, "'x' is said to be two things"),
        ({"prompt": 3}, "must map columns"),
        (["prompt"], "must map columns"),
        ("{prompt}", "must map columns"),
    ],
)
def test_a_mapping_that_cannot_be_obeyed(columns: object, problem: str) -> None:
    with pytest.raises(UserError, match=f"^columns.*{problem}"):
        RowParser(columns=columns)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        ({"Label": True, "label": False}, ["Label", "label"]),
        ({"kto_tag": True, "label": False}, ["kto_tag", "label"]),
        ({"Prompt": "q", "prompt": "p", "completion": "c"}, ["Prompt", "prompt"]),
    ],
)
def test_two_columns_of_one_name_are_refused(data: dict, columns: list[str]) -> None:
    row = {**ANSWERED["messages"], **data}
    with pytest.raises(RowError, match=f"field '{columns[0]}': is '{columns[1]}' by another name.*{columns[0]}: null"):
        parse(row)
    null = {column: None if column == columns[0] else value for column, value in data.items()}
    if "label" in null:
        assert parse({**ANSWERED["messages"], **null}).score == 0.0


def test_empty_columns_make_no_name_unclear() -> None:
    for data in ({"query": "q", "response": "a", "history": []}, {"instruction": "q", "input": "", "answer": "a"}):
        assert is_asked_and_answered(parse(data))


def test_turns_that_stand_as_json_in_a_column_of_texts_are_turns() -> None:
    question, answer = json.dumps([USER]), json.dumps([GPT])
    assert is_asked_and_answered(parse({"prompt": question, "completion": json.dumps([ASSISTANT])}))
    pair = parse({"conversations": json.dumps([HUMAN]), "chosen": answer, "rejected": json.dumps([B])})
    assert turns(pair.sides["rejected"]) == [("user", "q"), ("assistant", "b")]
    for text in (
        f"Mend this: {question}",
        question[:-1],
        '[{"role": "user"}]',
        "[1]",
        "[{'role': 'user'}, 3]",
        f"{[USER]} + []",
    ):
        assert turns(parse({"prompt": text, "completion": "a"}).sides["answer"])[0] == ("user", text)
    with pytest.raises(RowError, match=r"field 'prompt': is a str that is not JSON.*written as Python shows it"):
        parse({"prompt": str([USER]), "completion": "a"})


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_lists_written_as_json_are_read(name: str) -> None:
    ((column, turns),) = ANSWERED[name].items()
    assert is_asked_and_answered(parse({column: f" {json.dumps(turns)}\n"}))
    assert is_asked_and_answered(parse({column.upper(): json.dumps(turns)}))
    for text, problem in (
        (str(turns), "written as Python shows it"),
        ("q", "is a str that is not JSON"),
        (json.dumps(turns) + " x", "has text behind its JSON value"),
        ('{"a": 1}', "is a dict"),
        ('[{"role": "user", "role": "user", "content": "q"}]', "more than once"),
        ("[" * 10_000, "nested"),
    ):
        with pytest.raises(RowError, match=problem):
            parse({column: text})
    with pytest.raises(RowError, match=f"field '{column.title()}': is a str that is not JSON"):
        parse({column.title(): "q"})


def test_every_column_with_a_meaning_names_one_that_is_read() -> None:
    read = frozenset().union(*(layout.columns for layout in LAYOUTS.values()))
    assert {meaning.read_as for meaning in MEANINGS.values()} <= read | {""}
