"""Pictures of a study: quality against cost, and quality by learning rate."""

from pathlib import Path
from typing import Any, Final

import numpy as np

from lit_ift.study.summary import Summary, VariantSummary

SIZE: Final = (7.5, 4.5)
"""Of a picture [inch]."""

MARKERS: Final = "osD^vP*X<>hd"


def draw_pareto(summary: Summary, path: Path) -> None:
    """Draw the most important measure against training time, with standard errors over seeds.

    A line joins the variants that no other beats in both.
    """
    measure = summary.measures[0]
    points = [
        (variant.costs["seconds"], variant.scores[measure], variant, number)
        for number, variant in enumerate(summary.variants)
        if measure in variant.scores and "seconds" in variant.costs
    ]
    figure, axes = _figure()
    for cost, score, variant, number in points:
        axes.errorbar(
            *(cost.mean, score.mean),
            xerr=np.nan_to_num(cost.standard_error),
            yerr=np.nan_to_num(score.standard_error),
            fmt=MARKERS[number % len(MARKERS)],
            color=f"C{number % 10}",
            capsize=3,
            label=_plain(variant.name),
        )
    sign = -1 if measure in summary.less_is_better else 1
    front = pareto_front([(cost.mean, sign * score.mean) for cost, score, _, _ in points])
    line = sorted((points[index][0].mean, points[index][1].mean) for index in front)
    axes.plot(*zip(*line, strict=True), color="0.6", linewidth=1, zorder=0)
    better = "less" if sign < 0 else "more"
    axes.set(xlabel="training time of a run [s]", ylabel=_plain(measure))
    axes.set_title(f"Quality against cost ({better} is better; the line joins what nothing beats in both)", fontsize=10)
    axes.legend(fontsize=9)
    _save(figure, path)


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Places of the points that no other one beats: none costs at most as much and is at least as good, and differs.

    Args:
        points: cost and quality, of which more is better.
    """
    return [
        place
        for place, (cost, quality) in enumerate(points)
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
    ]


def draw_rates(summary: Summary, path: Path) -> bool:
    """Draw what rates were chosen by against the rate; returns whether there was anything to draw."""
    tried = [variant for variant in summary.variants if any(variant.choice.rates.values())]
    if not tried:
        return False
    figure, axes = _figure()
    for number, variant in enumerate(summary.variants):
        if variant in tried:
            _draw_variant(axes, variant, number)
    axes.set(xscale="log", xlabel="learning rate", ylabel="mean over seeds")
    axes.set_title("What rates were chosen by (the ring is the chosen one; a gap is a run that diverged)", fontsize=10)
    axes.legend(fontsize=9)
    _save(figure, path)
    return True


def _draw_variant(axes: Any, variant: VariantSummary, number: int) -> None:
    rates = list(variant.choice.rates)
    found = list(variant.choice.rates.values())
    means = np.array([np.nan if estimate is None else estimate.mean for estimate in found])
    spread = np.nan_to_num([np.nan if estimate is None else estimate.standard_error for estimate in found])
    colour = f"C{number % 10}"
    marker = MARKERS[number % len(MARKERS)]
    axes.errorbar(rates, means, yerr=spread, color=colour, marker=marker, capsize=3, label=_plain(variant.name))
    if variant.choice.chosen is not None:
        place = rates.index(variant.choice.chosen)
        axes.plot(rates[place], means[place], marker="o", markersize=14, fillstyle="none", color=colour)


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would begin mathematics."""
    return text.replace("$", r"\$")


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)
