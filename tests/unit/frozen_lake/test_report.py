"""What is said of the paper's claims, and what is written to disk."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lakes import tiny_settings
from rich.console import Console

from lit_ift.errors import UserError
from lit_ift.frozen_lake.files import load_study, save_study, write_tables
from lit_ift.frozen_lake.report import claim_lines, difference, report_lines, results_table
from lit_ift.frozen_lake.result import METRICS, Outcome, Study
from lit_ift.frozen_lake.study import run_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study() -> Study:
    return run_study(tiny_settings(methods=["sft", "ift", "dpo", "orpo"]))


def with_values(study: Study, values: dict[str, list[float]]) -> Study:
    """The study with other MSEs over all cells."""
    outcomes = [
        replace(outcome, metrics={**outcome.metrics, "mse_all": np.array(values[outcome.name])})
        for outcome in study.outcomes
    ]
    return replace(study, outcomes=outcomes)


def test_paired_t_by_hand(study: Study) -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1/√3."""
    made = with_values(study, {"sft": [2, 4, 6], "ift": [1, 2, 3], "dpo": [1, 2, 3], "orpo": [0, 0, 0]})
    by_name: dict[str, Outcome] = {outcome.name: outcome for outcome in made.outcomes}
    found = difference(by_name["sft"], by_name["ift"], "mse_all")
    assert (found.mean, found.standard_error, found.t) == pytest.approx((2, 3**-0.5, 2 * 3**0.5))
    assert difference(by_name["ift"], by_name["sft"], "mse_all").verdict == "holds"
    assert difference(by_name["sft"], by_name["ift"], "mse_all").verdict == "fails"
    assert difference(by_name["dpo"], by_name["ift"], "mse_all").verdict == "open"
    constant = with_values(study, {"sft": [1, 1, 1], "ift": [0, 0, 0], "dpo": [0, 0, 0], "orpo": [0, 0, 0]})
    assert difference(*constant.outcomes[:2], "mse_all").t == np.inf


def test_claims_are_told_as_they_come_out(study: Study) -> None:
    step = np.array([0.0, 0.1, -0.1])
    claimed = {name: (rank + rank * step).tolist() for rank, name in enumerate(("dpo", "ift", "orpo", "sft"), 1)}
    lines = claim_lines(with_values(study, claimed), "mse_all")
    assert [": holds," in line for line in lines] == [True, True, True, True, False]
    assert "IFT < SFT" in lines[3]
    assert lines[-1] == "  The claimed order holds; the means order them DPO < IFT < ORPO < SFT."
    reversed_ = dict(zip(claimed, reversed(claimed.values()), strict=True))
    lines = claim_lines(with_values(study, reversed_), "mse_all")
    assert ["does not hold" in line for line in lines] == [True] * 5
    assert lines[-1].endswith("SFT < ORPO < IFT < DPO.")
    undecided = {**claimed, "ift": [1.0, 0.9, 1.3]}
    lines = claim_lines(with_values(study, undecided), "mse_all")
    assert "DPO < IFT: is not decided" in lines[0]
    assert "does not hold as a whole" in lines[-1]


def test_rates_at_an_end_are_named(study: Study) -> None:
    rates = study.settings["protocol"]["learning_rates"]
    outcomes = [replace(o, learning_rate=rates[0] if o.name == "dpo" else 0.005) for o in study.outcomes]
    assert report_lines(replace(study, outcomes=outcomes))[-1].endswith("may lie beyond: DPO.")


def test_the_table_has_all_methods(study: Study) -> None:
    console = Console(width=200, record=True, quiet=False)
    with console.capture() as captured:
        console.print(results_table(study))
    for outcome in study.outcomes:
        line = next(line for line in captured.get().splitlines() if f"│ {outcome.label} " in line)
        for metric in METRICS:
            assert f"{outcome.mean(metric):.4f}±{outcome.standard_error(metric):.4f}" in line


def test_a_study_is_read_as_it_was_written(study: Study, tmp_path: Path) -> None:
    save_study(study, tmp_path / "results.json")
    again = load_study(tmp_path / "results.json")
    assert (again.rows, again.chosen, again.rejected, again.settings, again.seconds) == (
        study.rows,
        study.chosen,
        study.rejected,
        study.settings,
        study.seconds,
    )
    assert (again.optimal == study.optimal).all()
    assert (again.start == study.start).all()
    for first, second in zip(study.outcomes, again.outcomes, strict=True):
        assert (first.name, first.label, first.learning_rate, first.moves) == (
            second.name,
            second.label,
            second.learning_rate,
            second.moves,
        )
        assert second.steps.dtype == np.int64
        assert (first.steps == second.steps).all()
        assert (first.policies == second.policies).all()
        assert (first.visits == second.visits).all()
        for metric in METRICS:
            assert (first.metrics[metric] == second.metrics[metric]).all()
            assert (first.curves[metric] == second.curves[metric]).all()


@pytest.mark.parametrize("text", [None, "{", "[]", json.dumps({"rows": []})])
def test_another_file_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"other\.json"):
        load_study(tmp_path / "other.json")


@pytest.mark.parametrize(
    "change", [lambda o: o.pop("visits"), lambda o: o.update(unknown=1), lambda o: o.update(metrics=3)]
)
def test_a_study_of_another_version_is_refused(
    change: Callable[[dict[str, Any]], Any], study: Study, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    save_study(study, path)
    content = json.loads(path.read_text())
    change(content["outcomes"][1])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be read as a study of the lake by this version"):
        load_study(path)


def test_tables(study: Study, tmp_path: Path) -> None:
    results, seeds = write_tables(study, tmp_path)
    with results.open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * len(METRICS)
    assert lines[0]["method"] == "sft"
    assert float(lines[1]["mean"]) == study.outcomes[0].mean("mse_all")
    assert float(lines[1]["standard_error"]) == study.outcomes[0].standard_error("mse_all")
    assert lines[1]["n"] == "3"
    with seeds.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows[:4]] == [
        ("sft", "2"),
        ("sft", "3"),
        ("sft", "4"),
        ("ift", "2"),
    ]
    assert float(rows[4]["mse_all"]) == study.outcomes[1].metrics["mse_all"][1]
