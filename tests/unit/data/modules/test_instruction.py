"""InstructionDataModule without a trainer: arguments, splits, reports, bad rows."""

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
from tiny import answers
from tokenizers import processors

from lit_ift.data.modules.instruction import InstructionDataModule
from lit_ift.data.read.readers import Record, raise_row_error
from lit_ift.data.read.sources import Source
from lit_ift.errors import RowError, UserError


def write(path: Path, count: int, start: int = 0) -> str:
    rows = [{"prompt": f"question {i} " + "x" * (i % 7), "completion": f"answer {i}"} for i in range(start, count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "set at least one of data.train"),
        ({"train": "a.jsonl", "max_length": 1}, "max_length=1 must be at least 2"),
        ({"train": "a.jsonl", "batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"train": "a.jsonl", "eval_batch_size": 0}, "eval_batch_size=0 must be at least 1"),
        ({"train": "a.jsonl", "pad_to_multiple_of": 0}, "pad_to_multiple_of=0 must be at least 1"),
        ({"train": "a.jsonl", "num_workers": -1}, "num_workers=-1 must be at least 0"),
        ({"train": "a.jsonl", "max_rows": 0}, "max_rows=0 must be at least 1"),
        ({"train": "a.jsonl", "on_bad_row": "ignore"}, "on_bad_row='ignore' must be one of 'error', 'skip'"),
        ({"train": "a.jsonl", "val": "b.jsonl", "val_fraction": 0.1}, "are both set. Keep one"),
        ({"val": "b.jsonl", "val_fraction": 1.0}, "must be at least 0 and below 1"),
        ({"test": "b.jsonl", "val_fraction": 0.5}, "takes rows from data.train"),
        ({"train": "a.jsonl", "val_split": "x"}, "val_split='x' is set, but data.val is not"),
        (
            {"train": "a.jsonl", "truncation": "left"},
            "truncation='left' must be one of 'right', 'left_of_prompt', 'drop'",
        ),
        ({"train": {"path": "a.jsonl", "layout": "mesages"}}, "Did you mean 'messages'"),
        ({"train": "a.json"}, r"a.json: no such file .*a.jsonl"),
        ({"train": ["a.jsonl", "a.jsonl"]}, "a.jsonl is listed twice"),
        ({"train": "a.jsonl", "layout": "mesages"}, "Did you mean 'messages'"),
        ({"train": "a.jsonl", "chat_template": "chatlm"}, "Did you mean 'chatml'"),
    ],
)
def test_contradictory_arguments_fail_at_construction(
    arguments: dict, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).touch()
    with pytest.raises(UserError, match=problem):
        InstructionDataModule(**arguments)


def test_options_no_source_can_use_are_refused(tmp_path: Path, tokenizer) -> None:
    train = write(tmp_path / "a.jsonl", 3)
    for options, problem in (
        ({"train_split": "x"}, "no source of data.train has splits"),
        ({"revision": "x"}, "on the"),
    ):
        with pytest.raises(UserError, match=problem):
            InstructionDataModule(train, tokenizer=tokenizer, **options).setup("fit")


def test_every_row_is_in_one_batch_with_its_origin(tmp_path: Path, tokenizer) -> None:
    sources = [write(tmp_path / "a.jsonl", 5), write(tmp_path / "b.jsonl", 8, start=5)]
    module = InstructionDataModule(sources, tokenizer=tokenizer, batch_size=3)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert [len(batch["row_ids"]) for batch in batches] == [3, 3, 2]
    seen = sorted(row for batch in batches for row in batch["row_ids"])
    assert seen == [f"{sources[0]}:{i}" for i in range(1, 6)] + [f"{sources[1]}:{i}" for i in range(1, 4)]
    for batch in batches:
        for ids, labels, row in zip(batch["input_ids"], batch["labels"], batch["row_ids"], strict=True):
            number = int(row.split(":")[1]) - 1 + (5 if row.startswith(sources[1]) else 0)
            assert tokenizer.decode(labels[labels != -100]) == f"answer {number}<|im_end|>"
            assert f"question {number} " in tokenizer.decode(ids)


def test_report_counts_rows_and_tokens(tmp_path: Path, tokenizer, capsys: pytest.CaptureFixture) -> None:
    module = InstructionDataModule(write(tmp_path / "a.jsonl", 6), tokenizer=tokenizer, max_rows=4, max_length=65)
    module.setup("fit")
    report = module.reports["train"]
    dataset = module.datasets["train"]
    examples = answers(dataset)
    assert (report.rows_read, report.rows_kept, report.rows_skipped) == (4, 4, 0)
    assert report.tokens == sum(len(example.input_ids) for example in examples)
    assert report.target_tokens == sum(example.num_targets for example in examples)
    assert report.longest == max(len(example.input_ids) for example in examples) <= 65
    assert json.loads(json.dumps(report.as_dict()))["rows_read"] == 4
    assert "train: 4 rows read, 4 kept, 0 skipped, 0 truncated;" in capsys.readouterr().out
    module.setup("fit")  # a second call does not encode again
    assert module.datasets["train"] is dataset


def test_bad_rows_stop_or_are_counted_and_named(tmp_path: Path, tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    good = '{"prompt": "q", "completion": "a"}\n'
    bad = '{"prompt": "q"\n{"prompt": "q", "answer": "a"}\n'
    path.write_text(good + bad + json.dumps({"prompt": "q" * 500, "completion": "a"}) + "\n" + good)
    with pytest.raises(RowError, match=r"a\.jsonl:2: not valid JSON"):
        InstructionDataModule(str(path), tokenizer=tokenizer).setup("fit")
    module = InstructionDataModule(str(path), tokenizer=tokenizer, on_bad_row="skip", max_length=60)
    with caplog.at_level(logging.WARNING, logger="lit_ift"):
        module.setup("fit")
    report = module.reports["train"]
    assert (report.rows_read, report.rows_kept, report.rows_skipped) == (5, 2, 3)
    for number, reason in ((2, "not valid JSON"), (3, "completion"), (4, "no target is left")):
        assert any(f"a.jsonl:{number}: " in text and reason in text for text in report.skipped)
        assert any(f"a.jsonl:{number}: " in text and reason in text for text in caplog.messages)


def test_many_rows_with_one_fault_are_told_in_one_line(tmp_path: Path, tokenizer, caplog) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n' + "{}\n" * 23)
    module = InstructionDataModule(str(path), tokenizer=tokenizer, on_bad_row="skip")
    with caplog.at_level(logging.WARNING, logger="lit_ift"):
        module.setup("fit")
    (told,) = (text for text in caplog.messages if "skipped " in text)
    assert f"{path}:2: " in told
    assert told.endswith("(the first of 23 such rows)")


def test_all_rows_bad_is_an_error_even_when_skipping(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n" * 3)
    with pytest.raises(UserError, match=r"train: none of 3 rows can be used\.\n.*a\.jsonl:1: columns.*the first of 3"):
        InstructionDataModule(str(path), tokenizer=tokenizer, on_bad_row="skip").setup("fit")


def test_warns_if_nothing_teaches_the_model_to_stop(tmp_path: Path, make_tokenizer, caplog) -> None:
    train = write(tmp_path / "a.jsonl", 3)
    # A control token at the end of turns stops exports too, whatever the tokenizer's own eos_token is.
    for eos, max_length, warns in (("<|im_end|>", 64, False), ("<|endoftext|>", 64, False), ("<|im_end|>", 20, True)):
        caplog.clear()
        InstructionDataModule(train, tokenizer=make_tokenizer(eos_token=eos), max_length=max_length).setup("fit")
        assert any("does not learn to stop" in text for text in caplog.messages) == warns


@pytest.mark.slow
def test_val_fraction_is_stable_and_keeps_equal_questions_together(tmp_path: Path, tokenizer) -> None:
    rows = [{"prompt": f"Question {i // 2}", "completion": f"answer {i}"} for i in range(200)]
    rows += [{"prompt": f" question  {i}", "completion": "again"} for i in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def questions(**options) -> tuple[set[str], set[str]]:
        module = InstructionDataModule(str(path), tokenizer=tokenizer, val_fraction=0.2, **options)
        module.setup("fit")
        texts = {
            split: [tokenizer.decode(example.input_ids).lower().split()[2] for example in answers(dataset)]
            for split, dataset in module.datasets.items()
        }
        assert len(texts["train"]) + len(texts["val"]) == (module.max_rows or len(rows))
        return set(texts["train"]), set(texts["val"])

    train, val = questions()
    assert not train & val
    assert 10 <= len(val) <= 32
    assert questions(seed=5) == (train, val)
    fewer_train, fewer_val = questions(max_rows=100)
    assert fewer_train <= train
    assert fewer_val <= val


def test_a_share_without_a_row_leaves_the_run_without_validation(tmp_path: Path, tokenizer, caplog) -> None:
    module = InstructionDataModule(write(tmp_path / "a.jsonl", 3), tokenizer=tokenizer, val_fraction=0.001)
    with caplog.at_level("WARNING", logger="lit_ift"):
        module.setup("fit")
    assert "val_fraction=0.001 leaves no row for val. Change it, or name a data.val." in caplog.text
    assert "The run goes without validation." in caplog.text
    assert module.val_dataloader() == []
    assert len(module.datasets["train"]) == 3
    # It is so of what the cache holds, too.
    again = InstructionDataModule(str(tmp_path / "a.jsonl"), tokenizer=tokenizer, val_fraction=0.001)
    again.setup("fit")
    assert again.val_dataloader() == []


def test_a_share_that_takes_all_rows_leaves_nothing_to_train_on(tmp_path: Path, tokenizer) -> None:
    module = InstructionDataModule(write(tmp_path / "a.jsonl", 3), tokenizer=tokenizer, val_fraction=0.999)
    with pytest.raises(UserError, match=r"val_fraction=0.999 leaves no row for train. Change it"):
        module.setup("fit")


def test_loaders_without_data(tmp_path: Path, tokenizer) -> None:
    module = InstructionDataModule(test=write(tmp_path / "a.jsonl", 4), tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"test data is not set up. Call setup"):
        module.test_dataloader()
    module.setup("test")
    assert module.val_dataloader() == []
    assert len(list(module.test_dataloader())) == 1
    with pytest.raises(UserError, match=r"There is no train data. Set data.train"):
        module.train_dataloader()


def test_eval_order_and_batch_size(tmp_path: Path, tokenizer) -> None:
    source = write(tmp_path / "a.jsonl", 7)
    module = InstructionDataModule(val=source, predict=source, tokenizer=tokenizer, eval_batch_size=2)
    module.setup("validate")
    module.setup("predict")
    lengths = [n for batch in module.val_dataloader() for n in batch["attention_mask"].sum(1).tolist()]
    assert lengths == sorted(lengths, reverse=True)
    rows = [batch["row_ids"] for batch in module.predict_dataloader()]
    assert rows == [[f"{source}:{n}" for n in pair] for pair in ((1, 2), (3, 4), (5, 6), (7,))]


def test_an_iterator_draws_nothing_from_the_global_generator(tmp_path: Path, tokenizer) -> None:
    module = InstructionDataModule(write(tmp_path / "a.jsonl", 7), tokenizer=tokenizer)
    module.setup("fit")
    state = torch.get_rng_state()
    list(module.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_tokenizer_and_template_arguments(tmp_path: Path, make_tokenizer) -> None:
    train = write(tmp_path / "a.jsonl", 3)
    with pytest.raises(UserError, match=r"No tokenizer: .*Set data.tokenizer"):
        InstructionDataModule(train).setup("fit")
    with pytest.raises(UserError, match=r"nothing"):
        InstructionDataModule(train, tokenizer=str(tmp_path / "nothing")).setup("fit")
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    module = InstructionDataModule(train, tokenizer=str(tmp_path / "tokenizer"), chat_template="zephyr")
    module.setup("fit")
    assert "<|user|>\n" in module.tokenizer.decode(answers(module.datasets["train"])[0].input_ids)
    bare = make_tokenizer(pad_token=None, eos_token=None)
    module = InstructionDataModule(train, tokenizer=bare)
    module.setup("fit")
    with pytest.raises(UserError, match=r"neither a pad_token nor an eos_token"):
        module.train_dataloader()


def test_hyperparameters_are_plain(tmp_path: Path, make_tokenizer) -> None:
    source = write(tmp_path / "a.jsonl", 3)
    named = InstructionDataModule(source, val=[Source(source, weight=2)], tokenizer="me/model", max_length=7)
    assert (named.hparams["train"], named.hparams["max_length"], named.hparams["tokenizer"]) == (
        source,
        7,
        "me/model",
    )
    assert InstructionDataModule(**named.hparams).sources == named.sources
    assert "tokenizer" not in InstructionDataModule(source, tokenizer=make_tokenizer()).hparams
    torch.save(dict(named.hparams), tmp_path / "hparams.pt")
    assert torch.load(tmp_path / "hparams.pt", weights_only=True)["max_length"] == 7


def test_batches_are_padded_to_a_multiple(tmp_path: Path, tokenizer) -> None:
    source = write(tmp_path / "a.jsonl", 7)
    module = InstructionDataModule(source, val=source, tokenizer=tokenizer, pad_to_multiple_of=64)
    module.setup("fit")
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert {batch["input_ids"].shape[1] % 64 for batch in loader} == {0}


@pytest.mark.slow
def test_bos_is_written_by_built_in_templates_and_missed_in_others(tmp_path: Path, make_tokenizer, caplog) -> None:
    source = write(tmp_path / "a.jsonl", 5)

    def first_ids(template: str | None, adds_bos: bool = True) -> tuple[set[int], int]:
        """First tokens of the training rows, and how often a missing BOS was warned of."""
        caplog.clear()
        tokenizer = make_tokenizer(bos_token="<|endoftext|>")
        if adds_bos:
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
            )
        module = InstructionDataModule(source, val=source, tokenizer=tokenizer, chat_template=template)
        for _ in range(2):
            module.setup("fit")
        starts = {example.input_ids[0] for example in answers(module.datasets["train"])}
        assert module.reports["train"].rows_without_bos == (5 if adds_bos and starts != {bos} else 0)
        return starts, sum("starts a text with its bos_token" in text for text in caplog.messages)

    shared = make_tokenizer(bos_token="<|endoftext|>")
    bos, im_start = shared.bos_token_id, shared.convert_tokens_to_ids("<|im_start|>")
    assert first_ids("chatml") == ({bos}, 0)
    assert first_ids("chatml", adds_bos=False) == ({im_start}, 0)
    assert first_ids(None) == first_ids(shared.chat_template) == ({im_start}, 1)
    assert "5 rows of train, 5 rows of val start without it" in caplog.text
    assert first_ids(None, adds_bos=False) == ({im_start}, 0)


def test_predict_takes_prompts_and_other_splits_do_not(tmp_path: Path, tokenizer) -> None:
    pairs, tasks = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    pairs.write_text('{"prompt": "hello"}\n{"prompt": "q", "completion": "a"}\n')
    tasks.write_text('{"instruction": "q", "input": "x"}\n')
    module = InstructionDataModule(str(pairs), predict=[str(pairs), str(tasks)], tokenizer=tokenizer)
    module.setup("predict")
    examples = answers(module.datasets["predict"])
    assert [example.num_targets > 0 for example in examples] == [False, True, False]
    assert [example.row_id for example in examples] == [f"{pairs}:1", f"{pairs}:2", f"{tasks}:1"]
    with pytest.raises(RowError, match=r"a\.jsonl:1: .*fit no known layout"):
        module.setup("fit")


def test_an_option_for_a_missing_split_is_named(tmp_path: Path, tokenizer) -> None:
    module = InstructionDataModule(write(tmp_path / "a.jsonl", 3), tokenizer=tokenizer)
    assert [module.split_option(split) for split in ("train", "predict")] == ["data.train", "data.predict"]


def test_a_subclass_may_give_the_rows_itself(tmp_path: Path, tokenizer) -> None:
    class Shouted(InstructionDataModule):
        def records(self, split, on_row_error=raise_row_error):
            for record in super().records(split, on_row_error):
                yield Record({**record.data, "completion": record.data["completion"].upper()}, record.origin)

    module = Shouted(write(tmp_path / "a.jsonl", 2), tokenizer=tokenizer)
    module.setup("fit")
    assert "ANSWER 1" in tokenizer.decode(answers(module.datasets["train"])[1].input_ids)
    assert module.cache_folder("train") is None


def test_warns_of_measuring_on_training_rows(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", 2), write(tmp_path / "b.jsonl", 2)
    with pytest.warns(UserWarning, match=r"data.test takes the rows of .*a.jsonl that data.train takes"):
        InstructionDataModule(first, val=second, test=[second, first])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InstructionDataModule(first, val=second)
        InstructionDataModule("me/data", val="me/data")  # Its own split of the same data set.
