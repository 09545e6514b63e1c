"""Continued pre-training from the command line: a base model without a chat template reads raw text."""

import json
from pathlib import Path

import pytest
import torch
from rowfiles import jsonl, write
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

from lit_ift.cli import main


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_check_preview_and_fit_take_raw_text(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit-ift"])
    write(tmp_path / "texts.jsonl", jsonl([{"text": f"{i} " * (i + 5)} for i in range(12)]))
    assert main(["data", "check", "texts.jsonl", "--tokenizer", str(base_model), "--json", "out.json"]) == 0
    report = json.loads(Path("out.json").read_text())["splits"]["train"]
    assert (report["rows_kept"], report["rows_with_stop"], report["pieces"]) == (12, 12, 0)
    words = ["--max_length", "20", "--row_id", "texts.jsonl:12"]
    assert main(["data", "preview", "texts.jsonl", "--tokenizer", str(base_model), *words]) == 0
    assert "(piece 3 of 3)" in capsys.readouterr().out
    options = {
        "model": "IFTModule",
        "model.init_args.model": str(base_model),
        "data": "InstructionDataModule",
        "data.init_args.train": "texts.jsonl",
        "data.init_args.max_length": "20",
        "data.init_args.tokens_per_batch": "64",
        "data.init_args.packing": "true",
        "trainer.default_root_dir": "out",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "1",
    }
    assert main(["fit", *(word for name, value in options.items() for word in (f"--{name}", value))]) == 0
    exported = Path("out/runs/version_0/model")
    assert AutoTokenizer.from_pretrained(exported).chat_template is None
    assert "texts.jsonl" in (exported / "README.md").read_text()
