"""A study on disk: JSON, which can be read again, and CSV for tables."""

import csv
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from lit_ift.errors import UserError
from lit_ift.frozen_lake.result import METRICS, Outcome, Study

_ARRAYS = ("policies", "visits")


def save_study(study: Study, path: Path) -> None:
    """Write a study as JSON, whole, with all digits."""
    path.write_text(json.dumps(asdict(study), default=_to_list, ensure_ascii=False), encoding="utf-8")


def load_study(path: Path) -> Study:
    """Read what ``save_study`` wrote.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Name the results.json of a study.") from error
    wanted = {field.name for field in fields(Study)}
    if not isinstance(content, dict) or set(content) != wanted:
        raise UserError(f"{path} holds no study of the lake: its keys are not {', '.join(sorted(wanted))}.")
    try:
        outcomes = [_outcome(item) for item in content.pop("outcomes")]
        optimal, start = (np.array(content.pop(name), dtype=np.float64) for name in ("optimal", "start"))
        return Study(**content, outcomes=outcomes, optimal=optimal, start=start)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} holds no study of the lake that this version can read ({problem}). Run the study again."
        ) from error


def _outcome(item: dict[str, Any]) -> Outcome:
    for name in _ARRAYS:
        item[name] = np.array(item[name], dtype=np.float64)
    for name in ("metrics", "curves"):
        item[name] = {metric: np.array(values, dtype=np.float64) for metric, values in item[name].items()}
    return Outcome(**{**item, "steps": np.array(item["steps"], dtype=np.int64)})


def _to_list(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def write_tables(study: Study, folder: Path) -> list[Path]:
    """Write ``results.csv``, a line for each method and metric, and ``seeds.csv``, a line for each method and seed."""
    results, seeds = folder / "results.csv", folder / "seeds.csv"
    with results.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("method", "metric", "mean", "standard_error", "n", "learning_rate", "moves"))
        for outcome in study.outcomes:
            for metric in METRICS:
                numbers = (outcome.mean(metric), outcome.standard_error(metric), len(outcome.metrics[metric]))
                table.writerow((outcome.name, metric, *numbers, outcome.learning_rate, outcome.moves))
    protocol = study.settings["protocol"]
    first = protocol["seed"] + protocol["tuning_seeds"]
    with seeds.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("method", "seed", *METRICS))
        for outcome in study.outcomes:
            for number, values in enumerate(zip(*(outcome.metrics[m].tolist() for m in METRICS), strict=True), first):
                table.writerow((outcome.name, number, *values))
    return [results, seeds]
