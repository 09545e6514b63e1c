"""`lit-ift plan` from end to end: a plan, and what `fit` would refuse."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run as lit_ift

from lit_ift.cli.plan import split_words
from lit_ift.recipes import find

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"


@pytest.fixture
def config(tmp_path: Path, model_folder: Path, data_file: Path) -> Path:
    content = {
        "model": {"class_path": "SFTModule", "init_args": {"model": str(model_folder)}},
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train": str(data_file), "batch_size": 4, "cache_dir": str(tmp_path / "rows")},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "accumulate_grad_batches": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def planned(config: Path, *words: Any) -> tuple[int, dict[str, Any]]:
    output = config.with_name("plan.json")
    code = lit_ift("plan", config, "--json", output, "--fast", *words)
    return code, json.loads(output.read_text(encoding="utf-8"))


def test_plan_says_what_a_run_takes(config: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = planned(config, "--hardware", "h100-80")
    rows = len(data_file.read_text(encoding="utf-8").splitlines())
    assert code == 0
    assert plan["conflicts"] == []
    assert plan["rows"] == rows
    assert plan["rows_exact"] is True
    assert plan["steps"] == 3 * math.ceil(math.ceil(rows / 4) / 2)
    assert plan["trained"] == plan["parameters"] > 0
    assert plan["memory"]["total"] == pytest.approx(sum(plan["memory"][part] for part in list(plan["memory"])[:5]))
    assert plan["fits"] is True
    text = capsys.readouterr().out
    assert f"{rows} rows, 8 a step" in text
    assert "estimate: 45% of the published peak rates" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.init_args.share_prompts", "true"], "share_prompts has no use"),
        (
            ["--model", "IFTModule", "--model.share_prompts", "true", "--model.gradient_checkpointing", "true"],
            "gradient checkpointing forgets the keys and values",
        ),
        (["--trainer.strategy", "deepspeed"], "deepspeed"),
        (["--model.lora.r", "4", "--model.added_tokens", "['<a>']"], "added_tokens has no use with model.lora"),
        (["--data.tokens_per_batch", "64"], "both say how large a batch is"),
        (["--model", "PreferenceModule"], "preference"),
    ],
)
def test_what_fit_refuses_is_a_conflict(config: Path, words: list[str], said: str) -> None:
    code, plan = planned(config, *words)
    assert code == 1
    assert len(plan["conflicts"]) == 1
    assert said in plan["conflicts"][0]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["--trainer.limit_train_batches", "0"], 0),
        (["--trainer.limit_train_batches", "1"], 3),
        (["--trainer.fast_dev_run", "true"], 1),
    ],
)
def test_steps_are_those_of_the_trainer(config: Path, words: list[str], steps: int) -> None:
    code, plan = planned(config, *words)
    assert code == 0
    assert plan["steps"] == steps, plan


def test_the_longest_run_has_a_time(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit_ift("plan", config, "--fast", "--trainer.max_steps", 10**21, "--trainer.max_epochs", -1) == 0
    assert re.search(r"Time: [\d.e+]+ days", capsys.readouterr().out)


def test_a_batch_that_cannot_be_planned_is_told(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_ift.planning.dry_run._MOST_KNOWN", 4)
    assert lit_ift("plan", config, "--fast") == 1
    assert "Lower data.batch_size" in capsys.readouterr().err


def test_a_configuration_may_stand_behind_options_of_the_plan() -> None:
    words = ["--fast", "--hardware", "h200", "run.yaml", "--model.lam", "0.3"]
    assert split_words(words) == (["--fast", "--hardware", "h200"], ["--config", "run.yaml", "--model.lam", "0.3"])


def test_without_a_configuration_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert lit_ift("plan") == 2
    assert "name a configuration" in capsys.readouterr().err
    assert lit_ift("plan", "--hardware", "abacus") == 2
    assert "h100-80" in capsys.readouterr().err


def test_commands_of_the_page_are_complete() -> None:
    lines = re.findall(r"^lit-ift plan (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert lines
    for line in lines:
        own, of_fit = split_words(shlex.split(line))
        assert of_fit[0] == "--config"
        assert find(of_fit[1]).is_file()
        assert {word for word in own if word.startswith("--")} <= {"--hardware", "--json", "--fast"}
