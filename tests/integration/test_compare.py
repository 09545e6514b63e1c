"""``lit-ift compare`` as it is called, with runs of its own, and what only the parser of ``fit`` can refuse."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run as lit_ift
from rich.console import Console

from lit_ift.cli.compare import compare
from lit_ift.cli.tree import function_parser, parse
from lit_ift.study.plan import Run
from lit_ift.study.record import read_records
from lit_ift.study.runner import LaunchAll
from lit_ift.study.study_file import read_study

ROOT = Path(__file__).parents[2]


def here(*_: Any) -> LaunchAll:
    """Runs by calling the command in this process."""

    def launch_all(runs: Sequence[Run], console: Console) -> Iterator[tuple[Run, int]]:
        for run in runs:
            yield run, lit_ift(*run.words)

    return launch_all


@pytest.fixture
def study(tmp_path: Path, model_folder: Path, data_file: Path) -> dict[str, Any]:
    """A study whose base configuration is in a file."""
    data = {"train": str(data_file), "val_fraction": 0.3, "chat_template": "chatml", "batch_size": 4}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
    base = {
        "model": {"class_path": "SFTModule", "init_args": {"model": str(model_folder), "optimizer": optimizer}},
        "data": {"class_path": "InstructionDataModule", "init_args": data},
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
        "samples": {"enabled": False},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    return {
        "config": [str(tmp_path / "base.yaml")],
        "variants": [{"name": "sft"}, {"name": "ift", "options": {"model": "IFTModule", "model.init_args.lam": 0.3}}],
        "rates": [0.001],
        "seeds": [0],
    }


def written(study: dict[str, Any], folder: Path) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def test_a_study_from_the_command_line(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_ift.cli.compare.in_processes", here)
    assert lit_ift("compare", written(study, tmp_path), "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "val/nll (less is better)" in printed
    assert "Note: 1 seed(s)" in printed
    records = {record.variant: record for record in read_records(tmp_path / "out" / "results").values()}
    assert set(records) == {"sft", "ift"}
    assert records["sft"].order == records["ift"].order
    assert records["sft"].scores != records["ift"].scores
    assert records["ift"].peak_memory
    config = yaml.safe_load(next((tmp_path / "out" / "runs").glob("ift-*/config.yaml")).read_text())
    assert config["model"]["init_args"]["lam"] == 0.3
    assert config["data"]["init_args"]["order_seed"] == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_what_the_parser_of_fit_refuses_comes_before_the_first_run(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_ift.cli.compare.in_processes", lambda study: pytest.fail("ran"))
    for options, code, message in (
        ({"model": "IFTModule", "model.init_args.lamb": 0.3}, 2, "lamb"),
        ({"model.init_args.loss": "dft", "model.init_args.options": {"beta": 3}}, 1, "beta"),
    ):
        study["variants"][1]["options"] = options
        assert lit_ift("compare", written(study, tmp_path), "--output", tmp_path / "out") == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_prints_commands_that_can_be_pasted(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study |= {"variants": study["variants"][:1], "launcher": ["torchrun", "--nproc-per-node", "2"]}
    assert lit_ift("compare", written(study, tmp_path), "--output", tmp_path / "out", "--dry_run") == 0
    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    assert words[:6] == ["torchrun", "--nproc-per-node", "2", "-m", "lit_ift", "fit"]
    (callback,) = (word.partition("=")[2] for word in words if word.startswith("--trainer.callbacks+="))
    assert json.loads(callback)["init_args"]["variant"] == "sft"
    assert not (tmp_path / "out").exists()


def test_commands_and_studies_of_the_docs_are_right() -> None:
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    lines = re.findall(r"^lit-ift compare .*$", page, re.MULTILINE)
    assert lines
    for line in lines:
        parse(shlex.split(line)[1:], "compare", function_parser(compare))
    for path in (ROOT / "configs" / "study").glob("*.yaml"):
        assert read_study(path).variants
