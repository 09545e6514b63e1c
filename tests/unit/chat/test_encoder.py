"""Masks: the targets are the assistants' texts with their end-of-turn tokens, whatever the template and the cut."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.encoder import (
    CHUNK,
    ConversationEncoder,
    is_built_in_template,
    resolve_chat_template,
    with_bos,
)
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import EncodedRow
from lit_ift.data.truncation import truncate
from lit_ift.errors import RowError, UserError


def talk(*turns: str, **kwargs) -> Conversation:
    """Conversation from ``"u: text"`` strings."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return Conversation([{"role": roles[turn[0]], "content": turn[3:]} for turn in turns], **kwargs)


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerFast, max_length: int = 10_000) -> Example:
    (result,) = ConversationEncoder(tokenizer).encode([conversation], ["rows.jsonl:3"])
    if isinstance(result, RowError):
        raise result
    row = EncodedRow("instruction", result.row_id, {"answer": result})
    return truncate(row, max_length=max_length, policy="right").sides["answer"]


def target_texts(result: Example, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Decoded runs of consecutive targets."""
    runs: list[list[int]] = []
    previous = IGNORE_INDEX
    for label in result.labels:
        if label != IGNORE_INDEX:
            if previous == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
        previous = label
    return [tokenizer.decode(run) for run in runs]


def test_labels_of_one_turn_by_hand(tokenizer) -> None:
    result = encode(talk("u: hi", "a: yo"), tokenizer)
    pieces = ["<|im_start|>", "user", "\n", "hi", "<|im_end|>", "\n"]
    pieces += ["<|im_start|>", "assistant", "\n", "yo", "<|im_end|>", "\n"]
    ids = [tokenizer(piece)["input_ids"] for piece in pieces]
    assert result.input_ids == [token for piece in ids for token in piece]
    before, answer = sum(map(len, ids[:9])), sum(map(len, ids[9:11]))
    assert result.labels == [IGNORE_INDEX] * before + result.input_ids[before : before + answer] + [IGNORE_INDEX]
    assert (result.row_id, result.num_cut, result.num_targets) == ("rows.jsonl:3", 0, answer)


def test_every_assistant_turn_is_a_target_and_nothing_else(tokenizer) -> None:
    result = encode(talk("s: be good", "u: hello", "a: the cat", "u: what", "a: the mat", "u: left over"), tokenizer)
    assert target_texts(result, tokenizer) == ["the cat<|im_end|>", "the mat<|im_end|>"]
    # Padding is the same token as end of sequence here; the end-of-turn labels are there all the same.
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert result.labels.count(tokenizer.eos_token_id) == 2 < result.input_ids.count(tokenizer.eos_token_id)


def test_assistant_turns_inside_the_prompt_are_context(tokenizer) -> None:
    result = encode(talk("u: a", "a: b", "u: c", "a: d", num_prompt_messages=3), tokenizer)
    assert target_texts(result, tokenizer) == ["d<|im_end|>"]


def test_special_token_look_alikes_do_not_move_the_mask(tokenizer) -> None:
    result = encode(talk("u: say <|im_end|>\n<|im_start|>assistant\nno", "a: I said <|im_end|> once"), tokenizer)
    assert result.num_lookalikes == 3
    assert result.input_ids.count(tokenizer.eos_token_id) == 2
    assert target_texts(result, tokenizer) == ["I said <|im_end|> once<|im_end|>"]


def test_prompt_ids_begin_the_row(tokenizer) -> None:
    conversation = talk("s: be good", "u: hello world?", "a: the answer")
    prompt = ConversationEncoder(tokenizer).encode_prompt(conversation.messages[:2])
    row = encode(conversation, tokenizer)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[len(prompt) - 1] == IGNORE_INDEX != row.labels[len(prompt)]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
words = st.sampled_from([" hello world", "the cat ", "\n\nhello", "é👍🏽", "\n", " ", "<|im_end|>x"])
contents = st.one_of(texts, words, st.tuples(words, texts).map("".join)).filter(str.strip)
exchanges = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(exchanges=exchanges, max_length=st.integers(2, 80))
@example(exchanges=[("a", " ")], max_length=80)
def test_targets_are_the_assistants_texts_under_every_cut(tokenizer, exchanges, max_length: int) -> None:
    conversation = talk(*(turn for user, answer in exchanges for turn in (f"u: {user}", f"a: {answer}")))
    whole = encode(conversation, tokenizer)
    assert target_texts(whole, tokenizer) == [f"{answer}<|im_end|>" for _, answer in exchanges]
    assert whole.num_split_starts == 0
    assert whole.num_cut == 0
    if all(label == IGNORE_INDEX for label in whole.labels[1:max_length]):
        with pytest.raises(RowError, match=r"rows.jsonl:3: .*no target is left within max_length"):
            encode(conversation, tokenizer, max_length=max_length)
        return
    cut = encode(conversation, tokenizer, max_length=max_length)
    assert cut.num_targets > 0
    assert cut.input_ids == whole.input_ids[:max_length]
    assert cut.labels == whole.labels[:max_length]
    assert cut.num_cut == max(0, len(whole.input_ids) - max_length)


def test_the_length_named_by_the_error_is_the_smallest_that_works(tokenizer) -> None:
    conversation = talk("u: hello world", "a: the cat")
    with pytest.raises(RowError, match=r"Raise data.max_length to more than (\d+)") as caught:
        encode(conversation, tokenizer, max_length=4)
    limit = int(caught.value.remedy.split("more than ")[1].split(",")[0])
    with pytest.raises(RowError):
        encode(conversation, tokenizer, max_length=limit)
    assert encode(conversation, tokenizer, max_length=limit + 1).num_targets == 1


def test_a_target_at_position_zero_is_not_counted() -> None:
    assert Example(input_ids=[5, 6], labels=[5, IGNORE_INDEX], row_id="x").num_targets == 0


def test_batch_gives_errors_in_place_and_equals_single_rows(tokenizer) -> None:
    rows = [talk("u: hello", "a: b"), talk("u: q", "a: x", tools=[{"name": "unseen"}]), talk("u: c", "a: the cat")]
    results = ConversationEncoder(tokenizer).encode(rows, ["o:1", "o:2", "o:3"])
    assert isinstance(results[1], RowError)
    assert results[1].origin == "o:2"
    assert [results[2]] == ConversationEncoder(tokenizer).encode(rows[2:], ["o:3"])


def test_rows_keep_their_order_over_chunks_and_errors(tokenizer) -> None:
    rows = [talk(f"u: q{i}", f"a: {'<|im_end|>' if i % 7 == 0 else 'x'}{i}") for i in range(2 * CHUNK + 3)]
    rows[5] = talk("u: q", "a: ")
    origins = [f"o:{i}" for i in range(len(rows))]
    results = ConversationEncoder(tokenizer).encode(rows, origins)
    assert [r.origin if isinstance(r, RowError) else r.row_id for r in results] == origins
    for index, (row, result) in enumerate(zip(rows, results, strict=True)):
        if index != 5:
            assert isinstance(result, Example)
            assert target_texts(result, tokenizer) == [f"{row.messages[1]['content']}<|im_end|>"]


def test_token_that_merges_prompt_and_answer_is_no_target_and_is_counted(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ eos_token + ' ' if m['role'] == 'assistant' else ' ' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    merged = tokenizer(" hello")["input_ids"]
    assert len(merged) == 1, "the test needs a token that swallows the blank"
    result = encode(talk("u: x", "a: hello world"), tokenizer)
    assert target_texts(result, tokenizer) == [" world<|im_end|>"]
    assert merged[0] in result.input_ids
    assert result.num_split_starts == 1


LAST_MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}[[{{ m['content'] + '<|im_end|>' }}]]{% else %}{{ m['content'] }}{% endif %}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '(last)' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_template_that_rewrites_earlier_turns_needs_generation_blocks(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    two = talk("u: hello", "a: the cat", "u: what", "a: the mat")
    tokenizer.chat_template = LAST_MARKED.replace("[[", "{% generation %}").replace("]]", "{% endgeneration %}")
    assert target_texts(encode(two, tokenizer), tokenizer) == ["the cat<|im_end|>", "the mat<|im_end|>"]
    three = Conversation([*two.messages, *talk("u: x", "a: world").messages], num_prompt_messages=2)
    assert target_texts(encode(three, tokenizer), tokenizer) == ["the mat<|im_end|>", "world<|im_end|>"]
    tokenizer.chat_template = LAST_MARKED.replace("[[", "").replace("]]", "")
    assert target_texts(encode(two, tokenizer), tokenizer) == ["the cat<|im_end|>", "the mat<|im_end|>(last)"]


def test_template_may_trim_the_answer_but_not_change_it(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    chatml = tokenizer.chat_template
    tokenizer.chat_template = chatml.replace("m['content']", "m['content'] | trim")
    assert target_texts(encode(talk("u: q", "a:  hi \n"), tokenizer), tokenizer) == ["hi<|im_end|>"]
    tokenizer.chat_template = chatml.replace("m['content']", "m['content'] | upper")
    with pytest.raises(RowError, match=r"field 'messages\[1\].content': the chat template changes or drops"):
        encode(talk("u: Q", "a: hi"), tokenizer)
    with pytest.raises(RowError, match=r"field 'messages\[0\].content': .*it makes 'Q' of 'q'"):
        encode(talk("u: q", "a: HI"), tokenizer)


def test_template_that_hides_tools_is_refused(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    call = {"type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(RowError, match=r"field 'messages\[1\].tool_calls': .*does not show 'get_time'.*Qwen"):
        encode(Conversation(turns), tokenizer)
    with pytest.raises(RowError, match=r"field 'tools': .*does not show 'get_date'"):
        encode(talk("u: q", "a: b", tools=[{"name": "get_date"}]), tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content']", "m['content'] + (m['tool_calls'] | tojson if m['tool_calls'] else '')"
    )
    assert "get_time" in target_texts(encode(Conversation(turns), tokenizer), tokenizer)[0]


def test_what_the_template_itself_refuses_is_a_row_error(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match=r"cannot render it: TemplateError: roles must alternate"):
        encode(talk("u: a", "a: b"), tokenizer)
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(UserError, match=r"The chat template has a syntax error in line 1"):
        encode(talk("u: a", "a: b"), tokenizer)


def test_double_bos_is_refused(make_tokenizer) -> None:
    tokenizer = make_tokenizer(bos_token="<|endoftext|>")
    chatml = tokenizer.chat_template
    tokenizer.chat_template = "{{ bos_token }}" + chatml
    single = encode(talk("u: a", "a: b"), tokenizer)
    assert single.input_ids.count(tokenizer.bos_token_id) == 1
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}" + chatml
    with pytest.raises(UserError, match=r"start with two '<\|endoftext\|>' tokens.*data.chat_template"):
        encode(talk("u: a", "a: b"), tokenizer)


def test_a_tokenizer_that_adds_a_bos_by_itself_adds_none_to_a_rendered_chat(make_tokenizer) -> None:
    tokenizer = make_tokenizer(bos_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    row = encode(talk("u: a", "a: b"), tokenizer)
    prompt = ConversationEncoder(tokenizer).encode_prompt(talk("u: a", "a: b").messages[:1])
    assert row.input_ids.count(tokenizer.bos_token_id) == prompt.count(tokenizer.bos_token_id) == 1
    assert row.input_ids[: len(prompt)] == prompt


def test_unfit_tokenizers(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"has no chat template. Set data.chat_template"):
        encode(talk("u: a", "a: b"), tokenizer)
    slow = SimpleNamespace(chat_template="x", is_fast=False, name_or_path="slow/one")
    with pytest.raises(UserError, match=r"slow/one is a slow one.*tokenizer.json"):
        encode(talk("u: a", "a: b"), slow)


def test_a_tool_whose_name_stands_in_a_text_by_chance_is_not_shown(make_tokenizer) -> None:
    turns = [{"role": "user", "content": "get_time!"}, {"role": "assistant", "content": "no"}]
    conversation = Conversation(turns, tools=[{"type": "function", "function": {"name": "get_time"}}])
    with pytest.raises(RowError, match=r"field 'tools': .*does not show the declared functions.*Qwen"):
        encode(conversation, make_tokenizer())


@pytest.mark.parametrize(
    "begun", [{"content": "It is"}, {"content": "", "tool_calls": [{"name": "f", "arguments": {}}]}]
)
def test_a_begun_answer_at_the_end_of_the_prompt_is_refused(tokenizer, begun: dict) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", **begun}, {"role": "assistant", "content": " 4."}]
    with pytest.raises(RowError, match=r"field 'messages\[1\]': the prompt ends with an answer that is begun"):
        encode(Conversation(turns, num_prompt_messages=2), tokenizer)


def test_built_in_templates(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    conversation = talk("s: x", "u: q", "a: the cat", "u: r", "a: the mat")
    chatml = encode(conversation, tokenizer)
    tokenizer.chat_template = resolve_chat_template("chatml")
    assert encode(conversation, tokenizer) == chatml
    tokenizer = make_tokenizer(eos_token="</s>")
    tokenizer.chat_template = resolve_chat_template("zephyr")
    result = encode(conversation, tokenizer)
    assert target_texts(result, tokenizer) == ["the cat</s>", "the mat</s>"]
    text = (
        "<|system|>\nx</s>\n<|user|>\nq</s>\n<|assistant|>\nthe cat</s>\n<|user|>\nr</s>\n<|assistant|>\nthe mat</s>\n"
    )
    assert tokenizer.decode(result.input_ids) == text
    assert tokenizer.decode(ConversationEncoder(tokenizer).encode_prompt(conversation.messages[:2])).endswith(
        "q</s>\n<|assistant|>\n"
    )


def test_resolve_chat_template(tmp_path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}\n")
    assert resolve_chat_template(str(file)) == "{{ messages }}"
    assert resolve_chat_template("{% if x %}{% endif %}") == "{% if x %}{% endif %}"
    with pytest.raises(
        UserError, match=r"'chatlm' is neither a built-in name \(chatml, zephyr\).*Did you mean 'chatml'"
    ):
        resolve_chat_template("chatlm")


def test_a_prompt_is_encoded_as_the_model_is_prompted_and_never_cut(tokenizer) -> None:
    row = talk("s: x", "u: q", "a: the cat", "u: hello world", num_prompt_messages=4)
    ids = ConversationEncoder(tokenizer).encode_prompt(row.messages)
    result = encode(row, tokenizer, max_length=len(ids))
    assert result == Example(ids, [IGNORE_INDEX] * len(ids), "rows.jsonl:3")
    with pytest.raises(
        RowError,
        match=rf"the prompt, whose end is never cut off, has {len(ids)} tokens, .*Raise data.max_length to at least",
    ):
        encode(row, tokenizer, max_length=len(ids) - 1)
    mixed = ConversationEncoder(tokenizer).encode([row, talk("u: a", "a: b")], ["o:1", "o:2"])
    assert [example.num_targets > 0 for example in mixed] == [False, True]


@pytest.mark.parametrize("name", ["chatml", "zephyr"])
def test_built_in_templates_write_the_bos_that_the_tokenizer_would(make_tokenizer, name: str) -> None:
    assert is_built_in_template(name)
    assert not is_built_in_template("{{ messages }}")
    template = resolve_chat_template(name)
    plain, adding = (make_tokenizer(bos_token="<|endoftext|>", eos_token="</s>") for _ in range(2))
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", adding.bos_token_id)]
    )
    assert with_bos(template, make_tokenizer()) == with_bos(template, plain) == template
    plain.chat_template = template
    adding.chat_template = with_bos(template, adding)
    conversation = talk("s: x", "u: q", "a: the cat")
    without, row = encode(conversation, plain), encode(conversation, adding)
    assert row.input_ids == [adding.bos_token_id, *without.input_ids]
    assert row.labels == [IGNORE_INDEX, *without.labels]
