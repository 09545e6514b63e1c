"""Metrics that a configuration names."""

import csv
import math
from pathlib import Path

import pytest
import yaml
from commands import run

METRICS = """
metrics:
  perplexity: {on: logits, metric: torchmetrics.text.Perplexity}
  exact: {on: answers, metric: lit_ift.callbacks.ExactMatch}
"""


@pytest.fixture
def words(tmp_path: Path, model_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.yaml").write_text(METRICS)
    options = {"model": "SFTModule", "model.model": model_folder, "model.reduction": "token"}
    options |= {"model.generation": "{max_new_tokens: 2}", "data": "InstructionDataModule", "data.train": data_file}
    options |= {"data.val_fraction": 0.3, "export.enabled": "false", "trainer.accelerator": "cpu"}
    return ["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def test_metrics_are_named_in_yaml_and_logged(words: list[str], tmp_path: Path) -> None:
    assert run(*words, "--config", "metrics.yaml") == 0
    folder = tmp_path / "checkpoints" / "runs" / "version_0"
    with (folder / "metrics.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["val/loss"])
    assert float(row["val/perplexity"]) == pytest.approx(math.exp(float(row["val/loss"])), rel=1e-5)
    assert 0 <= float(row["val/exact"]) <= 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["metrics"]["exact"]["on"] == "answers"


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ("{p: {on: answers, metric: torchmetrics.text.Perplexity}}", "metrics.p: Perplexity does not fit on: answers"),
        ("{p: {on: tokens, metric: torchmetrics.text.Perplexity}}", "on"),
        ("{p: {on: logits, metric: torchmetrics.text.Perplexty}}", "Perplexty"),
        ("{p: {on: logits, metric: os.getcwd}}", "os.getcwd"),
    ],
)
def test_bad_metrics_are_told_before_the_model_is_loaded(
    words: list[str], metrics: str, told: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(*words, "--model.model", "nowhere", "--metrics", metrics) != 0
    error = capsys.readouterr().err
    assert told in error
    assert "nowhere" not in error
