"""Bars and learning curves of methods."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lit_ift.frozen_lake import style
from lit_ift.frozen_lake.result import METRICS, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.066
"""Least distance of two curves' names, as a share of a panel's height."""

BARS = {
    "mse_all": ("MSE, all cells", "lower is better"),
    "mse_trajectory": ("MSE, optimal route", "lower is better"),
    "success_sampled": ("Success, sampled play", "higher is better"),
}
"""Metrics that have bars of their own: title and how to read them."""

SUCCESSES = {"success_greedy": "greedy", "success_sampled": "sampled", "success_perturbed": "perturbed start"}


def metric_bars(axes: "Axes", outcomes: Sequence[Outcome], appearance: Sequence[style.Look], metric: str) -> None:
    """A bar a method from top to bottom, its value behind it."""
    means = [outcome.mean(metric) for outcome in outcomes]
    errors = _errors(outcomes, metric)
    places = np.arange(len(outcomes))
    axes.barh(
        places,
        means,
        xerr=errors,
        height=0.68,
        color=[look.colour for look in appearance],
        hatch=[look.hatch for look in appearance],
        edgecolor=style.CARD,
        error_kw={"ecolor": style.INK, "elinewidth": 1.3, "capsize": 3},
    )
    ends = np.array(means) + (0.0 if errors is None else np.array(errors))
    for place, end, mean in zip(places, ends, means, strict=True):
        axes.annotate(
            f"{mean:#.3g}", (end, place), (5, 0), textcoords="offset points", va="center", fontsize=8, color=style.INK
        )
    title, reading = BARS[metric]
    _method_axis(axes, outcomes, title)
    # Beside the longest bar there is room for its value.
    axes.set_xlim(0, max(float(ends.max()) * 1.3, 1e-12))
    if metric.startswith("success"):
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        axes.set_xlim(0, 1.3)
    else:
        axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(reading + ("" if errors is None else "\nwhiskers: one standard error"), fontsize=8)


def success_bars(axes: "Axes", outcomes: Sequence[Outcome]) -> None:
    """Three thin bars a method: how often greedy play, sampled play and play from perturbed starts succeed."""
    shades = ("#1f4e79", "#4f94cd", "#b3cde3")
    height = 0.76 / len(SUCCESSES)
    for index, ((metric, label), shade) in enumerate(zip(SUCCESSES.items(), shades, strict=True)):
        axes.barh(
            np.arange(len(outcomes)) + (index - 1) * height,
            [outcome.mean(metric) for outcome in outcomes],
            xerr=_errors(outcomes, metric),
            height=height,
            color=shade,
            label=label,
            error_kw={"ecolor": style.INK, "elinewidth": 1.0, "capsize": 1.5},
        )
    _method_axis(axes, outcomes, "Success")
    axes.set_xlim(0, 1.04)
    axes.set_xlabel("share of games that reach the goal; higher is better", fontsize=8)
    axes.legend(
        fontsize=7.5,
        ncols=3,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        labelcolor=style.INK,
        handlelength=1.0,
        columnspacing=0.9,
        borderaxespad=0.1,
    )


def curve_panel(axes: "Axes", outcomes: Sequence[Outcome], metric: str) -> None:
    """All methods' curves of one metric, each with its name beside its end."""
    style.plain_axes(axes, METRICS.get(metric, metric))
    ends = []
    for outcome, look in zip(outcomes, style.looks(len(outcomes)), strict=True):
        if metric not in outcome.curves:
            continue
        values = outcome.curves[metric]
        mean = values.mean(axis=0)
        if len(values) > 1:
            error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
            axes.fill_between(outcome.steps, mean - error, mean + error, color=look.colour, alpha=0.2, linewidth=0)
        axes.plot(outcome.steps, mean, color=look.colour, linestyle=look.line, linewidth=1.7, label=outcome.label)
        ends.append((float(outcome.steps[-1]), float(mean[-1]), outcome.label, look))
    axes.set_xlabel("updates", fontsize=8, color=style.MUTED)
    axes.grid(color=style.GRID, linewidth=0.8)
    axes.set_xlim(left=min(float(outcome.steps[0]) for outcome in outcomes), right=max(end[0] for end in ends))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    # Names stand in the order of the ends, pushed apart where they would overlap.
    order = sorted(ends, key=lambda end: end[1])
    heights = spread([(y - low) / (high - low) for _, y, _, _ in order], gap=GAP)
    for (x, y, label, look), height in zip(order, heights, strict=True):
        axes.annotate(
            label,
            (x, y),
            (1.05, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=style.INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linestyle": look.line,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights in [0, 1] as little as possible so that neighbours are ``gap`` apart.

    Args:
        heights: ascending.
        gap: as a share of the whole height; less is kept if there is not room for it.

    Returns:
        As many heights, in the same order, in [0, 1].
    """
    gap = min(gap, 1 / max(1, len(heights) - 1))
    # Less their gaps, the heights only have to ascend: least squares pools neighbours that do not into their mean.
    pools: list[list[float]] = []
    for index, height in enumerate(heights):
        pools.append([height - index * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [float(np.mean(pool)) for pool in pools for _ in pool]
    room = 1 - gap * (len(heights) - 1)
    return [min(max(height, 0.0), room) + index * gap for index, height in enumerate(level)]


def _method_axis(axes: "Axes", outcomes: Sequence[Outcome], title: str) -> None:
    """Methods down the left side, a light grid across."""
    style.plain_axes(axes, title)
    axes.set_yticks(range(len(outcomes)), [outcome.label for outcome in outcomes], fontsize=9)
    axes.set_ylim(len(outcomes) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.GRID, linewidth=0.8)
    axes.xaxis.label.set_color(style.MUTED)


def _errors(outcomes: Sequence[Outcome], metric: str) -> list[float] | None:
    """Standard errors, none if any method has one seed only, since one seed says nothing about its own spread."""
    if any(len(outcome.metrics[metric]) < 2 for outcome in outcomes):
        return None
    return [outcome.standard_error(metric) for outcome in outcomes]
