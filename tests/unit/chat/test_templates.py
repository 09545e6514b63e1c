"""What is learned of a chat template, and the date that it writes."""

import json

import pytest

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.chat.templates import ChatTemplate, with_fixed_day

USER = {"role": "user", "content": "q"}

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}CALL"
    "<|im_end|>\n{% endfor %}{% if not m.tool_calls %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("call", "wants_json"),
    [
        ("{{ c.function.name + ' ' + c.function.arguments }}", True),
        ("{{ c.function.name }} {{ c.function.arguments }}", True),
        ("{{ c.function.name }} {{ c.function.arguments | tojson }}", False),
        (
            "{{ c.function.name }} {{ c.function.arguments if c.function.arguments is string else "
            "c.function.arguments | tojson }}",
            False,
        ),
        ("{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %})", False),
    ],
)
def test_a_template_gets_arguments_as_it_wants_them(make_tokenizer, call: str, wants_json: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TURNS.replace("CALL", call)
    assert ChatTemplate(tokenizer, tokenizer.chat_template).wants_json_arguments is wants_json
    arguments = {"city": 'Malmö "S"', "when": {"days": [1, 2.5, None, True]}}
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    result = ConversationEncoder(tokenizer).encode([Conversation([USER, turn])], ["rows.jsonl:1"])[0]
    if "items()" in call:
        return
    assert isinstance(result, Example), str(result)
    text = tokenizer.decode([label for label in result.labels if label >= 0])
    assert json.loads(text.removeprefix("f ").removesuffix("<|im_end|>")) == arguments


def test_today_is_a_fixed_day() -> None:
    template = (
        """a {{ strftime_now("%d %b %Y") }} b {{- strftime_now( '%Y-%m-%d' ) -}}{% set x = strftime_now(form) %}"""
    )
    fixed = with_fixed_day(template)
    assert fixed == """a {{ "01 Jan 2025" }} b {{- "2025-01-01" -}}{% set x = strftime_now(form) %}"""
    assert (
        with_fixed_day("{% if strftime_now is defined %}x{% endif %}") == "{% if strftime_now is defined %}x{% endif %}"
    )


def test_rows_are_the_same_on_every_day(make_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + tokenizer.chat_template
    conversation = Conversation([USER, {"role": "assistant", "content": "a"}])
    result = ConversationEncoder(tokenizer).encode([conversation], ["rows.jsonl:1"])[0]
    assert isinstance(result, Example)
    assert tokenizer.decode(result.input_ids).startswith("2025-01-01")
    prompt = ConversationEncoder(tokenizer).encode_prompt([USER])
    assert tokenizer.decode(prompt).startswith("2025-01-01")
