"""Pictures of a study of the Frozen Lake game, each as PNG and SVG."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_ift.lake import style
from lit_ift.lake.result import METRICS, Array, Outcome, Study

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
"""Column and row that each action leads on by: left, down, right, up."""

ARROW = 0.4
"""Length of the arrow of an action of probability 1, in cells."""

HUB = 0.06
"""How far from the centre of the cell arrows begin, in cells, so that short ones do not vanish beneath long ones."""

SUMMARY = ("sft", "orpo", "ift", "dpo")
"""Methods of the summary, in the paper's order from the worst to the best claimed."""

GAP = 0.066
"""Least distance of two curves' names, as a share of a panel's height."""

LEGEND: Any = {"fontsize": 8, "frameon": False, "labelcolor": style.INK}

BARS = {
    "mse_all": ("MSE, all cells", "lower is better"),
    "mse_trajectory": ("MSE, optimal route", "lower is better"),
    "success_sampled": ("Success, sampled play", "higher is better"),
}
"""Metrics that have bars of their own: title and how to read them."""

SUCCESSES = {"success_greedy": "greedy", "success_sampled": "sampled", "success_perturbed": "perturbed start"}


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
    figure.legend(handles=_lake_handles(), loc="outside lower center", ncols=6, **LEGEND)
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
        _lake_axes(axes, study.rows, outcome.label)
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
        _metric_bars(axes, study.outcomes, appearance, metric)
    _success_bars(grid[2], study.outcomes)
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
        _curve_panel(axes, study.outcomes, metric)
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
        _metric_bars(axes, shown, [appearance[outcome.name] for outcome in shown], metric)
        axes.tick_params(labelleft=index == 0)
    below = figure.add_subplot(grid[1, :])
    below.set_axis_off()
    below.legend(handles=_lake_handles(), loc="center", ncols=3, **LEGEND)
    return figure


def describe(study: Study) -> str:
    """The lake and the number of seeds in a few words, for titles."""
    rows, columns = study.shape
    seeds = len(study.outcomes[0].metrics["mse_all"])
    count = "1 seed" if seeds == 1 else f"mean of {seeds} seeds"
    return f"{rows}x{columns} lake, {'slippery' if study.slippery else 'not slippery'} · {count}"


def draw_lake(axes: "Axes", rows: Sequence[str], title: str) -> None:
    """Ice, holes, start and goal; a cell is 1 by 1, its centre at (column, row)."""
    from matplotlib.patches import Circle, Rectangle

    _lake_axes(axes, rows, title)
    scale = _mark_scale(rows)
    for row, line in enumerate(rows):
        for column, letter in enumerate(line):
            ground = {"G": style.GOAL, "S": style.START}.get(letter, style.ICE)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ground, edgecolor=style.ICE_EDGE))
            if letter == "H":
                axes.add_patch(Circle((column, row), 0.36, facecolor=style.HOLE, edgecolor=style.ICE_EDGE))
            if letter in "SG":
                # The start's letter makes room for its arrows.
                x, y, size = (column, row, 13) if letter == "G" else (column - 0.35, row - 0.33, 9)
                axes.text(
                    x,
                    y,
                    letter,
                    fontsize=size * scale,
                    fontweight="bold",
                    color=style.INK,
                    ha="center",
                    va="center",
                    zorder=6,
                )


def draw_routes(axes: "Axes", study: Study) -> None:
    """The optimal route as a solid line and the sub-optimal one as a dashed line, side by side where they meet."""
    width = study.shape[1]
    for cells, colour, dashes, shift in (
        (study.rejected, style.SUBOPTIMAL, (0, (2.2, 1.2)), 0.06),
        (study.chosen, style.OPTIMAL, "-", -0.06),
    ):
        rows, columns = np.divmod(without_repeats(cells), width)
        axes.plot(
            columns + shift,
            rows + shift,
            color=colour,
            linestyle=dashes,
            linewidth=3.2 * _mark_scale(study.rows),
            alpha=0.55,
            zorder=2,
        )


def without_repeats(cells: Sequence[int]) -> Array:
    """Cells to be joined by a line that goes no way twice, with NaN where it breaks off.

    Routes on slippery lakes go to and fro; drawn again and again, a dashed line would fill up.
    """
    trail = [float(cells[0])]
    ways = set()
    for here, there in pairwise(cells):
        way = frozenset((here, there))
        trail += [math.nan, there] if way in ways or here == there else [there]
        ways.add(way)
    return np.array(trail)


def draw_policy(axes: "Axes", rows: Sequence[str], policy: Array, *, numbers: bool) -> None:
    """Arrows as long and as opaque as their actions are probable, in every cell where the game goes on.

    Args:
        axes: those of ``draw_lake``.
        rows: the map.
        policy: probability of every action in every cell, (S, A).
        numbers: whether to write the probability of the likeliest action into its cell.
    """
    width = len(rows[0])
    cells = np.array([cell for cell, letter in enumerate("".join(rows)) if letter not in "HG"])
    likeliest = greedy_actions(policy[cells])
    for emphasised in (False, True):
        which, actions = np.nonzero(likeliest if emphasised else ~likeliest)
        if not len(which):
            continue
        at = cells[which]
        probabilities = policy[at, actions]
        # Some opacity is left to the unlikely, so that what is long enough to see is seen.
        colours = _with_opacity(style.GREEDY if emphasised else style.OTHER, 0.25 + 0.75 * probabilities)
        ways = STEPS[actions]
        axes.quiver(
            at % width + HUB * ways[:, 0],
            at // width + HUB * ways[:, 1],
            *(ARROW * probabilities[:, None] * ways).T,
            color=colours,
            angles="xy",
            scale_units="xy",
            scale=1,
            units="xy",
            width=0.075 if emphasised else 0.05,
            headwidth=3.0,
            headlength=2.6,
            headaxislength=2.4,
            minshaft=1.2,
            minlength=0.2,
            zorder=4 if emphasised else 3,
        )
    if numbers:
        for cell, best in zip(cells, policy[cells].max(axis=1), strict=True):
            place = (cell % width + 0.46, cell // width - 0.44)
            axes.text(*place, f"{best:.2f}", fontsize=6.5, color=style.INK, ha="right", va="top", zorder=6)


def greedy_actions(policy: Array) -> NDArray[np.bool_]:
    """True at the likeliest action of every cell, at several if they tie, at none if all actions are as likely.

    Args:
        policy: (S, A).

    Returns:
        (S, A).
    """
    best = np.isclose(policy, policy.max(axis=1, keepdims=True), rtol=0, atol=1e-6)
    likeliest: NDArray[np.bool_] = best & ~best.all(axis=1, keepdims=True)
    return likeliest


def _with_opacity(colour: str, opacity: Array) -> Array:
    """The colour once for each opacity, (N, 4)."""
    from matplotlib.colors import to_rgb

    return np.column_stack([np.tile(to_rgb(colour), (len(opacity), 1)), opacity])


def _mark_scale(rows: Sequence[str]) -> float:
    """By how much letters and routes shrink on large maps, which have smaller cells."""
    return min(1.0, 5 / max(len(rows), len(rows[0])))


def _lake_axes(axes: "Axes", rows: Sequence[str], title: str) -> None:
    """Axes without ticks and frame in which the first row is the top one."""
    axes.set(xlim=(-0.55, len(rows[0]) - 0.45), ylim=(len(rows) - 0.45, -0.55), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, fontweight="bold", color=style.INK)


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


def _lake_handles() -> "list[Artist]":
    """What the lines, arrows and colours of a lake mean, for a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=style.OPTIMAL, linewidth=3.2, alpha=0.55, label="optimal route"),
        Line2D(
            [],
            [],
            color=style.SUBOPTIMAL,
            linewidth=3.2,
            alpha=0.55,
            linestyle=(0, (2.2, 1.2)),
            label="sub-optimal route",
        ),
        Line2D(
            [], [], color=style.GREEDY, marker=r"$\rightarrow$", markersize=13, linestyle="", label="likeliest action"
        ),
        Line2D([], [], color=style.OTHER, marker=r"$\rightarrow$", markersize=10, linestyle="", label="other actions"),
        Line2D([], [], color=style.HOLE, marker="o", markersize=9, linestyle="", label="hole"),
        Patch(facecolor=style.GOAL, edgecolor=style.ICE_EDGE, label="goal"),
    ]


def _metric_bars(axes: "Axes", outcomes: Sequence[Outcome], appearance: Sequence[style.Look], metric: str) -> None:
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


def _success_bars(axes: "Axes", outcomes: Sequence[Outcome]) -> None:
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


def _curve_panel(axes: "Axes", outcomes: Sequence[Outcome], metric: str) -> None:
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
