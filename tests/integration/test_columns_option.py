"""The option ``columns`` in every place where it may stand, and what the report says of columns."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_ift.cli import main
from lit_ift.data import InstructionDataModule, Source
from lit_ift.errors import UserError

ROWS = [{"ask": f"Say {i}", "say": "b" * (1 + i), "rating": 1, "id": i} for i in range(12)]
COLUMNS = {"prompt": "ask", "completion": "say", "rating": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def config(tmp_path: Path, path: Path, model_folder: Path) -> Path:
    options = {"train": str(path), "val_fraction": 0.3, "batch_size": 4, "max_length": 64, "columns": COLUMNS}
    content = {
        "model": {"class_path": "IFTModule", "init_args": {"model": str(model_folder)}},
        "data": {"class_path": "InstructionDataModule", "init_args": options},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": str(tmp_path / "out")},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(content))
    return config


def run(*words: object) -> int:
    return main([str(word) for word in words])


def checked(*words: object, to: Path) -> dict[str, Any]:
    assert run("data", "check", *words, "--json", to) == 0
    report: dict[str, Any] = json.loads(to.read_text())["splits"]["train"]
    return report


def test_columns_beside_files(path: Path, model_folder: Path, tmp_path: Path, capsys) -> None:
    option = ["--columns", "{prompt: ask, completion: say, rating: null, system: rules}"]
    report = checked(path, "--tokenizer", model_folder, *option, to=tmp_path / "report.json")
    assert report["rows_kept"] == 12
    assert report["columns_left_out"] == {"rating": 12, "id": 12}
    assert report["columns_renamed"] == {"ask": "prompt", "say": "completion"}
    assert report["columns_missing"] == ["rules"]
    said = capsys.readouterr().out
    for line in (
        "columns left out: rating (12), id (12)",
        "columns read by another name: ask as prompt, say as completion",
        "the option columns names columns that no row has: rules.",
    ):
        assert line in " ".join(said.split())
    for command in ("preview", "build"):
        assert run("data", command, path, "--tokenizer", model_folder, *option) == 0
    assert "Say 3" in capsys.readouterr().out


def test_a_refusal_prints_the_way_out(path: Path, model_folder: Path, tmp_path: Path, capsys) -> None:
    option = "--columns={prompt: ask, completion: say}"
    assert run("data", "check", path, "--tokenizer", model_folder, option) == 1
    assert "--columns '{rating: null}'" in " ".join(capsys.readouterr().out.split())
    scored = "--columns={prompt: ask, completion: say, score: rating}"
    report = checked(path, "--tokenizer", model_folder, scored, to=tmp_path / "report.json")
    assert report["kinds"] == {"scored": 12}


def test_columns_in_a_configuration(config: Path, tmp_path: Path, capsys) -> None:
    whole = checked("--config", config, to=tmp_path / "report.json")
    assert whole["rows_skipped"] == 0
    text = config.read_text()
    config.write_text(text[: text.index("    columns:")] + text[text.index("    max_length:") :])
    for option in ("--columns", "--data.columns", "--data.init_args.columns"):
        words = ["--config", config, option, json.dumps(COLUMNS)]
        assert checked(*words, to=tmp_path / "report.json") == whole
    assert run("data", "check", "--config", config, "--data.columns", "{promt: ask}") != 0
    assert "data.columns: no layout reads a column 'promt'. Did you mean 'prompt'" in capsys.readouterr().err


def test_a_source_goes_by_its_own_columns(path: Path, model_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"q": "Say", "a": "b"}) + "\n")
    own = {"prompt": "q", "completion": "a"}
    module = InstructionDataModule(
        [str(path), Source(str(other), columns=own)], columns=COLUMNS, tokenizer=str(model_folder), cache=False
    )
    module.setup("fit")
    assert module.reports["train"].rows_kept == 13
    assert module.hparams["columns"] == COLUMNS
    assert module.hparams["train"][1]["columns"] == own
    with pytest.raises(UserError, match=r"other.jsonl: columns: no layout reads a column 'promt'"):
        InstructionDataModule(Source(str(other), columns={"promt": "q"}))
    with pytest.raises(UserError, match=r"other.jsonl: columns=\['q'\] must be a mapping"):
        Source(str(other), columns=["q"])  # type: ignore[arg-type]


def test_cached_rows_are_those_of_the_same_columns(path: Path, model_folder: Path, tmp_path: Path) -> None:
    folders = set()
    for columns in (COLUMNS, {**COLUMNS, "prompt": "say", "completion": "ask"}):
        module = InstructionDataModule(
            str(path), columns=columns, tokenizer=str(model_folder), cache_dir=str(tmp_path / "cache")
        )
        module.setup("fit")
        folders.add(module.cache_folder("train"))
    assert len(folders) == 2
