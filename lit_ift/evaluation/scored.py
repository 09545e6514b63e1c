"""From the scores of items to a result: the mean, its standard error, and what was measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_ift.evaluation.results import TaskResult
from lit_ift.evaluation.statistics import standard_error_of_mean, weighted_mean


@dataclass(frozen=True)
class Scored:
    """One metric of one task.

    Attributes:
        task: that was named, or the member of a group.
        metric: its name.
        n: items that were scored.
        total: items of the task, where it alone knows; None elsewhere.
        value: where it is no mean over items.
        standard_error: where it is no mean over items.
        scores: item to score; None where it is no mean over items.
        weights: item to how often its score counts; None if all count once.
        higher_is_better: whether it is.
        options: what the task decided itself.
        notes: what a reader of the score must know.
    """

    task: str
    metric: str
    n: int
    total: int | None = None
    value: float = math.nan
    standard_error: float | None = None
    scores: dict[str, float] | None = None
    weights: dict[str, float] | None = None
    higher_is_better: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def result_of(
    scored: Scored, *, total: int | None, left_out: Mapping[str, int], measured_of: str, **known: Any
) -> TaskResult:
    """The result with the mean of the scores and its standard error.

    Args:
        scored: scores of the items.
        total: rows before some were left out; None if that is not known.
        left_out: reason to number of rows.
        measured_of: what the items are called, such as ``rows``.
        known: other fields of the result.
    """
    value, error = scored.value, scored.standard_error
    if scored.scores is not None:
        weights = None if scored.weights is None else list(scored.weights.values())
        scores = list(scored.scores.values())
        value, error = weighted_mean(scores, weights), standard_error_of_mean(scores, weights)
    notes: Sequence[str] = [f"{scored.n} of {scored.total or total or scored.n} {measured_of}", *scored.notes]
    return TaskResult(
        task=scored.task,
        metric=scored.metric,
        value=value,
        standard_error=None if error is None or math.isnan(error) else error,
        n=scored.n,
        higher_is_better=scored.higher_is_better,
        scores=scored.scores,
        weights=scored.weights,
        measured="; ".join(notes),
        left_out=dict(left_out),
        **known,
    )
