"""Tool calls reach the template with an object as arguments, and each declared function has a name."""

import json
from typing import Any

import pytest

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.readers import Record
from lit_ift.errors import RowError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def convert(**data: object) -> Conversation:
    return to_row(Record(data, "rows.jsonl:7")).sides["answer"]


def call_of(call: dict[str, Any]) -> dict[str, Any]:
    return convert(messages=[USER, {"role": "assistant", "tool_calls": [call]}]).messages[1]["tool_calls"][0]


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [('{"a": [1]}', {"a": [1]}), ("{}", {}), ({"a": 1}, {"a": 1}), ("", {}), (" \n", {}), (None, {}), ({}, {})],
)
def test_arguments_become_objects(arguments: object, seen: object) -> None:
    nested = {"function": {"name": "f", "arguments": arguments}, "id": "0"}
    flat = {"name": "f", "arguments": arguments}
    before = json.dumps([nested, flat])
    assert call_of(nested) == {"function": {"name": "f", "arguments": seen}, "id": "0"}
    assert call_of(flat) == {"name": "f", "arguments": seen}
    assert json.dumps([nested, flat]) == before, "the record is changed"


def test_a_call_without_arguments_has_none() -> None:
    assert call_of({"function": {"name": "f"}}) == {"function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("city=Oslo", "is no JSON object"),
        ("[1]", "is no JSON object"),
        ("3", "is no JSON object"),
        ('{"a": NaN}', "is no JSON object"),
        ('{"a": 1', "is no JSON object"),
        ([1], "is no JSON object"),
        (3, "is no JSON object"),
        (False, "is no JSON object"),
        (json.dumps(json.dumps({"a": 1})), "encoded twice"),
        (json.dumps(""), "encoded twice"),
    ],
)
@pytest.mark.parametrize("wrap", [True, False])
def test_other_arguments_are_row_errors(arguments: object, problem: str, wrap: bool) -> None:
    call: dict[str, Any] = {"name": "f", "arguments": arguments}
    with pytest.raises(RowError, match=rf"tool_calls\[0\]\.(function\.)?arguments': .*{problem}.*one JSON object"):
        call_of({"function": call} if wrap else call)


@pytest.mark.parametrize("call", [{"function": "f"}, {"function": None, "name": "f"}, {"function": ["f"]}])
def test_a_function_that_is_no_object_is_a_row_error(call: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=r"tool_calls\[0\]\.function': .*object"):
        call_of(call)
    with pytest.raises(RowError, match=r"tools\[0\]\.function': .*object"):
        convert(messages=[USER, ANSWER], tools=[call])
    with pytest.raises(RowError, match=r"tools\[0\]\.function': .*object"):
        convert(messages=[USER, ANSWER], tools=json.dumps([call]))


@pytest.mark.parametrize("tool", [{}, {"name": ""}, {"name": 3}, {"function": {}}, {"type": "code_interpreter"}])
def test_a_declaration_without_a_name_is_a_row_error(tool: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=r"tools\[0\]\.(function\.)?name': .*Name the function"):
        convert(messages=[USER, ANSWER], tools=[tool])


def test_arguments_by_another_name_are_a_row_error() -> None:
    with pytest.raises(RowError, match=r"arguments': is missing. Rename 'parameters' to 'arguments'"):
        call_of({"function": {"name": "f", "parameters": {"x": 1}}})


def test_openai_s_old_names_are_read() -> None:
    turns = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "f", "content": "3"},
        ANSWER,
    ]
    conversation = convert(messages=turns, functions=[{"name": "f", "parameters": {}}])
    assert conversation.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert conversation.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert conversation.messages[2] == {"role": "tool", "name": "f", "content": "3"}
    with pytest.raises(RowError, match=r"'functions': declares functions, and so does 'tools'"):
        convert(messages=turns, functions=[{"name": "f"}], tools=[{"name": "f"}])
    assert convert(messages=turns, functions=[], tools=[{"name": "f"}]).tools == [{"name": "f"}]


def test_sharegpt_calls_are_checked_alike() -> None:
    def says(value: object) -> Conversation:
        turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
        return convert(conversations=turns)

    assert says({"name": "f", "arguments": ""}).messages[1]["tool_calls"][0]["function"]["arguments"] == {}
    with pytest.raises(RowError, match=r"conversations\[1\]\.value\[0\]\.arguments': is no JSON object"):
        says('{"name": "f", "arguments": "x=1"}')
