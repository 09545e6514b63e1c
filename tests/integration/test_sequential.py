"""The sequential recipes of docs/objectives.md, run as written on a tiny model: the second begins from the first."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from rowfiles import feedback_rows, jsonl
from safetensors.torch import load_file

from lit_ift.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/objectives.md").read_text(encoding="utf-8").split("## One after the other")[1]
FIRST, *SECOND = re.findall(r"^lit-ift fit .*$", PAGE, re.MULTILINE)
SMALL = {
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.val_check_interval": 1.0,
    "trainer.accumulate_grad_batches": 1,
    "data.init_args.max_length": 512,
    "data.init_args.batch_size": 2,
    "data.init_args.val_fraction": 0.3,
}


def run(command: str, **options: object) -> None:
    words = [word for name, value in {**SMALL, **options}.items() for word in (f"--{name}", str(value))]
    assert main([*shlex.split(command)[1:], *words]) == 0


def test_second_runs_begin_from_the_first(
    tmp_path: Path, data_file: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(SECOND) == 4
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "pairs.jsonl").write_bytes(jsonl(feedback_rows("preference", 12)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-ift"])
    fast = {"model.init_args.optimizer.init_args.lr": 1e-3}
    run(FIRST, **{"model.init_args.model": model_folder, "data.init_args.train": data_file, **fast})
    first = load_file("checkpoints/first/runs/version_0/model/model.safetensors")
    initial = load_file(model_folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not first[name].equal(initial[name])
    for number, command in enumerate(SECOND):
        # At a rate of 0 a run must end with what it began with.
        rows = data_file if "configs/ift" in command else "pairs.jsonl"
        run(command, **{"data.init_args.train": rows, "model.init_args.optimizer.init_args.lr": 0.0})
        second = load_file(f"checkpoints/second/runs/version_{number}/model/model.safetensors")
        assert all(second[key].equal(value) for key, value in first.items())
