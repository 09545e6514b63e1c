"""The file of results: what a model scored on a task, how sure that is, and what was measured."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from lit_ift.errors import UserError, told_as
from lit_ift.evaluation.statistics import PairedDifference, paired_bootstrap
from lit_ift.staging import replaced_file

FORMAT: Final = 1
"""Of the file; a reader refuses others."""


@dataclass(frozen=True)
class TaskResult:
    """One metric of one model on one task.

    Attributes:
        model: as the user named it.
        task: what was scored; of a group that the user named, also each member.
        metric: name, such as ``acc``; of a score with a filter, ``exact_match (strict-match)``.
        value: the score.
        standard_error: of the value; None where it cannot be known, as for a single item.
        n: items that were scored.
        higher_is_better: whether a higher value is the better one.
        scores: item to its score, in the order of the task; None if the value is not a mean over items.
        weights: item to how often its score counts in the value; None if all count once.
        named: the task as the user named it.
        measured: what was scored, in words.
        left_out: reason to the number of items that were left out for it.
        options: what decides the score beside model and task.
        task_key: the same for two results if and only if the same items were scored in the same way.
        key: the same for two results if and only if the model's files and ``task_key`` are.
        versions: package to its version.
        seconds: that the task took [s].
    """

    model: str
    task: str
    metric: str
    value: float
    standard_error: float | None
    n: int
    higher_is_better: bool = True
    scores: dict[str, float] | None = None
    weights: dict[str, float] | None = None
    named: str = ""
    measured: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    task_key: str = ""
    key: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None


def write_results(path: Path, results: Iterable[TaskResult]) -> None:
    """Write a file of results, which appears whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    content = {"format": FORMAT, "results": [asdict(result) for result in results]}
    with (
        told_as(OSError, lambda error: UserError(f"{path} cannot be written: {error}. Name another folder.")),
        replaced_file(path, "w", encoding="utf-8") as file,
    ):
        json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def read_results(path: Path) -> list[TaskResult]:
    """The results of a file.

    Raises:
        UserError: it cannot be read, or is no file of results.
    """
    remedy = "Name a results.json that `lit-ift eval` has written, or another folder."
    with told_as((OSError, ValueError), lambda error: UserError(f"{path} cannot be read: {error}. {remedy}")):
        content = json.loads(path.read_text(encoding="utf-8"))
    rows = content.get("results") if isinstance(content, dict) and content.get("format") == FORMAT else None
    known = {entry.name for entry in fields(TaskResult)}
    needed = {"model", "task", "metric", "value", "n", "standard_error"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and needed <= row.keys() <= known for row in rows):
        raise UserError(f"{path} is no file of results of format {FORMAT}. {remedy}")
    return [TaskResult(**row) for row in rows]


def comparable(first: TaskResult, second: TaskResult) -> bool:
    """Whether two results are of the same items, scored in the same way, with a score for each."""
    same = (first.task, first.metric, first.task_key) == (second.task, second.metric, second.task_key)
    return (
        same and first.scores is not None and second.scores is not None and first.scores.keys() == second.scores.keys()
    )


def paired_difference(first: TaskResult, second: TaskResult, *, seed: int = 0) -> PairedDifference:
    """How much better the second model is on the same items.

    Raises:
        ValueError: the two are not `comparable`.
    """
    if not comparable(first, second) or first.scores is None or second.scores is None:
        raise ValueError(f"{first.model} and {second.model} have no scores of the same items of {first.task}")
    weights = None if first.weights is None else _in_order(first.weights, first.scores)
    return paired_bootstrap(
        _in_order(first.scores, first.scores), _in_order(second.scores, first.scores), weights=weights, seed=seed
    )


def _in_order(values: Mapping[str, float], items: Iterable[str]) -> Sequence[float]:
    return [values[item] for item in items]
