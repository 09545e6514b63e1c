"""What could damage a run without a word: each of these once did."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import CHATML
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lit_ift.chat.conversation import Conversation
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data import InstructionDataModule
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.record import Record
from lit_ift.data.read.sources import Source
from lit_ift.data.rows import EncodedRow
from lit_ift.data.truncation import truncate
from lit_ift.errors import RowError, UserError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(6)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def make(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., InstructionDataModule]:
    """A data module that is set up for fit, with a cache of this test's own."""

    def build(train: Any, **options: Any) -> InstructionDataModule:
        data = InstructionDataModule(train, **{"tokenizer": tokenizer, "cache_dir": str(tmp_path / "cache"), **options})
        data.setup("fit")
        return data

    return build


def traced_peak(work: Callable[[], Any]) -> int:
    """Most bytes that Python objects took during `work`."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_unreadable_rows_take_no_memory_and_the_first_stops_at_once(tmp_path: Path, make) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{no json, but of some length: " + "x" * 300 + "\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.writelines("{no json, but of some length: " + "x" * 300 + "\n" for _ in range(8000))
        file.write(json.dumps(ROWS[0]) + "\n")
    reports = []
    peak = traced_peak(lambda: reports.append(make(str(path), on_bad_row="skip").reports["train"]))
    assert (reports[0].rows_read, reports[0].rows_skipped, reports[0].rows_kept) == (8002, 8001, 1)
    assert peak < 4_000_000  # The file has 2.6 MB, and 8,001 errors with their tracebacks took 25 MB.


def test_an_unreadable_row_stops_the_reading_at_once(tmp_path: Path, make) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{no json\n" * 20_000, encoding="utf-8")

    def stop() -> None:
        with pytest.raises(RowError, match=r":1: not valid JSON"):
            make(str(path))

    assert traced_peak(stop) < 2_000_000  # All 20,000 errors would take 60 MB.


def test_the_first_bad_row_is_the_one_that_is_raised(tmp_path: Path, make) -> None:
    path = tmp_path / "bad.jsonl"
    empty, good = {"prompt": "a", "completion": " "}, ROWS[0]
    reserved = {"prompt": "a", "completion": "\U000ffffc1\U000ffffd"}
    for first in (reserved, empty, None):
        bad = "{no json" if first is None else json.dumps(first)
        path.write_text("\n".join([json.dumps(good), bad, "{no json", json.dumps(empty), json.dumps(reserved)]))
        with pytest.raises(RowError, match=r"bad\.jsonl:2"):
            make(str(path))


@pytest.mark.slow
def test_long_rows_are_encoded_in_small_chunks(tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_ift.data.pipeline.CHUNK_CHARS", 50_000)
    monkeypatch.setattr("lit_ift.data.store.BATCH_TOKENS", 20_000)
    rows = [{"prompt": f"q {i}", "completion": "hello world " * 1000} for i in range(120)]
    few, many = write(tmp_path / "few.jsonl", rows[:12]), write(tmp_path / "many.jsonl", rows)
    peaks = [traced_peak(lambda path=path: make(path, max_length=100_000)) for path in (few, many)]
    assert peaks[1] < 3 * peaks[0]  # Ten times as many rows.


def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path: Path, make) -> None:
    path = tmp_path / "a.jsonl"
    first = make(write(path, ROWS)).datasets["train"]
    stat = path.stat()
    write(path, [{**row, "completion": row["completion"].upper()} for row in ROWS])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert make(str(path)).datasets["train"].rows[0] != first.rows[0]


def test_a_split_may_be_named_though_it_is_the_default_but_not_twice(tmp_path: Path, make) -> None:
    folder = str(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(folder)
    assert make(folder).reports["train"].sources.keys() == {folder}
    named = make(Source(folder, split="train", weight=2.0))
    assert named.reports["train"].sources[f"{folder}, split=train"].weight == 2.0
    with pytest.raises(UserError, match=r"'train' of the source .* is listed twice"):
        make([folder, Source(folder, split="train")])


@pytest.mark.parametrize("file", ["rows.arrow", "report.json", "sums.json"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, make, file: str, caplog) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    first = make(path)
    damaged = first.cache_folder("train") / file
    whole, expected = damaged.read_bytes(), list(first.datasets["train"].rows)
    damaged.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    again = make(path)
    assert list(again.datasets["train"].rows) == expected
    assert again.reports == first.reports
    assert "is damaged, so its rows are tokenized again" in caplog.text
    caplog.clear()
    assert damaged.read_bytes() == whole
    assert list(make(path).datasets["train"].rows) == expected
    assert not caplog.text


def test_a_report_of_another_version_is_made_again(tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with monkeypatch.context() as other_version:
        other_version.setattr("lit_ift.data.report.account.DataReport.as_dict", lambda report: {})
        with pytest.raises(AssertionError):
            make(path)
    assert make(path).reports["train"].rows_kept == len(ROWS)


TOOLS_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_arguments_that_other_rows_have_are_not_trained_as_null(tmp_path: Path, make, make_tokenizer) -> None:
    def call(**arguments: Any) -> list[dict[str, Any]]:
        function = {"name": "f", "arguments": arguments}
        turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        return [{"role": "user", "content": "q"}, turn]

    table = pa.Table.from_pylist([{"messages": call(city="Rome")}, {"messages": call(unit="C")}])
    pq.write_table(table, tmp_path / "calls.parquet")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    rows = make(str(tmp_path / "calls.parquet"), tokenizer=tokenizer).datasets["train"].rows
    trained = [tokenizer.decode([i for i in row.sides["answer"].labels if i != IGNORE_INDEX]) for row in rows]
    assert trained == [
        '{"name": "f", "arguments": {"city": "Rome"}}<|im_end|>',
        '{"name": "f", "arguments": {"unit": "C"}}<|im_end|>',
    ]


@pytest.mark.parametrize(
    ("key", "value"), [("weight", -1), ("loss_mask", 0.5), ("train", "no"), ("mask", False), ("function_call", {})]
)
def test_keys_that_change_what_is_trained_on_are_not_ignored(key: str, value: Any) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", key: value}]
    with pytest.raises(RowError, match=rf"messages\[1\]\.{key}"):
        to_row(Record({"messages": messages}, "o"))
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", key: value}]
    with pytest.raises(RowError, match=rf"conversations\[1\]\.{key}"):
        to_row(Record({"conversations": turns}, "o"))


def test_keys_that_change_nothing_are_taken() -> None:
    messages = [{"role": "user", "content": "q", "train": False}, {"role": "assistant", "content": "a", "weight": 1}]
    assert to_row(Record({"messages": messages}, "o")).kind == "instruction"


@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("system_prompt", {"instruction": "a", "output": "b"}),
        ("system_prompt", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ("system_message", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("history", {"prompt": "a", "completion": "b"}),
        ("input", {"prompt": "a", "completion": "b"}),
    ],
)
def test_a_part_of_the_prompt_in_a_column_of_its_own_is_not_ignored(column: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=f"field '{column}'"):
        to_row(Record({**row, column: "more"}, "o"))
    assert to_row(Record({**row, column: ""}, "o"))


def test_answers_that_become_the_same_tokens_are_no_preference() -> None:
    example = Example([1, 2, 3], [-100, 2, 3], "o")
    row = EncodedRow("preference", "o", {"chosen": example, "rejected": example})
    with pytest.raises(RowError, match="the same, once they are tokenized"):
        truncate(row, max_length=10, policy="right")


@pytest.mark.parametrize("rejected", ["", " \n"])
def test_an_empty_transcript_is_a_row_error(rejected: str) -> None:
    with pytest.raises(RowError, match="field 'rejected'"):
        to_row(Record({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": rejected}, "o"))


def words_tokenizer(model: models.BPE, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of ASCII characters."""
    backend = Tokenizer(model)
    alphabet = [chr(i) for i in range(10, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=200, initial_alphabet=alphabet, special_tokens=["<?>", "<|im_start|>", "<|im_end|>"]
    )
    backend.train_from_iterator(["hello world"], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<?>"]
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


@pytest.mark.parametrize("unknown", [None, "<?>"])
def test_a_character_without_a_token_is_not_dropped_and_no_unknown_token_trained(unknown: str | None) -> None:
    encoder = ConversationEncoder(words_tokenizer(models.BPE(unk_token=unknown)))
    for text, is_good in [("a \u00e9 b", False), ("a b\u4e2d c <|im_end|>", False), ("a b c <|im_end|>\n", True)]:
        conversation = Conversation([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}])
        result = encoder.encode([conversation], ["o"])[0]
        assert isinstance(result, RowError) != is_good


def test_a_byte_without_a_token_is_not_dropped(make_tokenizer) -> None:
    state = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["never"] = vocab.pop(bytes_to_unicode()[0xE4])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    encoder = ConversationEncoder(tokenizer)
    for text, is_good in [("a \u4e2d b", False), ("a \u8aaa b", True)]:
        conversation = Conversation([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}])
        result = encoder.encode([conversation], ["o"])[0]
        assert isinstance(result, RowError) != is_good, text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("max_length", value) for value in (None, "a", 2.5, 1e9, True)),
        *((name, "x") for name in ("batch_size", "tokens_per_batch", "eval_batch_size", "pad_to_multiple_of")),
        *((name, 2.5) for name in ("batch_size", "num_workers", "max_rows", "seed")),
        *(("seed", value) for value in ("x", None, 2**70)),
        *((name, "yes") for name in ("cache", "packing", "padding_free", "group_by_length")),
        *((name, 3) for name in ("cache_dir", "chat_template", "tokenizer", "layout", "revision", "train_split")),
        *(("val_fraction", value) for value in ("0.5", None, True)),
        *(("train", value) for value in (3, ["a", 3], [["a"]], {"path": "a", "weigth": 2}, {"weight": 2})),
    ],
)
def test_an_option_of_the_wrong_type_is_named(tmp_path: Path, option: str, value: Any) -> None:
    options = {"train": write(tmp_path / "a.jsonl", ROWS), option: value}
    with pytest.raises(UserError, match=option):
        InstructionDataModule(**options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("weight", value) for value in ("x", None, True, 1e9)),
        *(("max_rows", value) for value in ("x", 2.5, True)),
        *(("score_range", value) for value in ((0,), (0, 1, 2), "ab", 5, ("a", "b"))),
        *((name, 3) for name in ("layout", "split", "name", "revision", "streaming", "path")),
    ],
)
def test_an_option_of_a_source_of_the_wrong_type_is_named(tmp_path: Path, option: str, value: Any) -> None:
    options = {"path": write(tmp_path / "a.jsonl", ROWS), option: value}
    with pytest.raises(UserError, match=f"{option}="):
        Source(**options)


@pytest.mark.parametrize(
    "template",
    [
        # Every turn but the last lacks its end, so the prompt of inference occurs nowhere in training.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if loop.last %}<|im_end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        # The generation prompt names another role than the turns.
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>bot\n{% endif %}",
    ],
)
def test_a_header_that_is_not_the_generation_prompt_is_not_trained(make_tokenizer, template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    conversation = Conversation([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    result = ConversationEncoder(tokenizer).encode([conversation], ["o"])[0]
    assert isinstance(result, RowError)
    assert result.reason == "mask_disagreement"
