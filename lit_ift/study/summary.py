"""What a study shows: the chosen rates, each variant's scores and costs, and its differences to the first variant."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from lit_ift.errors import UserError, did_you_mean
from lit_ift.evaluation.statistics import PairedDifference, standard_error_of_mean
from lit_ift.study.held_out import LESS_IS_BETTER
from lit_ift.study.plan import Plan, Run
from lit_ift.study.record import RunRecord
from lit_ift.study.statistics import hierarchical_bootstrap, holm
from lit_ift.study.study_file import Study

FEW_SEEDS: Final = 5


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds' values.
        standard_error: of it, over seeds; NaN for one seed.
        values: seed to value.
    """

    mean: float
    standard_error: float
    values: dict[int, float]

    @classmethod
    def of(cls, values: Mapping[int, float]) -> "Estimate":
        """Of the values of at least one seed."""
        numbers = list(values.values())
        return cls(float(np.mean(numbers)), standard_error_of_mean(numbers), dict(values))


@dataclass(frozen=True)
class RateChoice:
    """How the learning rate of a variant was chosen.

    Attributes:
        rates: those that were tried, by size, each with its estimate; None where a run diverged.
        chosen: the best of them; None where all diverged.
        at_edge: whether a better one may lie beyond those that were tried.
    """

    rates: dict[float, Estimate | None]
    chosen: float | None
    at_edge: bool


@dataclass(frozen=True)
class Comparison:
    """A variant against the first one in a measure, or another weighted sum of variants against 0.

    Attributes:
        difference: over the seeds and items that both have.
        adjusted: its p-value, adjusted over all of its kind (Holm).
        seeds: that all of them have.
        left_out: items that only some of them have.
    """

    difference: PairedDifference
    adjusted: float
    seeds: int
    left_out: int


@dataclass(frozen=True)
class VariantSummary:
    """A variant at its chosen rate.

    Attributes:
        name: of it.
        choice: of its rate.
        scores: measure -> estimate.
        comparisons: measure -> comparison; empty for the first variant.
        costs: name of the cost -> estimate.
        diverged: runs to be reported that diverged, and their reasons.
        records: the others by seed.
    """

    name: str
    choice: RateChoice
    scores: dict[str, Estimate]
    costs: dict[str, Estimate]
    diverged: tuple[str, ...]
    records: dict[int, RunRecord]
    comparisons: dict[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """A whole study.

    Attributes:
        variants: in the order of the file.
        measures: the most important one first.
        less_is_better: measures in which a lower value is better.
        contrasts: measure -> name of the contrast -> its comparison.
        notes: what a reader must know before trusting the numbers.
    """

    variants: tuple[VariantSummary, ...]
    measures: tuple[str, ...]
    less_is_better: frozenset[str]
    contrasts: dict[str, dict[str, Comparison]]
    notes: tuple[str, ...]


COSTS: Final = {"seconds": "training [s]", "tokens": "tokens", "peak_memory": "peak memory [MiB]", "grad_norm": "‖g‖"}
"""Costs by their name in a record, and as a table names them. The gradient's norm tells what the rates act on."""


def choose_rates(study: Study, plan: Plan, records: Mapping[str, RunRecord]) -> dict[str, RateChoice]:
    """The rate of each variant: the best by the mean of ``select`` over seeds.

    Raises:
        UserError: no run has such a measure.
    """
    runs = plan.runs_for_rates()
    choices = {}
    for variant in study.variants:
        rates = sorted(study.rates_of(variant))
        if len(rates) == 1:
            choices[variant.name] = RateChoice({rates[0]: None}, rates[0], at_edge=False)
            continue
        tried = {
            rate: _selected(study, [run for run in runs if (run.variant, run.rate) == (variant.name, rate)], records)
            for rate in rates
        }
        better = min if is_less_better(study, study.select, [records[run.key] for run in runs]) else max
        whole = {rate: estimate.mean for rate, estimate in tried.items() if estimate is not None}
        chosen = better(whole, key=whole.__getitem__) if whole else None
        choices[variant.name] = RateChoice(tried, chosen, at_edge=chosen in (rates[0], rates[-1]))
    return choices


def _selected(study: Study, runs: Sequence[Run], records: Mapping[str, RunRecord]) -> Estimate | None:
    values = {}
    for run in runs:
        record = records[run.key]
        if record.diverged:
            return None
        if study.select not in record.scores:
            known = ", ".join(record.scores)
            hint = did_you_mean(study.select, record.scores)
            raise UserError(f"select={study.select!r}: no run has such a measure.{hint} There are: {known}.")
        values[run.seed] = _mean(record, study.select)
    return Estimate.of(values)


def is_less_better(study: Study, measure: str, records: Iterable[RunRecord]) -> bool:
    """Whether less of a measure is better: it is one of ours, the study says so, or that of a task."""
    known = measure in study.lower_is_better or measure.rpartition("/")[2] in LESS_IS_BETTER
    return known or any(measure in record.less_is_better for record in records)


def summarise(
    study: Study, choices: Mapping[str, RateChoice], runs: Sequence[Run], records: Mapping[str, RunRecord]
) -> Summary:
    """Summarise a study all of whose runs have a record.

    Args:
        study: what was compared.
        choices: of the rates.
        runs: those to report.
        records: by key.

    Raises:
        UserError: ``measures`` names one that no run has.
    """
    of_variants = {name: [run for run in runs if run.variant == name] for name in choices}
    found = {name: {run.seed: records[run.key] for run in of_variants[name]} for name in choices}
    whole = {name: {s: r for s, r in by_seed.items() if not r.diverged} for name, by_seed in found.items()}
    measures = _measures(study, [record for by_seed in whole.values() for record in by_seed.values()])
    variants = []
    for name, choice in choices.items():
        good = whole[name]
        reasons = tuple(f"seed {seed}: {r.reason}" for seed, r in found[name].items() if r.diverged)
        scores = {measure: _estimate(good, measure) for measure in measures}
        costs = {cost: _cost(good, cost) for cost in COSTS}
        variants.append(
            VariantSummary(
                name,
                choice,
                {measure: estimate for measure, estimate in scores.items() if estimate},
                {cost: estimate for cost, estimate in costs.items() if estimate},
                reasons,
                good,
            )
        )
    first, *others = variants
    pairs = {other.name: {first.name: -1.0, other.name: 1.0} for other in others}
    by_name = {variant.name: variant for variant in variants}
    differences = {measure: _adjusted(pairs, by_name, measure) for measure in measures}
    contrasts = {measure: _adjusted(study.contrasts, by_name, measure) for measure in measures}
    compared = [
        replace(
            variant, comparisons={m: found[variant.name] for m, found in differences.items() if variant.name in found}
        )
        for variant in variants
    ]
    less = frozenset(measure for measure in measures if is_less_better(study, measure, records.values()))
    return Summary(tuple(compared), tuple(measures), less, contrasts, tuple(_notes(study, compared)))


def _measures(study: Study, records: Sequence[RunRecord]) -> list[str]:
    known = list(dict.fromkeys(measure for record in records for measure in record.scores))
    for measure in study.measures or []:
        if measure not in known and records:
            raise UserError(
                f"measures: no run has {measure!r}.{did_you_mean(measure, known)} There are: {', '.join(known)}."
            )
    return known if study.measures is None else [*study.measures]


def _mean(record: RunRecord, measure: str) -> float:
    return float(np.mean(list(record.scores[measure].values())))


def _estimate(records: Mapping[int, RunRecord], measure: str) -> Estimate | None:
    values = {seed: _mean(record, measure) for seed, record in records.items() if record.scores.get(measure)}
    return Estimate.of(values) if values else None


def _cost(records: Mapping[int, RunRecord], cost: str) -> Estimate | None:
    values = {seed: getattr(record, cost) for seed, record in records.items() if getattr(record, cost) is not None}
    return Estimate.of(values) if values else None


def _adjusted(
    contrasts: Mapping[str, Mapping[str, float]], variants: Mapping[str, VariantSummary], measure: str
) -> dict[str, Comparison]:
    """The comparisons that can be made, with p-values adjusted over them."""
    found = {name: _comparison(weights, variants, measure) for name, weights in contrasts.items()}
    made = {name: comparison for name, comparison in found.items() if comparison is not None}
    adjusted = holm([comparison.difference.p_value for comparison in made.values()])
    return {name: replace(one, adjusted=p) for (name, one), p in zip(made.items(), adjusted, strict=True)}


def _comparison(
    weights: Mapping[str, float], variants: Mapping[str, VariantSummary], measure: str
) -> Comparison | None:
    """A weighted sum of variants over the seeds and items that all of them have."""
    scores = {
        name: {
            seed: record.scores[measure] for seed, record in variants[name].records.items() if measure in record.scores
        }
        for name, weight in weights.items()
        if weight
    }
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in scores.values())))
    of_items = [set(scores[name][seed]) for name in scores for seed in seeds]
    items = sorted(set.intersection(*of_items)) if of_items else []
    if not items:
        return None
    tables = {
        name: np.array([[by_seed[seed][item] for item in items] for seed in seeds]) for name, by_seed in scores.items()
    }
    total = np.sum([weights[name] * table for name, table in tables.items()], axis=0)
    left_out = max(map(len, of_items)) - len(items)
    return Comparison(hierarchical_bootstrap(np.zeros_like(total), total), math.nan, len(seeds), left_out)


def _notes(study: Study, variants: Sequence[VariantSummary]) -> Iterator[str]:
    """What a reader must know before trusting the numbers."""
    for variant in variants:
        choice = variant.choice
        if choice.chosen is None:
            yield f"{variant.name}: training diverged at every rate."
        elif choice.at_edge:
            yield (
                f"{variant.name}: its best rate {choice.chosen:g} lies at the edge of those that were tried, so a "
                "better one may lie beyond. Add rates there, for every variant."
            )
        for reason in variant.diverged:
            yield f"{variant.name}: diverged and left out of means, {reason}"
        over_seeds = [estimate.values for estimate in variant.scores.values() if len(estimate.values) > 1]
        if over_seeds and all(len(set(values.values())) == 1 for values in over_seeds):
            yield (
                f"{variant.name}: all seeds gave the same scores, so they are one run. Look whether seed_options reach "
                "anything that is random."
            )
        if any(comparison.left_out for comparison in variant.comparisons.values()):
            yield f"{variant.name}: items that {variants[0].name} does not have, or the other way round, were left out."
    yield from _unequal_budgets(variants)
    if len(study.seeds) < FEW_SEEDS:
        yield (
            f"{len(study.seeds)} seed(s): how much results vary with the seed is hardly known below {FEW_SEEDS}, and "
            "intervals are too narrow."
        )
    same_seeds = set(study.seeds_of_rates) & set(study.seeds)
    if len(study.rates) > 1 and same_seeds and study.select in (study.measures or [study.select]):
        yield (
            f"Rates were chosen by {study.select} of the same runs and rows that are reported, which flatters all "
            "variants alike. rate_seeds and another measure avoid it."
        )


def _unequal_budgets(variants: Sequence[VariantSummary]) -> Iterator[str]:
    """Where variants differ in what they were given, which a fair comparison holds equal."""
    words = {
        "steps": "took other numbers of steps",
        "rows": "saw other numbers of rows",
        "tokens": "saw other numbers of tokens",
    }
    first = variants[0]
    for variant in variants[1:]:
        pairs = [(first.records[s], variant.records[s]) for s in first.records.keys() & variant.records.keys()]
        found = [what for name, what in words.items() if any(_differ(a, b, name) for a, b in pairs)]
        if any(_differ(a, b, "order") for a, b in pairs) and not found:
            found = ["saw the rows in another order"]
        if found:
            yield f"{variant.name} and {first.name} {' and '.join(found)}: the comparison is not at equal budget."
        if any(_differ(a, b, "device") or _differ(a, b, "ranks") for a, b in pairs):
            yield f"{variant.name} and {first.name} ran on other hardware: time and memory cannot be compared."


def _differ(one: RunRecord, other: RunRecord, name: str) -> Any:
    return getattr(one, name) != getattr(other, name)
