"""Rows are tokenized once: by `data build` or the first run, and again when anything they depend on changes."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from tiny import CHATML, answers, tiny_model, tiny_tokenizer

from lit_ift import SFTModule
from lit_ift.cli import main
from lit_ift.data import InstructionDataModule, Source
from lit_ift.errors import RowError


def write(path: Path, count: int = 12, word: str = "answer") -> Path:
    rows = [{"prompt": f"question {i}", "completion": f"{word} {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that were tokenized, in their order."""
    from lit_ift.data.modules import split_rows

    seen: list[str] = []
    encode = split_rows.encode_sources

    def counted(sources: Any, options: Any, report: Any, **others: Any) -> Any:
        seen.append(report.split)
        return encode(sources, options, report, **others)

    monkeypatch.setattr(split_rows, "encode_sources", counted)
    return seen


def set_up(path: Path, folder: Path, **options: Any) -> InstructionDataModule:
    given: dict[str, Any] = {"train": str(path), "tokenizer": tiny_tokenizer(), "cache_dir": str(folder), **options}
    module = InstructionDataModule(**given)
    module.setup("fit")
    return module


def test_the_second_run_reads_what_the_first_one_wrote(tmp_path: Path, encodings: list[str]) -> None:
    path, cache = write(tmp_path / "a.jsonl"), tmp_path / "cache"
    first, second = set_up(path, cache), set_up(path, cache)
    assert encodings == ["train"]
    assert answers(second.datasets["train"]) == answers(first.datasets["train"])
    assert second.reports == first.reports
    folder = first.cache_folder("train")
    assert folder is not None
    assert folder.parent == cache
    assert json.loads((folder / "key.json").read_text())["max_length"] == 1024
    set_up(path, cache, cache=False)
    assert encodings == ["train", "train"]


def other_template() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_end|>\n", "<|im_end|> \n")
    return tokenizer


def other_tokens() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["question"])
    return tokenizer


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "content": lambda path: {"train": str(write(path, word="ANSWER"))},
    "rows": lambda path: {"train": str(write(path, count=13))},
    "name": lambda path: {"train": str(path.rename(path.with_name("b.jsonl")))},
    "another source": lambda path: {"train": [str(path), str(write(path.with_name("b.jsonl")))]},
    "template": lambda path: {"tokenizer": other_template()},
    "built-in template": lambda path: {"chat_template": "zephyr"},
    "vocabulary": lambda path: {"tokenizer": other_tokens()},
    "max_length": lambda path: {"max_length": 64},
    "truncation": lambda path: {"truncation": "drop"},
    "on_bad_row": lambda path: {"on_bad_row": "skip"},
    "max_rows": lambda path: {"max_rows": 5},
    "max_rows of a source": lambda path: {"train": Source(str(path), max_rows=5)},
    "val_fraction": lambda path: {"val_fraction": 0.3},
    "layout": lambda path: {"layout": "prompt_completion"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_the_rows_depend_on_makes_them_new(change: str, tmp_path: Path, encodings: list[str]) -> None:
    path, cache = write(tmp_path / "a.jsonl"), tmp_path / "cache"
    set_up(path, cache)
    changed = CHANGES[change](path)
    set_up(path, cache, **changed)
    assert encodings[:2] == ["train", "train"]


def test_a_file_of_equal_size_and_time_is_told_apart_in_another_process(tmp_path: Path) -> None:
    """Within one process a file's hash is remembered by its size and time; across processes only its content counts."""
    from lit_ift.data.read.sources import _sha256

    path = write(tmp_path / "a.jsonl")
    before, times = Source(str(path)).fingerprint(), path.stat()
    write(path, word="ANSWER")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    _sha256.cache_clear()
    assert Source(str(path)).fingerprint() != before


def test_weights_and_batches_take_no_part_in_it(tmp_path: Path, encodings: list[str]) -> None:
    path, cache = write(tmp_path / "a.jsonl"), tmp_path / "cache"
    set_up(path, cache)
    weighted = set_up(path, cache, train=Source(str(path), weight=2.0), batch_size=2, packing=True, seed=3)
    assert encodings == ["train"]
    assert weighted.reports["train"].tokens_per_epoch == 2 * weighted.reports["train"].tokens
    assert sum(len(batch["row_ids"]) for batch in weighted.train_dataloader()) == 24


def test_bad_rows_that_were_skipped_once_are_still_reported_and_stop_a_strict_run(
    tmp_path: Path, encodings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, cache = write(tmp_path / "a.jsonl"), tmp_path / "cache"
    path.write_text(path.read_text() + "{}\n")
    set_up(path, cache, on_bad_row="skip")
    again = set_up(path, cache, on_bad_row="skip")
    assert encodings == ["train"]
    assert again.reports["train"].rows_skipped == 1
    assert capsys.readouterr().out.count("1 skipped") == 2
    with pytest.raises(RowError, match=r"a\.jsonl:13"):
        set_up(path, cache)
    assert len(list(cache.iterdir())) == 1


def test_what_build_wrote_is_what_fit_reads(
    tmp_path: Path,
    model_folder: Path,
    encodings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "a.jsonl", 20)
    config = {
        "model": {"class_path": "SFTModule", "init_args": {"model": str(model_folder)}},
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train": str(path), "val_fraction": 0.2, "cache_dir": str(tmp_path / "cache")},
        },
        "trainer": {"max_steps": 1, "logger": False, "enable_progress_bar": False, "accelerator": "cpu"},
        "export": {"enabled": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-ift"])
    assert main(["data", "build", "--config", "run.yaml"]) == 0
    assert encodings == ["train", "val"]
    assert f"cached in {tmp_path / 'cache'}" in capsys.readouterr().out
    assert main(["fit", "--config", "run.yaml"]) == 0
    assert encodings == ["train", "val"]


def test_rows_are_prepared_once_before_every_rank_reads_them(tmp_path: Path, encodings: list[str]) -> None:
    source = InstructionDataModule(
        str(write(tmp_path / "a.jsonl")), tokenizer=tiny_tokenizer(), cache_dir=str(tmp_path / "cache")
    )
    order: list[str] = []

    class Watch(L.Callback):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            order.append(f"{encodings}")

    trainer = L.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Watch()]
    )
    trainer.fit(SFTModule(tiny_model("llama")), datamodule=source)
    assert order == ["['train']"]
    assert encodings == ["train"]


class Short(InstructionDataModule):
    """Takes short answers only, which the key of its base class does not say."""

    longest = 8

    def takes(self, split: Any, row: Any) -> bool:
        return len(row.sides["answer"].messages[-1]["content"]) <= self.longest


class ShortAndSaid(Short):
    def fingerprint(self, split: Any) -> dict[str, Any]:
        return {**super().fingerprint(split), "longest": self.longest}


def test_a_subclass_is_cached_only_if_it_says_what_its_rows_depend_on(tmp_path: Path, encodings: list[str]) -> None:
    path, cache = write(tmp_path / "a.jsonl"), tmp_path / "cache"
    set_up(path, cache)
    given: dict[str, Any] = {"train": str(path), "tokenizer": tiny_tokenizer(), "cache_dir": str(cache)}
    for kind, times in ((Short, 2), (ShortAndSaid, 1)):
        encodings.clear()
        for _ in range(2):
            module = kind(**given)
            module.setup("fit")
            assert module.reports["train"].rows_kept == 10
        assert len(encodings) == times
        assert (module.cache_folder("train") is None) == (kind is Short)
