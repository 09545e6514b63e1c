"""Instruction formats: which text becomes whose turn, and which turns are targets."""

import json

import pytest

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.readers import Record
from lit_ift.errors import RowError

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
ASKED = [("user", "q"), ("assistant", "a")]


def convert(**data: object) -> Conversation:
    row = to_row(Record(data, "rows.jsonl:7"))
    assert row.kind == "instruction"
    assert row.score is None
    return row.sides["answer"]


def pairs(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def says(speaker: str, value: object) -> dict:
    return {"from": speaker, "value": value}


def test_prompt_completion_of_strings_and_of_messages() -> None:
    assert pairs(convert(prompt="q", completion="a")) == ASKED
    listed = convert(prompt=[USER, ASSISTANT, USER], completion=[ASSISTANT])
    assert pairs(listed) == ASKED + ASKED
    assert listed.target_turns == [3]  # an assistant turn inside the prompt is context


@pytest.mark.parametrize(
    ("context", "question"), [({}, "do"), ({"x": ""}, "do"), ({"x": None}, "do"), ({"x": "y"}, "do\n\ny")]
)
@pytest.mark.parametrize(("answer", "column"), [("output", "input"), ("response", "context")])
def test_alpaca_and_dolly(context: dict, question: str, answer: str, column: str) -> None:
    row = {"instruction": "do", answer: "done", **({column: context["x"]} if context else {})}
    assert pairs(convert(**row)) == [("user", question), ("assistant", "done")]
    asked = convert(**row, system="s")
    assert pairs(asked) == [("system", "s"), ("user", question), ("assistant", "done")]
    assert asked.target_turns == [2]


def test_ultrachat_speakers_take_turns() -> None:
    conversation = convert(data=["q", "a", "q", "a"], id="0")
    assert pairs(conversation) == ASKED + ASKED
    assert conversation.target_turns == [1, 3]


def test_sharegpt_speakers() -> None:
    for human in ("human", "user"):
        for model in ("gpt", "assistant", "chatgpt", "bot"):
            assert pairs(convert(conversations=[says(human, "q"), says(model, "a")])) == ASKED
    system = says("system", "s")
    assert pairs(convert(conversations=[system, says("human", "q"), says("gpt", "a")])) == [("system", "s"), *ASKED]
    asked = convert(conversations=[says("human", "q"), says("gpt", "a")], system="s", tools=json.dumps([{"name": "f"}]))
    assert pairs(asked) == [("system", "s"), *ASKED]
    assert asked.tools == [{"name": "f"}]
    assert pairs(convert(conversations=[USER, ASSISTANT])) == ASKED  # some write role and content there


@pytest.mark.parametrize("result", ["tool", "observation"])
def test_sharegpt_function_calls(result: str) -> None:
    one, two = {"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": '{"y": 2}'}
    wrapped = [{"type": "function", "function": call} for call in (one, {"name": "g", "arguments": {"y": 2}})]
    for value, calls in ((json.dumps(one), wrapped[:1]), (json.dumps([one, two]), wrapped), (two, wrapped[1:])):
        turns = [says("human", "q"), says("function_call", value), says(result, "3"), says("gpt", "a")]
        conversation = convert(conversations=turns)
        assert pairs(conversation) == [("user", "q"), ("assistant", ""), ("tool", "3"), ("assistant", "a")]
        assert conversation.messages[1]["tool_calls"] == calls
        assert conversation.target_turns == [1, 3]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": [USER, ASSISTANT], "completion": [USER]}, "field 'completion': has no assistant turn"),
        ({"instruction": "a", "output": ""}, "field 'output': the assistant text is empty"),
        ({"instruction": "a", "output": "b", "input": 4}, r"field 'input': is a int \(4\)"),
        ({"instruction": "a", "response": "b", "context": []}, r"field 'context': is a list"),
        ({"instruction": "a", "response": None, "output": 3}, r"field 'output': is a int \(3\)"),
        ({"data": ["q"]}, "field 'data': has no assistant turn"),
        ({"data": []}, "field 'data': is an empty list"),
        ({"data": ["q", " "]}, r"field 'data\[1\]': the assistant text is empty"),
        ({"conversations": "q"}, "field 'conversations': is a str"),
        ({"conversations": []}, "field 'conversations': is an empty list"),
        ({"conversations": ["q"]}, r"field 'conversations\[0\]': is a str"),
        ({"conversations": [says("gpt", "a")]}, r"field 'conversations\[0\].role': the conversation opens with"),
        ({"conversations": [says("humn", "a")]}, r"field 'conversations\[0\].from': is 'humn'.*Did you mean 'human'"),
        ({"conversations": [says(["x"], "a")]}, r"field 'conversations\[0\].from': is a list"),
        ({"conversations": [{"value": "a"}]}, r"field 'conversations\[0\].from': is missing"),
        ({"conversations": [{"from": "human"}]}, r"field 'conversations\[0\].value': is missing"),
        ({"conversations": [says("human", None)]}, r"field 'conversations\[0\].value': is a NoneType"),
        ({"conversations": [says("human", "q")]}, "field 'conversations': has no assistant turn"),
        ({"conversations": [says("function_call", "f(1)")]}, r"\[0\].value': is not JSON \('f\(1\)'\)"),
        ({"conversations": [says("function_call", "3")]}, r"\[0\].value': is not a list of objects"),
        ({"conversations": [says("function_call", "[]")]}, r"\[0\].value': calls no function"),
        ({"conversations": [says("function_call", '{"arguments": {}}')]}, r"value\[0\].name': is missing"),
        ({"conversations": [says("function_call", "[" * 99999)]}, r"nested more than 64 levels|is not JSON"),
    ],
)
def test_bad_rows_are_named_by_field(row: dict, problem: str) -> None:
    with pytest.raises(RowError, match=rf"^rows.jsonl:7: .*{problem}") as raised:
        convert(**row)
    assert raised.value.remedy
