"""Layouts: each is recognised and checked, and a wrong row is told what is wrong with which field."""

import pytest

from lit_ift.data.messages import LAYOUTS, Conversation, Layout, prompt_key, to_messages
from lit_ift.data.records import Record
from lit_ift.errors import RowError, UserError


def convert(layout: str | None = None, /, **data: object) -> Conversation:
    return to_messages(Record(data, "rows.jsonl:7"), layout=layout)


def pairs(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}


def test_messages_layout_keeps_turns_extras_and_tools() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = [{"name": "f"}]
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "content": "3", "tool_call_id": "x", "name": None}, ASSISTANT]
    conversation = convert(messages=turns, tools=tools, id="x")
    assert pairs(conversation) == [("user", "q"), ("assistant", ""), ("tool", "3"), ("assistant", "a")]
    assert conversation.messages[1]["tool_calls"] == [call]
    assert conversation.messages[2] == {"role": "tool", "content": "3", "tool_call_id": "x"}
    assert conversation.tools == tools
    assert conversation.target_turns == [1, 3]


def test_prompt_completion_of_strings_and_of_messages() -> None:
    assert pairs(convert(prompt="q", completion="a")) == [("user", "q"), ("assistant", "a")]
    listed = convert(prompt=[USER, ASSISTANT, USER], completion=[ASSISTANT])
    assert pairs(listed) == [("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "a")]
    assert listed.target_turns == [3]  # an assistant turn inside the prompt is context


@pytest.mark.parametrize(
    ("context", "question"), [({}, "do"), ({"input": ""}, "do"), ({"input": None}, "do"), ({"input": "x"}, "do\n\nx")]
)
def test_alpaca(context: dict, question: str) -> None:
    assert pairs(convert(instruction="do", output="done", **context)) == [("user", question), ("assistant", "done")]


def test_null_columns_do_not_count_and_layout_decides_between_two() -> None:
    both = {"messages": [USER, ASSISTANT], "prompt": "p", "completion": "c"}
    assert pairs(convert(**{**both, "prompt": None})) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(
        RowError, match=r"'messages', 'prompt', 'completion' fit several layouts: messages, prompt_comp"
    ):
        convert(**both)
    assert pairs(convert("prompt_completion", **both)) == [("user", "p"), ("assistant", "c")]


def test_unknown_columns_are_listed_with_near_misses() -> None:
    with pytest.raises(RowError, match=r"'mesages', 'id' fit no known layout. Perhaps 'mesages' should be 'messages'"):
        convert(mesages=[USER, ASSISTANT], id=1)
    with pytest.raises(RowError, match=r"'Prompt', 'completion' .*Perhaps 'Prompt' should be 'prompt'"):
        convert(Prompt="a", completion="b")
    with pytest.raises(RowError, match=r"'prompt', 'chosen', 'rejected' fit no known layout. Rename .* alpaca \("):
        convert(prompt="a", chosen="b", rejected="c")


def test_unknown_or_unfitting_layout() -> None:
    with pytest.raises(UserError, match=r"layout='alpacca' is not known. Did you mean 'alpaca'"):
        convert("alpacca", instruction="x", output="y")
    with pytest.raises(RowError, match=r"rows.jsonl:7: field 'output': missing, but layout 'alpaca' needs it"):
        convert("alpaca", instruction="x", outptu="y")


@pytest.mark.parametrize(
    ("turns", "field", "problem"),
    [
        ("hi", "messages", "is a str"),
        ([], "messages", "is an empty list"),
        ([USER, "hi"], r"messages\[1\]", "is a str"),
        ([USER, {"content": "x"}], r"messages\[1\].role", "is missing"),
        ([USER, {"role": "asistant", "content": "x"}], r"messages\[1\].role", "'asistant'.*did you mean 'assistant'"),
        ([USER, ASSISTANT, {"role": "user", "content": 3}], r"messages\[2\].content", r"is a int \(3\)"),
        ([USER, {"role": "assistant"}], r"messages\[1\].content", "is missing"),
        ([USER, {"role": "assistant", "content": " "}], r"messages\[1\].content", "the assistant text is empty"),
        ([USER, {**ASSISTANT, "content": None}], r"messages\[1\].content", "is a NoneType"),
        ([USER, {**ASSISTANT, "content": "", "tool_calls": []}], r"messages\[1\].content", "is empty"),
        ([{**USER, "tool_calls": [{}]}, ASSISTANT], r"messages\[0\].tool_calls", "on a user turn"),
        ([USER, {**ASSISTANT, "tool_calls": "f"}], r"messages\[1\].tool_calls", "not a list of objects"),
        ([USER, {**ASSISTANT, "content": "a\0b"}], r"messages\[1\].content", "null character"),
        ([USER, {**ASSISTANT, "content": "a\ud83d"}], r"messages\[1\].content", "surrogate pair at character 2"),
        ([USER], "messages", "no assistant turn"),
        ([ASSISTANT, USER, ASSISTANT], r"messages\[0\].role", "opens with the assistant"),
    ],
)
def test_bad_messages_are_named_by_field(turns: object, field: str, problem: str) -> None:
    with pytest.raises(RowError, match=rf"^rows\.jsonl:7: field '{field}': .*{problem}") as caught:
        convert(messages=turns)
    assert caught.value.remedy


def test_bad_fields_of_the_other_layouts() -> None:
    with pytest.raises(RowError, match=r"field 'prompt': is a str.*both be strings, or both be lists"):
        convert(prompt="a", completion=[ASSISTANT])
    with pytest.raises(RowError, match=r"field 'completion': has no assistant turn"):
        convert(prompt=[USER, ASSISTANT], completion=[USER])
    with pytest.raises(RowError, match=r"field 'output': the assistant text is empty"):
        convert(instruction="a", output="")
    with pytest.raises(RowError, match=r"field 'input': is a int"):
        convert(instruction="a", output="b", input=4)
    with pytest.raises(RowError, match=r"field 'tools': is not a list of objects"):
        convert(messages=[USER, ASSISTANT], tools="[]")


def test_a_layout_is_one_function_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(record: Record) -> Conversation:
        return Conversation([{"role": "user", "content": record.data["q"]}, {"role": "assistant", "content": "a"}])

    monkeypatch.setitem(LAYOUTS, "mine", Layout(("q",), parse))
    assert pairs(convert(q="hi")) == [("user", "hi"), ("assistant", "a")]


def test_prompt_key_ignores_case_white_space_and_system_turn() -> None:
    with_system = [{"role": "system", "content": "be good"}, {"role": "user", "content": " What\n is"}, ASSISTANT]
    assert (
        prompt_key(convert(messages=with_system)) == "what is" == prompt_key(convert(prompt="WHAT is", completion="x"))
    )


def prompt(layout: str | None = None, /, **data: object) -> Conversation:
    return to_messages(Record(data, "rows.jsonl:7"), layout=layout, needs_answer=False)


@pytest.mark.parametrize("named", [False, True])
def test_rows_without_an_answer_are_prompts_where_that_is_allowed(named: bool) -> None:
    question, tool = [("user", "q")], {"role": "tool", "content": "3"}
    turns = [USER, ASSISTANT, tool]
    rows = [
        ("prompt_completion", {"prompt": "q"}, question),
        ("prompt_completion", {"prompt": "q", "completion": None}, question),
        ("prompt_completion", {"prompt": [USER, ASSISTANT, USER]}, [*question, ("assistant", "a"), *question]),
        ("messages", {"messages": [USER]}, question),
        ("messages", {"messages": turns, "tools": [{"name": "f"}]}, [*question, ("assistant", "a"), ("tool", "3")]),
        ("alpaca", {"instruction": "q", "input": ""}, question),
        ("alpaca", {"instruction": "q", "input": "x", "output": None}, [("user", "q\n\nx")]),
    ]
    for layout, row, expected in rows:
        conversation = prompt(layout if named else None, **row)
        assert pairs(conversation) == expected
        assert conversation.is_prompt
        assert conversation.target_turns == []
        assert conversation.tools == row.get("tools")
    for row in ({"prompt": "q"}, {"messages": [USER]}, {"instruction": "q"}):
        with pytest.raises(RowError):
            convert(**row)


def test_rows_with_an_answer_are_read_alike_with_and_without_need_of_one() -> None:
    for row in (
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "messages": [USER, ASSISTANT]},
        {"messages": [USER, ASSISTANT, {"role": "system", "content": "s"}]},
        {"instruction": "q", "output": "a"},
    ):
        assert prompt(**row) == convert(**row)
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
        ({"question": "q"}, "fit no known layout"),
    ],
)
def test_prompts_that_cannot_be_answered(row: dict, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        prompt(**row)
