"""A run goes on with the model and the rows that it began with."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Its log handler keeps the stderr that there is at the first import, which must not be that of a single test.
import lightning.pytorch  # noqa: F401
import pytest
import torch
import yaml
from commands import run
from safetensors.torch import load_file, save_file

Command = Callable[..., int]


@pytest.fixture
def place(tmp_path: Path, model_folder: Path) -> Path:
    """A folder with a model, rows and a configuration."""
    shutil.copytree(model_folder, tmp_path / "tiny")
    rows = [{"prompt": f"Say {i} b", "chosen": "b" * (1 + i % 3), "rejected": "c" * 4} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    content = {
        "model": {"class_path": "PreferenceModule", "init_args": {"model": "tiny", "loss": "dpo"}},
        "data": {
            "class_path": "FeedbackDataModule",
            "init_args": {"train": "rows.jsonl", "val": "val.jsonl", "batch_size": 3},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False},
        "export": {"enabled": False},
        "curves": {"enabled": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.fixture
def fit(place: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(place)

    return partial(run, "fit", "--config", "run.yaml")


def change_weights(place: Path) -> None:
    weights = load_file(place / "tiny" / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.5
    save_file(weights, place / "tiny" / "model.safetensors", metadata={"format": "pt"})


def edit(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        """The rows are as many and as long as before."""
        path = place / name
        path.write_text(path.read_text().replace("cccc", "dddd"))

    return change


def change_config(place: Path) -> None:
    path = place / "tiny" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.5}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_weights, "the model (model.safetensors) changed"),
        (change_config, "the model (config.json) changed"),
        (edit("rows.jsonl"), "the train rows changed"),
        (edit("val.jsonl"), "the val rows changed"),
    ],
)
def test_changed_inputs_are_refused_by_name(
    fit: Command, place: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], named: str
) -> None:
    assert fit() == 0
    change(place)
    last = place / "checkpoints" / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    for words in (["--resume", "auto"], ["--ckpt_path", last, "--trainer.max_epochs", 3]):
        assert fit(*words) == 1
        error = capsys.readouterr().err
        assert named in error
        assert "set checkpoint.allow_changed_inputs to true" in error
    assert last.read_bytes() == before
    with pytest.warns(UserWarning, match="It goes on, because checkpoint.allow_changed_inputs is set"):
        assert fit("--resume", "require", "--checkpoint.allow_changed_inputs", "true") == 0


def test_moved_files_are_the_same(fit: Command, place: Path) -> None:
    assert fit("--run_name", "mine") == 0
    (place / "tiny").rename(place / "other")
    (place / "rows.jsonl").rename(place / "more.jsonl")
    moved: list[Any] = ["--model.init_args.model", "other", "--data.init_args.train", "more.jsonl"]
    moved += ["--run_name", "mine", "--resume", "require", "--trainer.max_epochs", 3]
    assert fit(*moved) == 0
    last = torch.load(place / "checkpoints" / "runs" / "mine" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 6
    assert set(last["inputs"]) == {"model", "train rows", "val rows"}
    assert set(last["inputs"]["model"]) == {"config.json", "model.safetensors"}


def test_a_reference_model_counts(fit: Command, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "tiny", place / "reference")
    words = ["--model.init_args.reference_model", "reference", "--run_name", "mine"]
    assert fit(*words) == 0
    change_weights(place / "reference" / "..")  # The model's own file, for a start.
    shutil.copy(place / "tiny" / "model.safetensors", place / "reference" / "model.safetensors")
    assert fit(*words, "--resume", "auto") == 1
    error = capsys.readouterr().err
    assert "the model (model.safetensors)" in error
    assert "the reference model (model.safetensors)" in error
