"""A run that an earlier release wrote can be gone on with and exported, under its own names of classes."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_ift.cli import main

OLD = Path(__file__).parent / "old_run"
CHECKPOINT = "checkpoints/runs/version_0/checkpoints/last.ckpt"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OLD / "model", tmp_path / "model")
    shutil.copytree(OLD / "runs", tmp_path / "checkpoints" / "runs")
    shutil.copy(OLD / "rows.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(path: Path) -> dict[tuple[int, str], float]:
    """The logged values by step and name."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    skipped = ("epoch", "step", "train/tokens_per_s")
    return {(int(r["step"]), k): float(v) for r in rows for k, v in r.items() if v and k not in skipped}


@pytest.mark.filterwarnings("ignore:lit_ift.modules.optim is now:FutureWarning")
def test_training_goes_on_as_the_old_code_did(here: Path) -> None:
    config = "checkpoints/runs/version_0/config.yaml"
    words = ["--trainer.max_epochs", "2", "--ckpt_path", CHECKPOINT, "--tasks.show", "3"]
    with pytest.warns(UserWarning, match=r"tasks\.\* are now samples\.\*"):
        assert main(["fit", "--config", config, *words]) == 0
    [table] = (path for path in here.glob("checkpoints/runs/*/metrics.csv") if "version_0" not in path.parts)
    composed = yaml.safe_load((table.parent / "config.yaml").read_text())
    assert "tasks" not in composed
    assert (composed["samples"]["show"], composed["samples"]["items_per_task"]) == (3, 32)
    ours, theirs = metrics(table), metrics(OLD / "resumed_metrics.csv")
    assert len(theirs) == 4 * 7 + 5  # Four steps and a validation.
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, rel=1e-4)


@pytest.mark.filterwarnings("ignore:lit_ift.modules.optim is now:FutureWarning")
def test_it_is_exported(here: Path) -> None:
    assert main(["export", CHECKPOINT, "exported"]) == 0
    weights = load_file(here / "exported" / "model.safetensors")
    saved = torch.load(here / CHECKPOINT, weights_only=True)["state_dict"]
    assert {f"model.{name}" for name in weights} <= set(saved)
    assert all(torch.equal(value, saved[f"model.{name}"]) for name, value in weights.items())
