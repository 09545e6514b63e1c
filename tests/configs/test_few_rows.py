"""Every shipped configuration trains on ten rows of one's own, and says before how many steps that makes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rowfiles import write_feedback

import lit_ift
from lit_ift.cli import main
from lit_ift.data.rows import ROW_KINDS

CONFIGS = Path(__file__).parents[2] / "configs"
SHARES = sorted(path for path in CONFIGS.rglob("smollm2-*.yaml") if "val_fraction" in path.read_text(encoding="utf-8"))
"""Configurations that set a share of the rows aside, which may be none of ten."""


def kinds_of(model: dict[str, Any]) -> list[str]:
    """Rows that a configured module learns from: those of each part, else of the first kind that it takes."""
    taken = getattr(lit_ift, model["class_path"].rpartition(".")[2]).kinds
    return [*model["init_args"].get("parts", [])] or [next(kind for kind in ROW_KINDS if kind in taken)]


@pytest.mark.parametrize("path", SHARES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_ten_rows_are_enough(
    path: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any
) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit-ift"])
    kinds = kinds_of(config["model"])
    files = list(write_feedback(tmp_path, **dict.fromkeys(kinds, 10)).values())
    options = {
        "model.init_args.model": str(model_folder),
        "data.init_args.train": json.dumps(files),
        "data.init_args.max_length": "128",
        "data.init_args.max_rows": "null",
        "trainer.default_root_dir": "out",
        "trainer.accelerator": "cpu",
        "trainer.devices": "1",
        "trainer.precision": "32-true",
        "trainer.max_epochs": "1",
        "export.enabled": "false",
        "checkpoint.save_top_k": "0",
        "checkpoint.save_last": "false",
    }
    assert "init_args" in config["data"]
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with caplog.at_level("INFO"):
        assert main(["fit", "--config", str(path), *words]) == 0
    told = caplog.text + capsys.readouterr().err
    # Of ten rows a share may take one; what it leaves fills one step or two.
    line = re.search(r"Training: (\d+) rows, \d+ a step \(about [\d,]+ tokens\), (\d) steps? in 1 epoch, (.*)", told)
    assert line is not None
    assert 10 * len(files) - int(line[1]) in (0, 1)
    assert line[3].startswith("0 warm-up steps, in out/runs/version_0.")
    assert f"The whole run makes {line[2]} optimizer step" in told
