"""Where answers stand in a rendering: hard templates are located or refused, never guessed."""

import pytest

from lit_ift.chat.conversation import Conversation, split_thinking
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.chat.markers import CLOSE, OPEN
from lit_ift.chat.spans import locate
from lit_ift.chat.templates import ChatTemplate
from lit_ift.errors import RowError

TURN = "{{ '<|im_start|>' + m['role'] + '\n' + TEXT + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def template(text: str = "m['content']", turn: str = TURN) -> str:
    return "{% for m in messages %}" + turn.replace("TEXT", text) + "{% endfor %}" + PROMPT


def talk(*texts: str, **more) -> Conversation:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    messages[-1].update(more)
    return Conversation(messages)


@pytest.fixture
def encode(make_tokenizer):
    def run(conversation: Conversation, chat_template: str) -> Example:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = chat_template
        result = ConversationEncoder(tokenizer).encode([conversation], ["rows.jsonl:1"])[0]
        if isinstance(result, RowError):
            raise result
        return result

    return run


def test_both_ways_find_the_same_characters(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    header = "<|im_start|>assistant\n"
    conversation = talk(header, "yo", "yo", header + "yo", "yo<|im_end|>", "<|im_end|>")
    place = locate(conversation, ChatTemplate(tokenizer, tokenizer.chat_template))
    assert place.by_markers == place.confirmed
    assert [place.text[start:end] for start, end in place.by_markers] == [
        "yo<|im_end|>",
        header + "yo<|im_end|>",
        "<|im_end|><|im_end|>",
    ]


def test_a_template_that_counts_turns_is_refused(encode) -> None:
    numbered = template(turn="{{ loop.revindex }}" + TURN)
    with pytest.raises(RowError, match=r"messages\[1\]': the tokens of the answer could not be confirmed") as caught:
        encode(talk("hi", "yo", "and", "so"), numbered)
    assert caught.value.reason == "mask_disagreement"


def test_a_generation_block_that_sometimes_leaves_out_the_mark_is_a_disagreement(encode) -> None:
    blocks = (
        "{% if m['content'] | length < 30 %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{% generation %}{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}{% endif %}"
    )
    turn = "{{ '<|im_start|>assistant\n' }}" + blocks
    marked = template(turn="{% if m['role'] == 'user' %}" + TURN + "{% else %}" + turn + "{% endif %}")
    assert encode(talk("hi", "yo"), marked).num_targets
    with pytest.raises(RowError, match=r"differ: '.*way<\|im_end\|>' by marks, '.*way' by a second way") as caught:
        encode(talk("hi", "an answer that goes on and on and on all the way"), marked)
    assert caught.value.reason == "mask_disagreement"


def test_two_blocks_in_a_turn_are_refused(encode) -> None:
    block = "{% generation %}{{ m['content'] }}{% endgeneration %}"
    turn = TURN.replace("TEXT", "''").replace(
        "'<|im_end|>\n' }}", "'' }}" + block + "-" + block + "{{ '<|im_end|>\n' }}"
    )
    with pytest.raises(RowError, match=r"blocks mark 2 answers, but there are 1|changes or drops"):
        encode(
            talk("hi", "yo"), template(turn="{% if m['role'] == 'user' %}" + TURN + "{% else %}" + turn + "{% endif %}")
        )


def test_split_thinking() -> None:
    assert split_thinking("<think>a</think>b</think>c") == ("<think>a</think>b</think>", "c")
    assert split_thinking("a <think> b") == ("", "a <think> b")


DROPS = "(m['content'].split('</think>')[-1] if m['role'] == 'assistant' and not KEEP else m['content'])"


def test_thinking_may_be_dropped_from_earlier_turns_only(encode) -> None:
    drops_earlier = template(DROPS.replace("KEEP", "loop.last"))
    row = encode(talk("hi", "<think>a</think>yo", "and", "<think>b</think>so"), drops_earlier)
    assert row.num_targets
    assert row.num_dropped_thoughts == 1
    assert encode(talk("hi", "yo", "and", "<think>b</think>so"), drops_earlier).num_dropped_thoughts == 0
    with pytest.raises(RowError, match=r"drops the thinking of the last turn \('a'\)") as caught:
        encode(talk("hi", "<think>a</think>yo"), template(DROPS.replace("KEEP", "false")))
    assert caught.value.reason == "template"
    with pytest.raises(RowError, match=r"drops the thinking of the last turn \('why'\)"):
        encode(talk("hi", "yo", reasoning_content="why"), template())


def test_visible_text_that_looks_like_the_end_of_thinking_may_not_be_dropped(encode) -> None:
    drops = template(DROPS.replace("KEEP", "loop.last"))
    with pytest.raises(RowError, match=r"changes or drops the assistant's text"):
        encode(talk("hi", "close it with </think> then", "and", "so"), drops)


def test_thinking_alone_is_an_answer(encode) -> None:
    assert encode(talk("hi", "<think>a</think>"), template()).num_targets
    assert encode(talk("hi", "</think>"), template()).num_targets


@pytest.mark.parametrize("text", ["m['content'][1:]", "''", "m['content'] | replace('o', '0')"])
def test_a_template_that_loses_text_is_refused(encode, text: str) -> None:
    lossy = template(f"({text} if m['role'] == 'user' else m['content'])")
    with pytest.raises(RowError, match=r"changes or drops the user's text|when its texts are marked"):
        encode(talk("hello", "yo"), lossy)


def test_arguments_of_calls_must_be_shown(encode) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"a": "one", "b": {"c": ["two"]}}}}
    names = "m['content'] + (m['tool_calls'][0]['function'][KEY] | tojson if m['tool_calls'] else '')"
    whole = template(names.replace("[KEY]", ""))
    assert encode(talk("hi", "", tool_calls=[call]), whole).num_targets
    some = template(names.replace("[KEY] | tojson", "['name'] + m['tool_calls'][0]['function']['arguments']['a']"))
    with pytest.raises(RowError, match=r"shows 1 of 2 texts in the arguments"):
        encode(talk("hi", "", tool_calls=[call]), some)


def test_private_use_characters_are_text_unless_they_spell_a_mark(encode) -> None:
    assert encode(talk(f"{OPEN}5{OPEN}", f"{CLOSE}{OPEN}"), template()).num_targets
    with pytest.raises(RowError, match=r"private-use characters '\\U000ffffc5\\U000ffffd'"):
        encode(talk(f"{OPEN}5{CLOSE}", "yo"), template())


def test_an_answer_after_an_empty_turn_is_refused_or_found(encode) -> None:
    with pytest.raises(RowError, match=r"the user turn before it is empty"):
        encode(talk("", "yo"), template())
