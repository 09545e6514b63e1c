"""Pictures of a study of the Frozen Lake game, each as PNG and SVG."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_ift.frozen_lake import style
from lit_ift.frozen_lake.charts import BARS, curve_panel, metric_bars, success_bars
from lit_ift.frozen_lake.drawing import draw_lake, draw_policy, draw_routes, lake_axes, lake_handles
from lit_ift.frozen_lake.result import METRICS, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUMMARY = ("sft", "orpo", "ift", "dpo")
"""Methods of the summary, in the paper's order from the worst to the best claimed."""

LEGEND: Any = {"fontsize": 8, "frameon": False, "labelcolor": style.INK}


def save_figures(study: Study, folder: Path) -> list[Path]:
    """Draw and save all pictures: ``policies``, ``visits``, ``mse``, ``curves`` and ``summary``.

    Args:
        study: what to draw; one seed has no error bars, and outcomes without curves no ``curves`` picture.
        folder: made if missing; files there of these names are replaced.

    Returns:
        Paths of the PNG and SVG files.
    """
    figures = {
        "policies": draw_policies(study),
        "visits": draw_visits(study),
        "mse": draw_mse(study),
        "summary": draw_summary(study),
    }
    if any(outcome.curves for outcome in study.outcomes):
        figures["curves"] = draw_curves(study)
    return [path for name, figure in figures.items() for path in style.save(figure, folder, name)]


def draw_policies(study: Study) -> "Figure":
    """The lake once for the optimal, the starting and every method's policy, the mean over seeds as arrows."""
    policies = {"Optimal policy": study.optimal, "Before training": study.start}
    titles = [*policies, *(outcome.label for outcome in study.outcomes)]
    drawn = [*policies.values(), *(outcome.policies.mean(axis=0) for outcome in study.outcomes)]
    figure, grid = _lake_grid(study, len(drawn), f"What each policy does · {describe(study)}", cell_inches=0.72)
    for axes, title, policy in zip(grid, titles, drawn, strict=True):
        draw_lake(axes, study.rows, title)
        draw_routes(axes, study)
        draw_policy(axes, study.rows, policy, numbers=True)
    figure.legend(handles=lake_handles(), loc="outside lower center", ncols=6, **LEGEND)
    return figure


def draw_visits(study: Study) -> "Figure":
    """Expected visits to every cell in one sampled game, a heat map a method, all on one colour scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm

    figure, grid = _lake_grid(
        study, len(study.outcomes), f"Cells visited in a game · {describe(study)}", cell_inches=0.66, beside=1.0
    )
    # Most visits go to a few cells; on the square-root scale the rarely visited ones differ visibly too.
    norm = PowerNorm(0.5, vmin=0.0, vmax=max(float(outcome.visits.max()) for outcome in study.outcomes))
    for axes, outcome in zip(grid, study.outcomes, strict=True):
        visits = outcome.visits.reshape(study.shape)
        lake_axes(axes, study.rows, outcome.label)
        axes.imshow(visits, norm=norm, cmap="cividis", zorder=0)
        for (row, column), value in np.ndenumerate(visits):
            letter = study.rows[row][column]
            colour = "#ffffff" if norm(value) < 0.55 else style.INK
            if letter != "F":
                axes.text(column - 0.42, row - 0.4, letter, fontsize=7, fontweight="bold", color=colour, va="top")
            axes.text(column, row + 0.04, f"{value:.2f}", fontsize=7, color=colour, ha="center", va="center")
    bar = figure.colorbar(ScalarMappable(norm, "cividis"), ax=grid, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("expected visits in one sampled game (square-root scale)", fontsize=8, color=style.INK)
    bar.ax.tick_params(labelsize=8, colors=style.INK)
    bar.outline.set_visible(False)
    return figure


def draw_mse(study: Study) -> "Figure":
    """Bars of both MSEs and of success, a row a method, with standard errors if there are several seeds."""
    count = len(study.outcomes)
    figure = style.new_figure(11.0, 1.7 + 0.36 * count, f"How far from the optimum · {describe(study)}")
    grid = figure.subplots(1, 3, sharey=True)
    appearance = style.looks(count)
    for axes, metric in zip(grid[:2], ("mse_all", "mse_trajectory"), strict=True):
        metric_bars(axes, study.outcomes, appearance, metric)
    success_bars(grid[2], study.outcomes)
    return figure


def draw_curves(study: Study) -> "Figure":
    """Learning curves: a panel a metric, the mean over seeds in a band of one standard error either way."""
    known = [metric for metric in METRICS if any(metric in outcome.curves for outcome in study.outcomes)]
    more = sorted({metric for outcome in study.outcomes for metric in outcome.curves} - set(known))
    metrics = known + more
    columns = min(2, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    height = max(2.8, 0.9 + 0.17 * len(study.outcomes))
    figure = style.new_figure(5.6 * columns, 0.6 + height * rows, f"Learning curves · {describe(study)}")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, metric in zip(grid, metrics, strict=False):
        curve_panel(axes, study.outcomes, metric)
    for axes in grid[len(metrics) :]:
        axes.remove()
    return figure


def draw_summary(study: Study) -> "Figure":
    """One wide figure: maps of SFT, ORPO, IFT and DPO (those that there are, else the first four) and bars."""
    by_name = {outcome.name: outcome for outcome in study.outcomes}
    shown = [by_name[name] for name in SUMMARY if name in by_name] or study.outcomes[:4]
    figure = style.new_figure(12.0, 5.0, f"The same lake, the same budget · {describe(study)}")
    halves = figure.add_gridspec(1, 2, width_ratios=(4.6, 7.4))
    columns = min(2, len(shown))
    maps = halves[0, 0].subgridspec(math.ceil(len(shown) / columns), columns)
    for index, outcome in enumerate(shown):
        axes = figure.add_subplot(maps[divmod(index, columns)])
        draw_lake(axes, study.rows, outcome.label)
        draw_routes(axes, study)
        draw_policy(axes, study.rows, outcome.policies.mean(axis=0), numbers=False)
    appearance = {
        outcome.name: look for outcome, look in zip(study.outcomes, style.looks(len(study.outcomes)), strict=True)
    }
    grid = halves[0, 1].subgridspec(2, len(BARS), height_ratios=(9, 1))
    # The MSEs and success may order the methods in opposite ways, so one is not shown without the other.
    for index, metric in enumerate(BARS):
        axes = figure.add_subplot(grid[0, index])
        metric_bars(axes, shown, [appearance[outcome.name] for outcome in shown], metric)
        axes.tick_params(labelleft=index == 0)
    below = figure.add_subplot(grid[1, :])
    below.set_axis_off()
    below.legend(handles=lake_handles(), loc="center", ncols=3, **LEGEND)
    return figure


def describe(study: Study) -> str:
    """The lake and the number of seeds in a few words, for titles."""
    rows, columns = study.shape
    seeds = len(study.outcomes[0].metrics["mse_all"])
    count = "1 seed" if seeds == 1 else f"mean of {seeds} seeds"
    return f"{rows}x{columns} lake, {'slippery' if study.slippery else 'not slippery'} · {count}"


def _lake_grid(
    study: Study, count: int, title: str, *, cell_inches: float, beside: float = 0.0
) -> tuple["Figure", list["Axes"]]:
    """A figure with ``count`` panels in the map's proportions.

    Args:
        study: the map.
        count: of panels.
        title: above them.
        cell_inches: side of a cell of a small map.
        beside: inches to leave on the right.

    Returns:
        The figure and its panels.
    """
    rows, columns = study.shape
    # Large maps get smaller cells, but never so small that arrows and numbers cannot be read.
    cell = max(0.46, min(cell_inches, 3.2 / max(rows, columns)))
    across = min(count, max(1, min(4, int(16 / (columns * cell)))))
    down = math.ceil(count / across)
    width = max(6.6, across * (columns * cell + 0.35) + 0.3) + beside
    figure = style.new_figure(width, down * (rows * cell + 0.5) + 1.0, title)
    panels = list(figure.subplots(down, across, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]
