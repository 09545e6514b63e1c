"""Text parts are their text; what a text model cannot see is refused by name."""

from typing import Any

import pytest

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.readers import Record
from lit_ift.errors import RowError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def convert(has_gaps: bool = False, /, **data: object) -> Conversation:
    return to_row(Record(data, "rows.jsonl:7", has_gaps)).sides["answer"]


def part(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def test_text_parts_are_their_text() -> None:
    turns = [
        {"role": "system", "content": [part("be "), part("good")]},
        {"role": "user", "content": [{"text": "q"}]},
        {"role": "assistant", "content": [part("a"), {"type": "output_text", "text": "b"}]},
    ]
    assert texts(convert(messages=turns)) == [("system", "be good"), ("user", "q"), ("assistant", "ab")]
    shared = [{"from": "human", "value": [part("q")]}, {"from": "gpt", "value": [part("a")]}]
    assert texts(convert(conversations=shared)) == [("user", "q"), ("assistant", "a")]
    gaps = {"role": "user", "content": [part("q", image_url=None)]}
    assert texts(convert(True, messages=[gaps, ANSWER])) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("empty", ["", " \n", None, [], [part("")]])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_an_empty_system_turn_is_none(empty: object, role: str) -> None:
    assert texts(convert(messages=[{"role": role, "content": empty}, USER, ANSWER])) == [
        ("user", "q"),
        ("assistant", "a"),
    ]
    shared = [{"from": role, "value": empty}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert texts(convert(conversations=shared)) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(RowError, match=r"'messages': holds nothing but an empty system turn"):
        convert(messages=[{"role": role, "content": empty}])


def test_the_developer_is_the_system() -> None:
    expected = [("system", "be good"), ("user", "q"), ("assistant", "a")]
    assert texts(convert(messages=[{"role": "developer", "content": "be good"}, USER, ANSWER])) == expected
    shared = [{"from": "developer", "value": "be good"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert texts(convert(conversations=shared)) == expected


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ([{"type": "image_url", "image_url": {"url": "x.png"}}, part("q")], "image_url"),
        ([{"type": "image"}, part("q")], "image"),
        ([part("q"), {"type": "input_audio", "input_audio": {"data": "x"}}], "input_audio"),
        ([part("q"), {"type": "video", "video": "x.mp4"}], "video"),
        ([part("q", image="x.png")], "image"),
        ([part("q"), {"type": "file", "file_id": "x"}], "'file'"),
        ([part("q"), {"type": "thinking", "thinking": "mm"}], "'thinking'.*reasoning_content"),
        ([{"kind": "text"}], "None"),
        ([part("q"), part(3)], r"text': is a int"),  # type: ignore[arg-type]
        (["q"], "is a list"),
        ({"text": "q"}, "is a dict"),
    ],
)
def test_other_parts_are_refused_by_name(parts: object, named: str) -> None:
    with pytest.raises(RowError, match=rf"field 'messages\[0\]\.content.*{named}"):
        convert(messages=[{"role": "user", "content": parts}, ANSWER])


@pytest.mark.parametrize("key", ["images", "image", "audio", "audios", "videos", "video"])
@pytest.mark.parametrize("value", ["x.png", ["x.png"], {"bytes": "x"}, [{"path": "x"}]])
def test_inputs_of_a_turn_that_a_text_model_cannot_see_are_refused(key: str, value: object) -> None:
    with pytest.raises(RowError, match=rf"field 'messages\[0\]\.{key}': holds an input that is no text"):
        convert(messages=[{**USER, key: value}, ANSWER])


@pytest.mark.parametrize("value", [None, [], "", [None], [[]]])
def test_no_such_input_is_fine(value: object) -> None:
    assert texts(convert(messages=[{**USER, "images": value}, ANSWER])) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_given_twice_is_an_error(field: str) -> None:
    twice = {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4", field: "add"}
    with pytest.raises(RowError, match=rf"field 'messages\[1\]\.{field}': holds thinking, and so does the text"):
        convert(messages=[USER, twice])
    for once in ({**twice, field: " "}, {**twice, field: None}, {**twice, "content": "4"}):
        assert convert(messages=[USER, once]).target_turns == [1]
    shared = [{"from": "human", "value": "q"}, {"from": "gpt", "value": twice["content"], field: "add"}]
    with pytest.raises(RowError, match=rf"field 'conversations\[1\]\.{field}': holds thinking"):
        convert(conversations=shared)


def test_thinking_in_two_fields_must_be_the_same() -> None:
    same = {**ANSWER, "reasoning_content": "add", "reasoning": "add"}
    assert convert(messages=[USER, same]).target_turns == [1]
    with pytest.raises(RowError, match=r"'messages\[1\]\.reasoning': differs from 'reasoning_content'"):
        convert(messages=[USER, {**same, "reasoning": "else"}])
