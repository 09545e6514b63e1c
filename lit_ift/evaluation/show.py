"""Results for people: a table, the differences between models, and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from lit_ift.errors import printable
from lit_ift.evaluation.results import TaskResult, comparable, paired_difference
from lit_ift.evaluation.statistics import NORMAL_QUANTILE, interval_of_proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#8c8c8c")
"""Of Okabe and Ito, which people with any colour vision tell apart."""

MARKERS: Final = "osD^vPX"


def rows_of(results: Sequence[TaskResult]) -> list[tuple[str, str]]:
    """Tasks with their metrics, in the order of the results."""
    return list(dict.fromkeys((result.task, result.metric) for result in results))


def models_of(results: Sequence[TaskResult]) -> list[str]:
    """Models in the order of the results."""
    return list(dict.fromkeys(result.model for result in results))


def _find(results: Sequence[TaskResult], model: str, row: tuple[str, str]) -> TaskResult | None:
    return next((r for r in results if (r.model, r.task, r.metric) == (model, *row)), None)


def scores_table(results: Sequence[TaskResult]) -> Table:
    """A line for each metric of each task with its number of items, and a column for each model."""
    table = Table(title="Score ± standard error", title_justify="left")
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    table.add_column("n", justify="right")
    models = models_of(results)
    for model in models:
        table.add_column(Text(printable(model)), justify="right", overflow="fold")
    for row in rows_of(results):
        found = [_find(results, model, row) for model in models]
        counts = dict.fromkeys(str(result.n) for result in found if result is not None)
        cells = ["" if result is None else _score(result) for result in found]
        table.add_row(*(Text(printable(text)) for text in (*row, "/".join(counts), *cells)))
    return table


def _score(result: TaskResult) -> str:
    error = "" if result.standard_error is None else f" ± {result.standard_error:.3f}"
    lower = "" if result.higher_is_better else " (lower is better)"
    return f"{result.value:.3f}{error}{lower}"


def differences_table(results: Sequence[TaskResult]) -> Table | None:
    """How much each model differs from the first, on the same items; None where there is nothing to compare."""
    first, *others = models_of(results)
    table = Table(title=Text(f"Difference to {printable(first)}, paired by item"), title_justify="left")
    for name in ("task", "metric", "model"):
        table.add_column(name, overflow="fold")
    for name in ("n", "difference", "95 % interval"):
        table.add_column(name, justify="right")
    for row in rows_of(results):
        base = _find(results, first, row)
        for model in others:
            other = _find(results, model, row)
            if base is None or other is None or not comparable(base, other):
                continue
            difference = paired_difference(base, other)
            is_sure = difference.low > 0 or difference.high < 0
            interval = "" if math.isnan(difference.low) else f"{difference.low:+.3f} to {difference.high:+.3f}"
            cells = (*row, model, str(difference.n), f"{difference.value:+.3f}", interval)
            table.add_row(*(Text(printable(text), style="bold" if is_sure else "") for text in cells))
    return table if table.row_count else None


def notes_of(results: Sequence[TaskResult]) -> list[str]:
    """What a reader of the scores must know: what was measured where it is not all, and what was left out."""
    notes = dict.fromkeys(
        f"{result.task}: {result.measured}" for result in results if result.left_out or ";" in result.measured
    )
    for result in results:
        notes |= dict.fromkeys(f"{result.task}: left out: {count} for {why}" for why, count in result.left_out.items())
    return list(notes)


def interval_of(result: TaskResult) -> tuple[float, float] | None:
    """The 95 % interval of a score: Wilson's for right and wrong answers, else by the standard error."""
    scores = None if result.scores is None or result.weights is not None else list(result.scores.values())
    if scores is not None and set(scores) <= {0, 1}:
        return interval_of_proportion(round(sum(scores)), len(scores))
    if result.standard_error is None:
        return None
    half = NORMAL_QUANTILE * result.standard_error
    return result.value - half, result.value + half


def draw_scores(results: Sequence[TaskResult]) -> "Figure":
    """Each metric a line, each model a dot with its 95 % interval."""
    from matplotlib.figure import Figure

    rows, models = rows_of(results), models_of(results)
    figure = Figure(figsize=(8, 1.4 + 0.28 * len(rows) * max(2, len(models) + 1)), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(models):
        shift = (number - (len(models) - 1) / 2) * 0.7 / max(1, len(models))
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for place, row in enumerate(rows):
            result = _find(results, model, row)
            if result is not None:
                _draw(axes, result, place + shift, style)
        axes.plot([], [], linestyle="none", label=_plain(model), **style)
    labels = [_plain(f"{task}\n{metric}, n = {_count(results, (task, metric))}") for task, metric in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("score, with its 95 % interval")
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False)
    return figure


def _draw(axes: Any, result: TaskResult, height: float, style: dict[str, Any]) -> None:
    interval = interval_of(result)
    if interval is not None:
        axes.plot(interval, [height, height], color=style["color"], linewidth=2)
    axes.plot([result.value], [height], **style)


def _count(results: Sequence[TaskResult], row: tuple[str, str]) -> int:
    return next(result.n for result in results if (result.task, result.metric) == row)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return printable(text).replace("$", r"\$")


def save_picture(results: Sequence[TaskResult], path: Path) -> None:
    """Draw the scores into a PNG file."""
    draw_scores(results).savefig(path, dpi=110, metadata={"Software": None})
