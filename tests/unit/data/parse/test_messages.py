"""Messages: their texts, roles and tool calls are checked, and a wrong row is told what is wrong with which field."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.fields import MAX_NESTING
from lit_ift.data.parse.messages import ROLES, prompt_key
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.readers import Record
from lit_ift.errors import RowError


def convert(layout: str | None = None, /, **data: object) -> Conversation:
    return to_row(Record(data, "rows.jsonl:7"), layout=layout).sides["answer"]


def pairs(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}


def test_messages_layout_keeps_turns_extras_and_tools() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    tools = [{"name": "f"}]
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "content": "3", "tool_call_id": "x", "name": None}, ASSISTANT]
    conversation = convert(messages=turns, tools=tools, id="x")
    assert pairs(conversation) == [("user", "q"), ("assistant", ""), ("tool", "3"), ("assistant", "a")]
    assert conversation.messages[1]["tool_calls"] == [call]
    assert conversation.messages[2] == {"role": "tool", "content": "3", "tool_call_id": "x"}
    assert conversation.tools == tools
    assert conversation.target_turns == [1, 3]


@pytest.mark.parametrize(
    ("turns", "field", "problem"),
    [
        ("hi", "messages", "is a str"),
        ([], "messages", "is an empty list"),
        ([USER, "hi"], r"messages\[1\]", "is a str"),
        ([USER, {"content": "x"}], r"messages\[1\].role", "is missing"),
        ([USER, {"role": "asistant", "content": "x"}], r"messages\[1\].role", "'asistant'.*Did you mean 'assistant'"),
        ([USER, ASSISTANT, {"role": "user", "content": 3}], r"messages\[2\].content", r"is a int \(3\)"),
        ([USER, {"role": "assistant"}], r"messages\[1\].content", "is missing"),
        ([USER, {"role": "assistant", "content": " "}], r"messages\[1\].content", "the assistant text is empty"),
        ([USER, {**ASSISTANT, "content": None}], r"messages\[1\].content", "is a NoneType"),
        ([USER, {**ASSISTANT, "content": "", "tool_calls": []}], r"messages\[1\].content", "is empty"),
        ([{"role": [[]], "content": "x"}], r"messages\[0\].role", "is a list"),
        ([{**USER, "tool_calls": [{}]}, ASSISTANT], r"messages\[0\].tool_calls", "on a user turn"),
        ([USER, {**ASSISTANT, "tool_calls": "f"}], r"messages\[1\].tool_calls", "not a list of objects"),
        ([USER, {**ASSISTANT, "tool_calls": [{}]}], r"messages\[1\].tool_calls\[0\].name", "is missing"),
        (
            [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": 3}}]}],
            r"messages\[1\].tool_calls\[0\].function.name",
            "is 3",
        ),
        ([USER, {**ASSISTANT, "extra": {"x": ["a\0"]}}], r"messages\[1\].extra", "null character"),
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


def test_prompt_key_ignores_case_white_space_and_system_turn() -> None:
    with_system = [{"role": "system", "content": "be good"}, {"role": "user", "content": " What\n is"}, ASSISTANT]
    assert (
        prompt_key(convert(messages=with_system)) == "what is" == prompt_key(convert(prompt="WHAT is", completion="x"))
    )


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("levels", [MAX_NESTING + 1, 100_000])
def test_deep_nesting_is_a_row_error(levels: int) -> None:
    deep = nested(levels)
    with pytest.raises(RowError, match=r"field 'messages\[1\]\.extra': is nested more than 64 levels deep"):
        convert(messages=[USER, {**ASSISTANT, "extra": deep}])
    with pytest.raises(RowError, match=r"field 'tools': is nested more than 64 levels"):
        convert(messages=[USER, ASSISTANT], tools=[{"parameters": deep}])
    with pytest.raises(RowError, match=r"field 'tools': is nested more than 64 levels"):
        convert(messages=[USER, ASSISTANT], tools="[" * levels + "]" * levels)
    with pytest.raises(RowError, match=r"field 'messages\[0\]\.content': is a list"):
        convert(messages=[{**USER, "content": deep}, ASSISTANT])
    call = {"function": {"name": "f", "arguments": '{"x":' + "[" * levels + "]" * levels + "}"}}
    with pytest.raises(RowError, match=r"arguments': is nested more than 64 levels"):
        convert(messages=[USER, {**ASSISTANT, "tool_calls": [call]}])


def test_nesting_that_is_allowed_reaches_the_template() -> None:
    assert convert(messages=[USER, {**ASSISTANT, "extra": nested(MAX_NESTING)}]).messages[1]["extra"]


def test_tools_may_be_json() -> None:
    tools = [{"name": "f", "parameters": {"x": None}}]
    assert convert(messages=[USER, ASSISTANT], tools=json.dumps(tools)).tools == tools
    for empty in (None, [], "", "[]"):
        assert convert(messages=[USER, ASSISTANT], tools=empty).tools is None
    for wrong in ("f", '{"name": "f"}', {"name": "f"}, ["f"], "[1]", 3):
        with pytest.raises(RowError, match=r"field 'tools': is not a list of objects"):
            convert(messages=[USER, ASSISTANT], tools=wrong)


def test_a_system_column_is_the_system_turn() -> None:
    system = {"role": "system", "content": "be good"}
    expected = [("system", "be good"), ("user", "q"), ("assistant", "a")]
    assert pairs(convert(messages=[USER, ASSISTANT], system="be good")) == expected
    assert pairs(convert(messages=[system, USER, ASSISTANT], system="be good")) == expected
    assert pairs(convert(prompt="q", completion="a", system="be good")) == expected
    assert convert(prompt="q", completion="a", system="be good").target_turns == [2]
    for empty in (None, "", " \n"):
        assert pairs(convert(messages=[USER, ASSISTANT], system=empty)) == expected[1:]
    with pytest.raises(RowError, match=r"field 'system': is not the system turn that the messages begin with"):
        convert(messages=[system, USER, ASSISTANT], system="be bad")
    with pytest.raises(RowError, match=r"field 'system': is a int"):
        convert(messages=[USER, ASSISTANT], system=3)


CONTENTS = st.one_of(st.text(alphabet=st.characters(exclude_categories=()), max_size=6), st.none(), st.integers())
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from([*ROLES, "User", "gpt", 1]), "content": CONTENTS}), max_size=5
)


@pytest.mark.slow
@hypothesis.given(TURNS)
def test_any_list_of_turns_is_kept_exactly_or_refused_by_field(given: list[dict]) -> None:
    # Empty system turns are none.
    turns = [turn for turn in given if turn["role"] != "system" or str(turn["content"] or "").strip()]
    fine = [
        turn["role"] in ROLES
        and isinstance(turn["content"], str)
        and bool(turn["content"].strip())
        and "\0" not in turn["content"]
        and not any("\ud800" <= character <= "\udfff" for character in turn["content"])
        for turn in turns
    ]
    answered = any(turn["role"] == "assistant" for turn in turns)
    usable = bool(turns) and all(fine) and answered and turns[0]["role"] != "assistant"
    if not usable:
        with pytest.raises(RowError) as raised:
            convert(messages=given)
        assert raised.value.field.startswith("messages")
        assert raised.value.remedy
        return
    conversation = convert(messages=given)
    assert list(conversation.messages) == turns
    assert conversation.target_turns == [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]


@pytest.mark.parametrize(
    "question", ["q", USER, [USER], [{"from": "human", "value": "q"}], [{"type": "text", "text": "q"}]]
)
def test_a_prompt_may_be_a_text_its_parts_a_message_or_a_list(question: object) -> None:
    assert pairs(convert(prompt=question, completion="a")) == [("user", "q"), ("assistant", "a")]
