"""Metrics of one run, or of several that differ in their seed, drawn against the optimizer step."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Mapping[str, Sequence[tuple[int, float]]]
"""Step and value of each metric, by name."""
Values = npt.NDArray[np.float64]

TITLES: Final = {
    "loss": ("Loss", "as optimized"),
    "sft_loss": ("Loss of each pass", "nats a token"),
    "fused_loss": ("Loss of each pass", "nats a token"),
    "accuracies": ("Pairs in the right order", "share"),
    "chosen": ("Rewards", "as the loss defines them"),
    "rejected": ("Rewards", "as the loss defines them"),
    "token_accuracy": ("Tokens predicted rightly", "share"),
    "grad_norm": ("Norm of the gradient", "before clipping"),
    "lam": ("λ, share of predictions in the input", "share"),
    "lr": ("Learning rate", ""),
}
"""Title of a panel and what its values are, by the last part of a metric's name."""

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

SCHEDULES: Final = ("lr", "lam")
"""Last parts of the names of metrics without noise, which need no smoothing."""

FEW: Final = 12
"""A line of fewer points shows them."""

SMOOTH_SHARE: Final = 40
"""Each side of the running mean's window is this part of a line."""

SPREAD: Final = 100.0
"""From this ratio of the largest to the median value on, the axis is logarithmic."""


def filled_panels(points: Points, panels: Sequence[Sequence[str]]) -> list[list[str]]:
    """The metrics that each panel's names and patterns stand for; panels without points are left out."""
    found = [
        [name for pattern in panel for name, values in points.items() if values and fnmatchcase(name, pattern)]
        for panel in panels
    ]
    return [panel for panel in found if panel]


def is_constant(points: Points, panel: Sequence[str]) -> bool:
    """Whether no metric of a panel ever changed, though it had the time to."""
    return all(len(points[name]) > 1 and len({value for _, value in points[name]}) == 1 for name in panel)


def running_mean(values: Values) -> Values:
    """Mean over a window around each value, which is cut off at the ends; few values stay as they are.

    Values that are not finite are left out; where there are no others the mean is NaN.
    """
    half = len(values) // SMOOTH_SHARE
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, values, 0.0), finite))
    at = np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    with np.errstate(invalid="ignore"):
        means: Values = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return means


def draw_panels(points: Points, panels: Sequence[Sequence[str]], path: Path) -> None:
    """Draw a run's panels and save a PNG; see `panels_figure`."""
    panels_figure([points], panels).savefig(path, dpi=130)


def panels_figure(runs: Sequence[Points], panels: Sequence[Sequence[str]]) -> "Figure":
    """Draw each panel's metrics: values in pale, their running mean on top.

    Of several runs it is the mean over runs in a band of one standard error either way, at the steps that all have.
    Panels without points are left out. So are constants, whose values stand below.

    Args:
        runs: what each run logged.
        panels: names and patterns of the metrics of each panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = {name: runs[0][name] for name in runs[0] if all(run.get(name) for run in runs)}
    filled = filled_panels(points, panels)
    drawn = [panel for panel in filled if not all(is_constant(run, panel) for run in runs)]
    constants = {name: points[name][0][1] for panel in filled if panel not in drawn for name in panel}
    columns = min(3, max(1, len(drawn)))
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows + 0.3 * bool(constants or not rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for position, panel in enumerate(drawn, start=1):
        axes = figure.add_subplot(rows, columns, position)
        _draw_panel(axes, runs, panel)
        axes.set_xlabel("optimizer step")
    if constants or not drawn:
        told = ", ".join(f"{name} {value:g}" for name, value in constants.items())
        figure.supxlabel(f"constant: {told}" if told else "nothing was logged", fontsize=8, x=0.01, ha="left")
    return figure


def _draw_panel(axes: Any, runs: Sequence[Points], panel: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, colour in zip(panel, COLOURS * len(panel), strict=False):
        _draw_line(axes, runs, name, colour)
    title, unit = TITLES.get(panel[0].rpartition("/")[2], (panel[0], ""))
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(unit, fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    values = np.array([value for run in runs for name in panel for _, value in run[name] if math.isfinite(value)])
    if len(values) and values.min() > 0 and values.max() > SPREAD * np.median(values):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    if len(panel) > 1:
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.annotate(panel[0], (1, 1), xycoords="axes fraction", fontsize=7, color="#666", ha="right", va="bottom")


def _draw_line(axes: Any, runs: Sequence[Points], name: str, colour: str) -> None:
    """One metric; see `panels_figure`."""
    of_runs = [dict(run[name]) for run in runs]
    steps = sorted(set.intersection(*map(set, of_runs)))
    values = np.array([[run[step] for step in steps] for run in of_runs], dtype=float)
    smooths = name.rpartition("/")[2] not in SCHEDULES
    smooth = np.array([running_mean(of_run) for of_run in values]) if smooths else values
    marker = "o" if len(steps) < FEW else None
    axes.plot(steps, smooth.mean(0), label=name, color=colour, marker=marker, markersize=4, linewidth=1.6)
    if len(runs) > 1:
        error = smooth.std(0, ddof=1) / math.sqrt(len(runs))
        axes.fill_between(steps, smooth.mean(0) - error, smooth.mean(0) + error, color=colour, alpha=0.2, linewidth=0)
    elif smooths and len(steps) >= SMOOTH_SHARE:
        axes.plot(steps, values[0], color=colour, alpha=0.3, linewidth=0.8, zorder=1)
