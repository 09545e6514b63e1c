"""``lit-ift fit --config FILE --trainer.devices 2`` on CPUs: what one process makes of the same rows."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rounding import CLOSE32, NEAR32
from rowfiles import write_feedback
from safetensors.torch import load_file

from lit_ift.cli import main

PARTS = {
    "instruction": {"objective": "IFTModule", "weight": 0.5, "optimum": 4.0},
    "preference": {"objective": "PreferenceModule", "options": {"reference": "model"}, "weight": 0.5},
}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "reuse": ("IFTModule", {"reuse_predictions": "epoch", "lam": 0.3}, "InstructionDataModule"),
    "maxright": (
        "MixedModule",
        {"parts": PARTS, "schedule": {"kind": "maxright", "evaluate_every": 2}},
        "FeedbackDataModule",
    ),
}


def config(folder: Path, case: str, model: Path, rows: list[str]) -> Path:
    name, options, data = MODELS[case]
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
    described = {
        "model": {"class_path": name, "init_args": {"model": str(model), "optimizer": optimizer, **options}},
        "data": {"class_path": data, "init_args": {"train": rows, "cache_dir": str(folder / "cache")}},
        "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
        "curves": {"enabled": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


def steps(folder: Path) -> list[dict[str, float]]:
    """What was logged of each step, but for speeds."""
    with (folder / "runs/version_0/metrics.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line.get("train/loss")]
    return [
        {
            name: float(value)
            for name, value in line.items()
            if value and name.startswith("train/") and "_per_s" not in name
        }
        for line in lines
    ]


@pytest.mark.parametrize("case", MODELS)
def test_two_ranks_equal_one(case: str, model_folder: Path, tmp_path: Path) -> None:
    rows = [*write_feedback(tmp_path, instruction=7, preference=7).values()]
    file = config(tmp_path, case, model_folder, rows[:1] if case == "reuse" else rows)
    words = ["fit", "--config", str(file), "--trainer.accelerator", "cpu"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = ["--trainer.devices", "1", "--data.init_args.batch_size", "4", "--trainer.default_root_dir", str(one)]
    assert main([*words, *alone]) == 0
    both = ["--trainer.devices", "2", "--data.init_args.batch_size", "2", "--trainer.default_root_dir", str(two)]
    done = subprocess.run(
        [sys.executable, "-m", "lit_ift", *words, *both], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(steps(one)) >= 4
    for ours, expected in zip(steps(two), steps(one), strict=True):
        assert ours == pytest.approx(expected, rel=NEAR32)
    if case == "maxright":
        assert len({step["train/instruction/chosen"] for step in steps(one)}) == 2
    weights, wanted = (load_file(folder / "runs/version_0/model/model.safetensors") for folder in (two, one))
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, **CLOSE32)
