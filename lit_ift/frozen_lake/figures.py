"""Pictures of a study of the Frozen Lake game, and a game of every method as an animation. S cells, A actions."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lit_ift.frozen_lake.result import METRICS, Array, Outcome, Study
from lit_ift.frozen_lake.routes import sampled_route
from lit_ift.frozen_lake.world import ACTIONS, make_lake

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

STEPS: Final = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
"""Column and row that each action leads on by: left, down, right, up."""
ARROW: Final = 0.42
"""Length of the arrow of an action of probability 1, in cells."""
GROUND: Final = {"S": "#ffffff", "F": "#dcebf7", "H": "#2f4257", "G": "#f6d55c"}
OPTIMAL, SUBOPTIMAL, GREEDY, OTHER, PLAYER = "#009e73", "#d55e00", "#12263f", "#4f6f92", "#cc2a7b"
LOOK: Final[Any] = {
    "axes.grid.axis": "x",
    "axes.prop_cycle": "cycler('linestyle', ['-', '--']) * cycler('color', ['0072b2', 'd55e00', '009e73', 'e69f00', "
    "'cc79a7', '56b4e9', '8c8c8c'])",  # Colours of Okabe and Ito, which people with any colour vision tell apart.
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12,
    "font.size": 8,
    "legend.frameon": False,
}
SUMMARY: Final = ("sft", "orpo", "ift", "dpo")
"""Methods of the summary, in the paper's order from the worst to the best claimed."""
BARS: Final = {
    "mse_all": "MSE, all cells (lower is better)",
    "mse_trajectory": "MSE, optimal route (lower is better)",
    "success_sampled": "Success, sampled play (higher is better)",
}
"""Metrics that have bars of their own, and how to read them."""


def save_figures(study: Study, folder: Path) -> list[Path]:
    """Draw and save ``policies``, ``visits``, ``mse``, ``summary`` and, if there are any, ``curves`` as PNG."""
    drawers = {"policies": draw_policies, "visits": draw_visits, "mse": draw_mse, "summary": draw_summary}
    if any(outcome.curves for outcome in study.outcomes):
        drawers["curves"] = draw_curves
    for name, draw in drawers.items():
        draw(study).savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})
    return [folder / f"{name}.png" for name in drawers]


def save_animations(study: Study, folder: Path) -> list[Path]:
    """Save ``play-<name>.gif`` for every method: one sampled game of the policy of the seed with the median MSE."""
    paths = [folder / f"play-{outcome.name}.gif" for outcome in study.outcomes]
    for path, outcome in zip(paths, study.outcomes, strict=True):
        _animate(study, outcome, path)
    return paths


def _animate(study: Study, outcome: Outcome, path: Path) -> None:
    from matplotlib.animation import FuncAnimation, PillowWriter

    lake, policy = make_lake(study.rows, slippery=study.slippery), median_policy(outcome)
    # All methods play with the same random numbers, so that what differs is the policy.
    game = sampled_route(lake, policy, study.settings["lake"]["horizon"], np.random.default_rng(0))
    ending = {"G": "reached the goal", "H": "fell into a hole"}.get("".join(study.rows)[game.cells[-1]], "out of time")
    said = [*(f"{i}: {ACTIONS[action]}" for i, action in enumerate(game.actions, 1)), f"{len(game.actions)}: {ending}"]
    with figure(3.2, 3.6, "") as drawing:
        axes = drawing.subplots()
        draw_map(axes, study, "", policy)
        (player,) = axes.plot([], [], "o", color=PLAYER, markersize=14, markeredgecolor="white", zorder=8)

        def frame(index: int) -> Any:
            row, column = divmod(game.cells[index], study.shape[1])
            player.set_data([column], [row])
            axes.set_title(f"{outcome.label}, step {said[index]}")
            return ()

        frames = [*range(len(game.cells)), *[len(game.actions)] * 4]  # The end stays in view.
        speed = PillowWriter(fps=min(8, max(2, len(frames) // 12)))  # Long games run faster.
        FuncAnimation(drawing, frame, frames, init_func=lambda: ()).save(path, speed, dpi=80)


def median_policy(outcome: Outcome) -> Array:
    """The policy of the seed whose MSE over all cells is the median, the lower one of an even number, (S, A)."""
    order = np.argsort(outcome.metrics["mse_all"], kind="stable")
    policy: Array = outcome.policies[order[(len(order) - 1) // 2]]
    return policy


@contextmanager
def figure(width: float, height: float, title: str) -> "Iterator[Figure]":
    """An empty figure of so many inches in the look of all pictures."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(LOOK):
        drawing = Figure(figsize=(width, height))
        FigureCanvasAgg(drawing)
        if title:
            drawing.suptitle(title, fontweight="bold")
        yield drawing


def panels(parent: "Figure | SubFigure", count: int, across: int) -> "list[Axes]":
    """So many axes in rows of ``across``."""
    grid = list(parent.subplots(math.ceil(count / across), across, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return grid[:count]


def describe(study: Study) -> str:
    """The lake and the number of seeds in a few words, for titles."""
    seeds = len(study.outcomes[0].metrics["mse_all"])
    count = "1 seed" if seeds == 1 else f"mean of {seeds} seeds"
    return f"{'x'.join(map(str, study.shape))} lake, {'slippery' if study.slippery else 'not slippery'} · {count}"


# Maps ---------------------------------------------------------------------------------------------------------------


def draw_map(axes: "Axes", study: Study, title: str, policy: Array) -> None:
    """Ice, holes, start and goal; both routes; the policy, (S, A), as arrows, long and opaque as actions are probable.

    A cell is 1 by 1, its centre at (column, row).
    """
    from matplotlib.colors import to_rgba, to_rgba_array

    letters = np.array([list(row) for row in study.rows])
    height, width = letters.shape
    scale = min(1.0, 5 / max(height, width))
    axes.imshow(to_rgba_array([GROUND[letter] for letter in letters.flat]).reshape(height, width, 4))
    axes.set_xticks(np.arange(0.5, width - 1), [])
    axes.set_yticks(np.arange(0.5, height - 1), [])
    axes.grid(axis="both", color="#a9c3d8")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontweight="bold")
    for row, column in np.argwhere(np.isin(letters, ["S", "G"])):
        axes.text(column - 0.44, row - 0.42, letters[row, column], fontsize=9 * scale, fontweight="bold", va="top")
    # A shift keeps both in view where they meet.
    for route, colour, line, shift in ((study.rejected, SUBOPTIMAL, "--", 0.06), (study.chosen, OPTIMAL, "-", -0.06)):
        rows, columns = np.divmod(np.array(route), width)
        axes.plot(columns + shift, rows + shift, line, color=colour, linewidth=3 * scale, alpha=0.55, zorder=2)
    cells = np.flatnonzero(~np.isin(letters, ["H", "G"]))
    at, actions = np.repeat(cells, len(ACTIONS)), np.tile(np.arange(len(ACTIONS)), len(cells))
    chances, ways = policy[at, actions], STEPS[actions]
    likeliest = greedy_actions(policy)[at, actions]
    colours = np.where(likeliest[:, None], to_rgba(GREEDY), to_rgba(OTHER))
    colours[:, 3] = 0.25 + 0.75 * chances  # Unlikely actions stay visible.
    order = np.argsort(likeliest, kind="stable")  # The likeliest are drawn last, above the others.
    axes.quiver(
        at[order] % width,
        at[order] // width,
        *(ARROW * chances[:, None] * ways)[order].T,
        color=colours[order],
        angles="xy",
        scale_units="xy",
        scale=1,
        units="xy",
        width=0.06,
        zorder=4,
    )


def greedy_actions(policy: Array) -> "np.typing.NDArray[np.bool_]":
    """True at the likeliest action of every cell, at several if they tie, at none if all are alike, (S, A)."""
    best = np.isclose(policy, policy.max(axis=1, keepdims=True), rtol=0, atol=1e-6)
    likeliest: np.typing.NDArray[np.bool_] = best & ~best.all(axis=1, keepdims=True)
    return likeliest


def map_legend() -> "list[Artist]":
    """What the lines and arrows of a map mean."""
    from matplotlib.lines import Line2D

    arrow: Any = {"marker": r"$\rightarrow$", "markersize": 12, "linestyle": ""}
    return [
        Line2D([], [], color=OPTIMAL, linewidth=3, alpha=0.55, label="optimal route"),
        Line2D([], [], color=SUBOPTIMAL, linewidth=3, alpha=0.55, linestyle="--", label="sub-optimal route"),
        Line2D([], [], color=GREEDY, label="likeliest action", **arrow),
        Line2D([], [], color=OTHER, label="other actions", **arrow),
        Line2D([], [], color=GROUND["H"], marker="s", markersize=9, linestyle="", label="hole"),
        Line2D([], [], color=GROUND["G"], marker="s", markersize=9, linestyle="", label="goal"),
    ]


@contextmanager
def map_grid(study: Study, count: int, title: str) -> "Iterator[tuple[Figure, list[Axes]]]":
    """A figure with ``count`` panels in the map's proportions."""
    rows, columns = study.shape
    cell = max(0.46, min(0.7, 3.2 / max(rows, columns)))  # Smaller on large maps, but never too small to read.
    across = min(count, max(1, min(4, int(16 / (columns * cell)))))
    down = math.ceil(count / across)
    with figure(max(6.6, across * (columns * cell + 0.35)), down * (rows * cell + 0.5) + 1.0, title) as drawing:
        yield drawing, panels(drawing, count, across)


def draw_policies(study: Study) -> "Figure":
    """The lake once for the optimal, the starting and every method's policy, the mean over seeds as arrows."""
    policies = {"Optimal policy": study.optimal, "Before training": study.start}
    policies |= {outcome.label: outcome.policies.mean(axis=0) for outcome in study.outcomes}
    with map_grid(study, len(policies), f"What each policy does · {describe(study)}") as (drawing, grid):
        for axes, (title, policy) in zip(grid, policies.items(), strict=True):
            draw_map(axes, study, title, policy)
        drawing.legend(handles=map_legend(), loc="outside lower center", ncols=6)
    return drawing


def draw_visits(study: Study) -> "Figure":
    """Expected visits to every cell in one sampled game, a heat map a method, all on one colour scale."""
    from matplotlib.colors import PowerNorm

    # Most visits go to a few cells; on the square-root scale the rarely visited ones differ visibly too.
    norm = PowerNorm(0.5, vmin=0.0, vmax=max(float(outcome.visits.max()) for outcome in study.outcomes))
    with map_grid(study, len(study.outcomes), f"Cells visited in a game · {describe(study)}") as (drawing, grid):
        for axes, outcome in zip(grid, study.outcomes, strict=True):
            visits = outcome.visits.reshape(study.shape)
            image = axes.imshow(visits, norm=norm, cmap="cividis")
            axes.set_axis_off()
            axes.set_title(outcome.label, fontweight="bold")
            for (row, column), value in np.ndenumerate(visits):
                letter = study.rows[row][column].replace("F", "")
                colour = "white" if norm(value) < 0.55 else "black"
                axes.text(column, row, f"{letter}\n{value:.2f}\n", color=colour, fontsize=7, ha="center", va="center")
        bar = drawing.colorbar(image, ax=grid, shrink=0.8)
        bar.set_label("expected visits in one sampled game (square-root scale)")
    return drawing


# Charts -------------------------------------------------------------------------------------------------------------


def metric_bars(axes: "Axes", outcomes: Sequence[Outcome], metric: str, label: str, **options: Any) -> None:
    """A bar a method from top to bottom, its mean with one standard error either way."""
    means = [outcome.mean(metric) for outcome in outcomes]
    errors = [outcome.standard_error(metric) for outcome in outcomes] if len(outcomes[0].metrics[metric]) > 1 else None
    bars = axes.barh([outcome.label for outcome in outcomes], means, xerr=errors, capsize=2, **options)
    axes.bar_label(bars, [f"{mean:#.3g}" for mean in means], padding=4)
    axes.set_xlabel(label)
    axes.margins(x=0.25)
    axes.grid(visible=True, alpha=0.4)
    axes.set_axisbelow(True)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def draw_mse(study: Study) -> "Figure":
    """Bars of both MSEs and of success from three kinds of play, with standard errors if there are several seeds."""
    metrics = {**BARS, "success_greedy": "Success, greedy play", "success_perturbed": "Success, perturbed starts"}
    title = f"How far from the optimum · {describe(study)}"
    with figure(14.0, 1.7 + 0.3 * len(study.outcomes), title) as drawing:
        for axes, (metric, label) in zip(drawing.subplots(1, len(metrics), sharey=True), metrics.items(), strict=True):
            metric_bars(axes, study.outcomes, metric, label)
    return drawing


def draw_curves(study: Study) -> "Figure":
    """Learning curves: a panel a metric, the mean over seeds in a band of one standard error either way."""
    metrics = [metric for metric in METRICS if any(metric in outcome.curves for outcome in study.outcomes)]
    columns = min(2, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    with figure(6.0 * columns, 0.6 + 2.8 * rows, f"Learning curves · {describe(study)}") as drawing:
        grid = panels(drawing, len(metrics), columns)
        for axes, metric in zip(grid, metrics, strict=True):
            for outcome in (outcome for outcome in study.outcomes if metric in outcome.curves):
                values = outcome.curves[metric]
                mean, error = values.mean(axis=0), values.std(axis=0, ddof=len(values) > 1) / np.sqrt(len(values))
                (line,) = axes.plot(outcome.steps, mean, label=outcome.label)
                axes.fill_between(outcome.steps, mean - error, mean + error, color=line.get_color(), alpha=0.2)
            axes.set_title(METRICS[metric], loc="left")
            axes.set_xlabel("updates")
        drawing.legend(*grid[0].get_legend_handles_labels(), loc="outside right center")
    return drawing


def draw_summary(study: Study) -> "Figure":
    """One wide figure: maps of SFT, ORPO, IFT and DPO (those that there are, else the first four) and bars."""
    by_name = {outcome.name: outcome for outcome in study.outcomes}
    shown = [by_name[name] for name in SUMMARY if name in by_name] or study.outcomes[:4]
    with figure(12.0, 5.0, f"The same lake, the same budget · {describe(study)}") as drawing:
        left, right = drawing.subfigures(1, 2, squeeze=False, width_ratios=(4.6, 7.4))[0]
        for axes, outcome in zip(panels(left, len(shown), min(2, len(shown))), shown, strict=True):
            draw_map(axes, study, outcome.label, outcome.policies.mean(axis=0))
        # The MSEs and success may order the methods in opposite ways, so one is not shown without the other.
        for axes, (metric, label) in zip(right.subplots(1, len(BARS), sharey=True), BARS.items(), strict=True):
            metric_bars(axes, shown, metric, label.replace(" (", "\n("))
        right.legend(handles=map_legend(), loc="outside lower center", ncols=3)
    return drawing
