"""A study on disk: JSON, which can be read again, and CSV for tables."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lit_ift.errors import UserError
from lit_ift.frozen_lake.result import METRICS, Outcome, Study


def save_study(study: Study, path: Path) -> None:
    """Write a study as JSON, whole, with all digits."""
    path.write_text(json.dumps(asdict(study), default=np.ndarray.tolist, ensure_ascii=False), encoding="utf-8")


def load_study(path: Path) -> Study:
    """Read what ``save_study`` wrote.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        outcomes = [_outcome(**item) for item in content.pop("outcomes")]
        optimal, start = np.array(content.pop("optimal")), np.array(content.pop("start"))
        return Study(**content, outcomes=outcomes, optimal=optimal, start=start)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as a study of the lake by this version: {type(error).__name__}: {error}. Name the "
            "results.json of a study, or run the study again."
        ) from error


def _outcome(*, metrics: dict[str, Any], curves: dict[str, Any], **rest: Any) -> Outcome:
    arrays: dict[str, Any] = {name: np.array(rest.pop(name)) for name in ("steps", "policies", "visits")}
    of_metrics, of_curves = ({name: np.array(v) for name, v in found.items()} for found in (metrics, curves))
    return Outcome(metrics=of_metrics, curves=of_curves, **arrays, **rest)


def write_tables(study: Study, folder: Path) -> list[Path]:
    """Write ``results.csv``, a line for each method and metric, and ``seeds.csv``, a line for each method and seed."""
    results = [
        (o.name, metric, o.mean(metric), o.standard_error(metric), len(o.metrics[metric]), o.learning_rate, o.moves)
        for o in study.outcomes
        for metric in METRICS
    ]
    protocol = study.settings["protocol"]
    first = protocol["seed"] + protocol["tuning_seeds"]
    seeds = [
        (outcome.name, number, *values)
        for outcome in study.outcomes
        for number, values in enumerate(zip(*(outcome.metrics[m].tolist() for m in METRICS), strict=True), first)
    ]
    columns = ("method", "metric", "mean", "standard_error", "n", "learning_rate", "moves")
    tables = {"results.csv": [columns, *results], "seeds.csv": [("method", "seed", *METRICS), *seeds]}
    for name, lines in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    return [folder / name for name in tables]
