"""Turns that a row marks as not to be trained on, in the words of the tools that write such rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.readers import Record
from lit_ift.data.requirements import check_match
from lit_ift.data.rows import EncodedRow
from lit_ift.data.store import StoredRows
from lit_ift.data.train_on import with_targets
from lit_ift.data.truncation import truncate
from lit_ift.errors import RowError, UserError
from lit_ift.modules.packed import unpacked

ROLES = ("user", "assistant", "user", "assistant")
TEXTS = ("Name a fruit.", "Brick.", "Again.", "Apple.")


def convert(has_gaps: bool = False, /, **data: object) -> Conversation:
    return to_row(Record(data, "rows.jsonl:7", has_gaps)).sides["answer"]


def messages(*flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Two questions with their answers; `flags` are further keys of the answers."""
    extras = iter(flags)
    return [
        {"role": role, "content": text, **(next(extras) if role == "assistant" else {})}
        for role, text in zip(ROLES, TEXTS, strict=True)
    ]


def sharegpt(*flags: dict[str, Any]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[turn.pop("role")], "value": turn.pop("content"), **turn} for turn in messages(*flags)]


ON_MEANS_TRAINED = ("loss", "loss_weight", "loss_mask", "weight", "train", "training", "trainable", "train_on_turn")


@pytest.mark.parametrize("key", [*ON_MEANS_TRAINED, "masked"])
@pytest.mark.parametrize(
    ("off", "on"), [(False, True), (0, 1), (0.0, 1.0), ("false", "true"), ("0", "1"), ("False", "True")]
)
def test_a_turn_that_is_off_is_shown_but_not_trained(key: str, off: object, on: object) -> None:
    first, second = ({key: on}, {key: off}) if key == "masked" else ({key: off}, {key: on})
    for conversation in (
        convert(messages=messages(first, second)),
        convert(conversations=sharegpt(first, second)),
        convert(True, messages=messages(first, {key: None})),
        convert(messages=messages(first, {})),
    ):
        assert conversation.target_turns == [3]
        assert list(conversation.messages) == messages({}, {}), "a flag is for us, not for the template"


@pytest.mark.parametrize("key", ON_MEANS_TRAINED)
def test_flags_that_are_on_or_null_change_nothing(key: str) -> None:
    for value in (True, 1, None):
        assert convert(messages=messages({key: value}, {key: value})).target_turns == [1, 3]
    everywhere = [{**turn, key: 1} for turn in messages({}, {})]
    assert convert(messages=everywhere).target_turns == [1, 3]


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ({"mask": False}, "mask"),
        ({"mask": 1}, "mask"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]}, "train_detail"),
        ({"training_detail": [{"start": 0}]}, "training_detail"),
        ({"loss_scale": 0.3}, "loss_scale"),
        ({"is_trained": True}, "is_trained"),
        ({"no_loss": 1}, "no_loss"),
        ({"weights": 1}, "weights"),
        ({"weight": -1}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"loss_weight": math.nan}, "loss_weight"),
        ({"loss_mask": 0.5}, "loss_mask"),
        ({"train": 0.5}, "train"),
        ({"weight": 0.5, "loss": 0.4}, "loss"),
        ({"loss": "yes"}, "loss"),
        ({"loss": [1, 0]}, "loss"),
        ({"loss": {"a": 1}}, "loss"),
        ({"weight": 1, "loss": False}, "loss"),
        ({"masked": True, "loss": True}, "loss"),
    ],
)
def test_flags_that_cannot_be_expressed_are_row_errors(flag: dict[str, Any], named: str) -> None:
    for data in ({"messages": messages(flag, {})}, {"conversations": sharegpt(flag, {})}):
        field = next(iter(data))
        with pytest.raises(RowError, match=rf"field '{field}\[1\]\.{named}': .*(loss|Keep one)") as caught:
            convert(**data)
        assert caught.value.reason == "field"


@pytest.mark.parametrize("column", ["loss", "loss_mask", "loss_masks", "weight", "weights", "train", "trainable"])
def test_a_column_may_hold_one_flag_a_message(column: str) -> None:
    system = {"role": "system", "content": ""}
    assert convert(messages=messages({}, {}), **{column: [0, 0, 0, 1]}).target_turns == [3]
    assert convert(conversations=sharegpt({}, {}), **{column: [None, False, None, None]}).target_turns == [3]
    turns = [system, *messages({}, {})]
    assert convert(messages=turns, **{column: [0, 0, 0, 0, 1]}).target_turns == [3], "the empty turn has a flag, too"
    with pytest.raises(RowError, match=rf"field '{column}': has 3 flags, but 'messages' has 4 messages"):
        convert(messages=messages({}, {}), **{column: [0, 0, 1]})
    with pytest.raises(RowError, match=rf"field '{column}\[1\]': is -0.5"):
        convert(messages=messages({}, {}), **{column: [0, -0.5, 0, 1]})
    with pytest.raises(RowError, match=r"'messages\[1\]\.loss': contradicts|'.*\[1\]': contradicts"):
        convert(messages=messages({"loss": True}, {}), **{column: [0, 0, 0, 1]})


def test_no_turn_of_a_user_can_be_picked() -> None:
    turns = messages({"train": True}, {"train": True})
    turns[0]["train"], turns[2]["train"] = True, False
    with pytest.raises(RowError, match=r"field 'messages\[0\]': is to be trained on, but other turns of users are not"):
        convert(messages=turns)
    turns[0]["train"] = False
    assert convert(messages=turns).target_turns == [1, 3]
    turns[0] = {"role": "user", "content": "q", "weight": 0.5}
    with pytest.raises(RowError, match=r"field 'messages\[0\]': has a weight"):
        convert(messages=turns)


def trained(example: Example, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Example | RowError:
    return ConversationEncoder(tokenizer).encode([conversation], ["rows.jsonl:7"])[0]


BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("with_blocks", [False, True])
def test_masks_and_truncation_honour_the_flags(make_tokenizer: Any, with_blocks: bool) -> None:
    tokenizer = make_tokenizer()
    if with_blocks:
        tokenizer.chat_template = BLOCKS
    example = encode(tokenizer, convert(messages=messages({"loss": False}, {})))
    plain = encode(tokenizer, convert(messages=messages({}, {})))
    assert isinstance(example, Example)
    assert isinstance(plain, Example)
    assert example.input_ids == plain.input_ids
    assert trained(example, tokenizer) == "Apple.<|im_end|>"
    assert trained(plain, tokenizer) == "Brick.<|im_end|>Apple.<|im_end|>"
    row = EncodedRow("instruction", "rows.jsonl:7", {"answer": example})
    targets = example.num_targets
    # The turn that is off may be cut like the rest of the prompt.
    cut = truncate(row, max_length=targets + 2, policy="left_of_prompt").sides["answer"]
    assert trained(cut, tokenizer) == "Apple.<|im_end|>"
    with pytest.raises(RowError) as caught:
        truncate(row, max_length=len(example.input_ids) - targets - 1, policy="right")
    assert caught.value.reason == "no_target"


def test_a_row_whose_answers_are_all_off_has_nothing_to_train(tokenizer: PreTrainedTokenizerFast) -> None:
    off = {"loss": False}
    pair = {"prompt": "q", "chosen": [{**messages(off, off)[1]}], "rejected": "b"}
    scored = {"messages": messages({}, off), "score": 1}
    for data in ({"messages": messages(off, off)}, {"conversations": sharegpt(off, off)}, pair, scored):
        side = next(iter(to_row(Record(data, "rows.jsonl:7")).sides.values()))
        error = encode(tokenizer, side)
        assert isinstance(error, RowError)
        assert error.reason == "no_target"
        assert "marked as not to be trained on" in str(error)


def weighted(tokenizer: PreTrainedTokenizerFast, example: Example) -> dict[float, str]:
    """The trained tokens as text, by how much they count."""
    weights = example.weights or [1.0] * len(example.labels)
    ids: dict[float, list[int]] = {}
    for label, weight in zip(example.labels, weights, strict=True):
        if label != IGNORE_INDEX:
            ids.setdefault(weight, []).append(label)
    return {weight: tokenizer.decode(tokens) for weight, tokens in ids.items()}


@pytest.mark.parametrize("key", ["loss", "weight", "loss_weight"])
@pytest.mark.parametrize("with_blocks", [False, True])
def test_a_number_is_the_weight_of_a_turn(make_tokenizer: Any, with_blocks: bool, key: str) -> None:
    tokenizer = make_tokenizer()
    if with_blocks:
        tokenizer.chat_template = BLOCKS
    for data in (
        {"messages": messages({key: 0.25}, {})},
        {"conversations": sharegpt({key: 0.25}, {key: 1})},
        {"messages": messages({}, {}), key: [None, 0.25, None, 1.0]},
    ):
        conversation = convert(**data)
        assert list(conversation.messages) == messages({}, {}), "a weight is for us, not for the template"
        example = encode(tokenizer, conversation)
        assert isinstance(example, Example)
        assert weighted(tokenizer, example) == {0.25: "Brick.<|im_end|>", 1.0: "Apple.<|im_end|>"}
    both = encode(tokenizer, convert(messages=messages({key: 2}, {key: 0})))
    assert isinstance(both, Example)
    assert weighted(tokenizer, both) == {2.0: "Brick.<|im_end|>"}


def test_weights_where_all_is_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    row = to_row(Record({"messages": messages({"loss": 0.5}, {"loss": False})}, "rows.jsonl:7"))
    example = encode(tokenizer, with_targets(row, "all").sides["answer"])
    assert isinstance(example, Example)
    found = weighted(tokenizer, example)
    assert found[0.5] == "Brick.<|im_end|>"
    assert "Again." in found[1.0]
    assert "Apple." not in found[1.0]


def test_weights_are_cut_stored_and_batched_with_their_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    example = encode(tokenizer, convert(messages=messages({"weight": 0.5}, {"weight": 3})))
    plain = encode(tokenizer, convert(messages=messages({}, {})))
    assert isinstance(example, Example)
    assert isinstance(plain, Example)
    row = EncodedRow("instruction", "rows.jsonl:7", {"answer": example})
    cut = truncate(row, max_length=len(example.input_ids) - 12, policy="left_of_prompt").sides["answer"]
    assert weighted(tokenizer, cut) == weighted(tokenizer, example)
    shortened = truncate(row, max_length=len(example.input_ids) - 12, policy="right").sides["answer"]
    assert shortened.weights == example.weights[:-12]

    other = EncodedRow("instruction", "rows.jsonl:7", {"answer": plain})
    rows = StoredRows.in_memory([row, other])
    assert [stored.sides["answer"] for stored in rows] == [example, plain]
    assert rows.weighted.tolist() == [True, False]
    for digest in ("content_digest", "training_digest"):
        without = StoredRows.in_memory([EncodedRow("instruction", "rows.jsonl:7", {"answer": plain}), other])
        assert getattr(rows, digest) != getattr(without, digest)

    padded = collate([plain, cut], pad_token_id=0)
    packed = collate_packed([plain, cut], pad_token_id=0, one_row=True)
    assert torch.equal(padded["data_weights"], unpacked(dict(packed))["data_weights"])
    targets = padded["labels"] != IGNORE_INDEX
    expected = np.concatenate([np.ones(plain.num_targets), np.array(cut.weights)[np.array(cut.labels) != IGNORE_INDEX]])
    assert padded["data_weights"][targets].tolist() == expected.tolist()
    assert "data_weights" not in collate([plain, plain], pad_token_id=0)


def test_a_loss_without_weights_refuses_rows_that_have_some(tokenizer: PreTrainedTokenizerFast) -> None:
    example = encode(tokenizer, convert(messages=messages({"weight": 0.5}, {})))
    assert isinstance(example, Example)
    rows = StoredRows.in_memory([EncodedRow("instruction", "rows.jsonl:7", {"answer": example})])

    class Module:
        kinds = frozenset({"instruction"})

    with pytest.raises(UserError, match=r"Module takes no weights of turns, but 1 rows have some.* rows.jsonl:7"):
        check_match("train", rows, [], Module())
    Module.losses_without_weights = ["cool"]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"Module \(cool\) takes no weights of turns"):
        check_match("train", rows, [], Module())
    Module.losses_without_weights = []  # type: ignore[attr-defined]
    check_match("train", rows, [], Module())
