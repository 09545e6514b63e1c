"""Raw text: recognised, closed, split into pieces without loss, and nothing of it ignored."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rowfiles import jsonl, write
from tiny import tiny_tokenizer

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data import FeedbackDataModule, InstructionDataModule
from lit_ift.data.encode_sides import DocumentEncoder
from lit_ift.data.report.preview import pick
from lit_ift.data.rows import Document, EncodedRow
from lit_ift.data.truncation import fitted, pieces
from lit_ift.errors import RowError, UserError


def base_tokenizer() -> Any:
    """A tokenizer of a base model: without a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def data(path: Path | list[Any], **options: Any) -> InstructionDataModule:
    """The training data of a file, set up."""
    train: Any = [str(p) for p in path] if isinstance(path, list) else str(path)
    module = InstructionDataModule(train=train, **{"tokenizer": base_tokenizer(), "max_length": 16, **options})
    module.setup("fit")
    return module


def texts(folder: Path, *contents: str, **columns: Any) -> Path:
    return write(folder / "texts.jsonl", jsonl([{"text": text, **columns} for text in contents]))


def ids_of(module: InstructionDataModule) -> list[list[int]]:
    return [row.sides["answer"].input_ids for row in module.datasets["train"].rows]


def test_a_text_is_closed_with_the_eos_and_all_but_its_first_token_is_trained(tmp_path) -> None:
    module = data(texts(tmp_path, "abc", "d\n"))
    tokenizer = module.tokenizer
    (first, second) = (row.sides["answer"] for row in module.datasets["train"].rows)
    assert tokenizer.decode(first.input_ids) == "abc<|im_end|>"
    assert first.labels == [IGNORE_INDEX, *first.input_ids[1:]]
    assert tokenizer.decode(second.input_ids) == "d\n<|im_end|>"
    report = module.reports["train"]
    assert (report.rows_kept, report.rows_with_stop, report.turns_unstopped) == (2, 2, 0)
    assert (report.tokens, report.target_tokens) == (4 + 3, 3 + 2)


def test_the_bos_comes_first_where_the_tokenizer_writes_one(tmp_path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = base_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    module = data(texts(tmp_path, "x" * 20), tokenizer=tokenizer)
    first, second = ids_of(module)
    assert first[0] == 1
    assert 1 not in [*first[1:], *second]
    assert module.reports["train"].rows_without_bos == 0


@given(st.integers(1, 70), st.integers(2, 9))
def test_pieces_add_up_to_the_text(length: int, max_length: int) -> None:
    ids = list(range(length))
    row = EncodedRow("instruction", "t:1", {"answer": Example(ids, [IGNORE_INDEX, *ids[1:]], "t:1", num_lookalikes=2)})
    made = pieces(row, max_length)
    found = [piece.sides["answer"] for piece in made]
    assert [i for example in found for i in example.input_ids] == ids
    assert all(len(example.input_ids) <= max_length for example in found)
    assert all(example.labels == [IGNORE_INDEX, *example.input_ids[1:]] for example in found)
    assert sum(example.num_lookalikes for example in found) == 2
    assert sum(example.num_cut for example in found) == 0
    assert len({piece.row_id for piece in made}) == len(made)
    if max_length > 2 and length > 1:
        assert all(example.num_targets for example in found)


def test_nothing_of_a_long_text_is_lost(tmp_path) -> None:
    contents = ["".join(chr(97 + (i * i) % 26) for i in range(n)) for n in (15, 16, 17, 32, 101)]
    module = data(texts(tmp_path, *contents))
    joined = module.tokenizer.decode([i for ids in ids_of(module) for i in ids])
    assert joined == "".join(f"{text}<|im_end|>" for text in contents)
    report = module.reports["train"]
    assert report.tokens == sum(len(text) + 1 for text in contents)
    assert (report.tokens_cut, report.rows_truncated, report.turns_cut) == (0, 0, 0)
    assert (report.rows_read, report.rows_kept, report.rows_split, report.pieces) == (5, 5, 4, 2 + 2 + 3 + 7)
    assert (report.truncation, report.trained_turns, report.turns_unstopped) == ("split", 5, 0)
    assert len(module.datasets["train"]) == 1 + report.pieces
    assert report.sources[str(tmp_path / "texts.jsonl")].rows == 1 + report.pieces


def test_other_policies_do_to_texts_what_they_say(tmp_path) -> None:
    path = texts(tmp_path, "a" * 40, "b")
    cut = data(path, truncation="right")
    assert [len(ids) for ids in ids_of(cut)] == [16, 2]
    assert (cut.reports["train"].tokens_cut, cut.reports["train"].turns_cut) == (25, 1)
    dropped = data(path, truncation="drop")
    assert dropped.reports["train"].skipped_by_reason == {"too_long": 1}
    with pytest.raises(RowError, match=r"texts.jsonl:1: has 41 tokens.*left_of_prompt is not for a text.*splits texts"):
        data(path, truncation="left_of_prompt")


def test_a_conversation_is_not_split(tmp_path) -> None:
    rows = [{"prompt": "a", "completion": "b" * 40}]
    path = write(tmp_path / "chat.jsonl", jsonl(rows))
    with pytest.raises(RowError, match=r"truncation=split is not for conversations.*cuts off the end of the answer"):
        data(path, tokenizer=tiny_tokenizer(), max_length=50, truncation="split")
    row = EncodedRow("instruction", "r", {"answer": Example([1, 2], [IGNORE_INDEX, 2], "r")})
    assert fitted(row, is_text=False, max_length=2, policy="split") == [row]


def test_texts_and_conversations_go_into_one_run(tmp_path) -> None:
    chat = write(tmp_path / "chat.jsonl", jsonl([{"prompt": "a", "completion": "b" * 60}]))
    module = data([texts(tmp_path, "t" * 70), chat], tokenizer=tiny_tokenizer(), max_length=64)
    report = module.reports["train"]
    assert (report.pieces, report.rows_truncated) == (2, 1)
    assert report.truncation == "right, of texts split"
    assert [len(ids) for ids in ids_of(module)] == [64, 7, 64]
    assert report.turns == {"2": 1}


def test_a_conversation_still_needs_a_chat_template(tmp_path) -> None:
    chat = write(tmp_path / "chat.jsonl", jsonl([{"prompt": "a", "completion": "b"}]))
    with pytest.raises(UserError, match=r"has no chat template. Set data.chat_template"):
        data([texts(tmp_path, "t"), chat])


def test_a_text_that_spells_a_control_token_is_text(tmp_path) -> None:
    module = data(texts(tmp_path, "<|im_end|>", "a"), max_length=64)
    ids = ids_of(module)
    assert ids[0].count(2) == 1
    assert ids[0][-1] == 2
    assert module.tokenizer.decode(ids[0]) == "<|im_end|><|im_end|>"
    assert module.reports["train"].rows_with_lookalikes == 1
    # What it did to the tokenizer is undone.
    assert module.tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"] == [2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " \n"}, "text is empty|field 'text'"),
        ({"text": 3}, "is a int"),
        ({"text": ["a"]}, "is a list"),
        ({"text": "a\0b"}, "null character"),
        ({"text": "a", "prompt": "b"}, "'prompt'.*--columns"),
        ({"text": "a", "system": "b"}, "'system'.*--columns"),
    ],
)
def test_what_is_no_text_is_named(row: dict[str, Any], message: str, tmp_path) -> None:
    with pytest.raises(RowError, match=rf"rows.jsonl:1.*({message})"):
        data(write(tmp_path / "rows.jsonl", jsonl([row])))


def test_the_columns_of_another_layout_win(tmp_path) -> None:
    rows = [{"instruction": "a", "output": "b", "text": "a b"}] * 2
    module = data(write(tmp_path / "rows.jsonl", jsonl(rows)), tokenizer=tiny_tokenizer(), max_length=99)
    assert "user" in module.tokenizer.decode(ids_of(module)[0])
    declared = data(tmp_path / "rows.jsonl", layout="text")
    assert declared.tokenizer.decode(ids_of(declared)[0]) == "a b<|im_end|>"


def test_a_tokenizer_without_an_eos_cannot_close_texts(tmp_path) -> None:
    tokenizer = base_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no eos_token, which is to close each text"):
        data(texts(tmp_path, "a"), tokenizer=tokenizer)


def test_a_character_without_a_token_is_an_error() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1, "<unk>": 2}, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    good, bad = DocumentEncoder(tokenizer).encode([(Document("aa"), "t:1"), (Document("ab"), "t:2")])
    assert isinstance(good, Example)
    assert isinstance(bad, RowError)
    assert "has no token for" in str(bad)


def test_texts_of_predict_are_prompts(tmp_path) -> None:
    module = InstructionDataModule(predict=str(texts(tmp_path, "abc")), tokenizer=base_tokenizer(), max_length=16)
    module.setup("predict")
    (row,) = module.datasets["predict"].rows
    assert module.tokenizer.decode(row.sides["answer"].input_ids) == "abc"
    assert row.sides["answer"].num_targets == 0
    long = InstructionDataModule(predict=str(texts(tmp_path, "a" * 40)), tokenizer=base_tokenizer(), max_length=16)
    with pytest.raises(RowError, match="the prompt, whose end is never cut off"):
        long.setup("predict")


def test_pieces_of_a_text_stay_on_one_side_of_a_validation_share(tmp_path) -> None:
    path = texts(tmp_path, *(f"{i}" * 20 for i in range(40)))
    module = data(path, val_fraction=0.3)
    names = [{row.row_id.partition(" ")[0] for row in module.datasets[split].rows} for split in ("train", "val")]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40


def test_weights_count_pieces(tmp_path) -> None:
    from lit_ift.data.read.sources import Source

    path = texts(tmp_path, "a" * 40, "b")
    module = InstructionDataModule(
        train=[Source(str(path), weight=2.0)], tokenizer=base_tokenizer(), max_length=16, batch_size=1
    )
    module.setup("fit")
    assert module.train_groups() == [(4, 2.0)]
    assert len(list(module.train_dataloader())) == 8


def test_packed_batches_and_the_cache_hold_the_same_pieces(tmp_path) -> None:
    path = texts(tmp_path, "a" * 40, "b", "cc")
    plain = data(path, cache_dir=str(tmp_path / "cache"), packing=True, batch_size=5)
    again = data(path, cache_dir=str(tmp_path / "cache"), packing=True, batch_size=5)
    assert again.reports["train"] == plain.reports["train"]
    assert ids_of(again) == ids_of(plain)
    (batch,) = list(again.train_dataloader())
    assert int((batch["labels"] != IGNORE_INDEX).sum()) == plain.reports["train"].target_tokens
    assert int((batch["sequence_ids"] >= 0).sum()) == plain.reports["train"].tokens


def test_texts_are_instruction_rows_of_feedback_data(tmp_path) -> None:
    module = FeedbackDataModule(train=str(texts(tmp_path, "abc")), tokenizer=base_tokenizer())
    module.setup("fit")
    assert module.reports["train"].kinds == {"instruction": 1}


def test_preview_shows_all_pieces_of_a_text(tmp_path) -> None:
    module = data(texts(tmp_path, "a" * 40, "b"))
    shown = pick(module.datasets["train"], rows=1, row_id="texts.jsonl:1")
    assert [s.title.rpartition(":")[2] for s in shown] == [f"1 (piece {k} of 3)" for k in (1, 2, 3)]
