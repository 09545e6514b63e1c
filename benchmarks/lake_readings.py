"""The Frozen Lake game of the IFT paper under many readings of its set-up: how much does the order depend on them?

Usage: python benchmarks/lake_readings.py [--quick] [--maps 4x4 fork] [--seeds 64] [--out lake_readings]

The paper says neither which map it is, nor what the policy sees, where it starts, what the sub-optimal trajectory is,
or how learning rates were chosen. Every combination of these is a reading; in each of them DPO, IFT, ORPO and SFT get
the same budget and the same search, as in `lit-ift frozen-lake`, and are compared by their MSE to the optimal policy
over all cells. A claim holds where the paired difference exceeds two standard errors, and is reversed where it does so
the other way. Writes a CSV with a line for each reading as it is done, and a table in Markdown at the end.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lit_ift.frozen_lake.report import CLAIMED, claims
from lit_ift.frozen_lake.result import Study
from lit_ift.frozen_lake.settings import LakeOptions, Metric, PolicyOptions, Protocol, Settings, StartOptions
from lit_ift.frozen_lake.study import run_studies

MAPS: dict[str, LakeOptions] = {
    "4x4": LakeOptions(),
    "8x8": LakeOptions(map="8x8", horizon=200),
    "fork": LakeOptions(map=["SFFFF", "FHHHF", "FHFFF", "FHFHH", "FFFFG"]),
}
AXES: dict[str, tuple[str, ...]] = {
    "features": ("one_hot", "coordinates"),
    "suboptimal": ("longer", "hole"),
    "start": ("random", "clone", "mixture"),
}
CHOICES: tuple[Metric, ...] = ("mse_all", "mse_trajectory", "success_perturbed")
"""Metrics that learning rates are chosen by: one more axis, whose readings share their starts and the search."""
QUICK = {"features": AXES["features"], "suboptimal": ("longer",), "start": ("random", "mixture")}
METRIC = "mse_all"


def readings(maps: list[str], axes: dict[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    """Every combination but for the choice of learning rates, as one value an axis."""
    for values in product(maps, *axes.values()):
        yield dict(zip(("map", *axes), values, strict=True))


def settings_of(reading: dict[str, str], seeds: int) -> Settings:
    """The study that a reading asks for, but for the choice of learning rates."""
    return Settings(
        lake=replace(MAPS[reading["map"]], suboptimal=reading["suboptimal"]),
        policy=PolicyOptions(features=reading["features"]),
        start=StartOptions(kind=reading["start"]),
        protocol=Protocol(seeds=seeds, points=1),
        methods=list(CLAIMED),
        progress=False,
    )


def lines_of(reading: dict[str, str], choices: Sequence[Metric], seeds: int) -> list[dict[str, Any]]:
    """Run a reading once for each way to choose learning rates."""
    studies = run_studies(settings_of(reading, seeds), choices)
    return [line_of({**reading, "tune_by": choice}, study) for choice, study in zip(choices, studies, strict=True)]


def line_of(reading: dict[str, str], study: Study) -> dict[str, Any]:
    """Means, standard errors, learning rates, and the verdict on each claim."""
    line: dict[str, Any] = dict(reading)
    for outcome in study.outcomes:
        line[outcome.name] = round(outcome.mean(METRIC), 5)
        line[f"{outcome.name}_se"] = round(outcome.standard_error(METRIC), 5)
        line[f"{outcome.name}_lr"] = outcome.learning_rate
    for better, worse, difference in claims(study, METRIC):
        line[f"{better.name}<{worse.name}"] = difference.verdict
        line[f"{better.name}<{worse.name}_t"] = round(difference.t, 1)
    ranked = sorted(study.outcomes, key=lambda outcome: outcome.mean(METRIC))
    line["order"] = " < ".join(outcome.name for outcome in ranked)
    line["claimed_order"] = line["order"] == " < ".join(CLAIMED)
    return line


def summary(lines: list[dict[str, Any]], axes: list[str]) -> list[str]:
    """A table in Markdown: for every value of every axis, how often each claim holds, and how often its reverse."""
    pairs = [name for name in lines[0] if "<" in name and not name.endswith("_t")]
    titles = [name.upper().replace("<", " < ") for name in pairs]
    table = [
        "Readings in which a claim holds / is reversed (the rest: within two standard errors), by MSE over all cells.",
        "",
        "| readings | number | claimed order of means | " + " | ".join(titles) + " |",
        "| --- | --- | --- | " + " | ".join("---" for _ in pairs) + " |",
    ]
    groups = [("all", lines)]
    for axis in axes:
        for value in dict.fromkeys(line[axis] for line in lines):
            groups.append((f"{axis} {value}", [line for line in lines if line[axis] == value]))
    for title, group in groups:
        counts = [
            " / ".join(str(sum(line[pair] == word for line in group)) for word in ("holds", "fails")) for pair in pairs
        ]
        ordered = sum(line["claimed_order"] for line in group)
        table.append(f"| {title} | {len(group)} | {ordered} | " + " | ".join(counts) + " |")
    return table


def main() -> None:
    """Run all readings one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    parser.add_argument("--quick", action="store_true", help="four readings a map")
    parser.add_argument("--seeds", type=int, default=64, help="seeds that a method is judged on")
    parser.add_argument("--out", type=Path, default=Path("lake_readings"), help="of the files, without .csv and .md")
    options = parser.parse_args()
    axes, choices = (QUICK, CHOICES[:1]) if options.quick else (AXES, CHOICES)
    lines: list[dict[str, Any]] = []
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        for reading in tqdm(list(readings(options.maps, axes)), unit=f"{len(choices)} readings"):
            new = lines_of(reading, choices, options.seeds)
            table = csv.DictWriter(file, list(new[0]))
            if not lines:
                table.writeheader()
            table.writerows(new)
            file.flush()
            lines += new
    text = "\n".join(summary(lines, ["map", *axes, "tune_by"]))
    options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
