"""The lake as a drawing: its map, the two routes, and a policy as arrows."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_ift.frozen_lake import style
from lit_ift.frozen_lake.result import Array, Study

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

STEPS = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
"""Column and row that each action leads on by: left, down, right, up."""

ARROW = 0.4
"""Length of the arrow of an action of probability 1, in cells."""

HUB = 0.06
"""How far from the centre of the cell arrows begin, in cells, so that short ones do not vanish beneath long ones."""

LETTER: Any = {"fontweight": "bold", "color": style.INK, "zorder": 6}


def draw_lake(axes: "Axes", rows: Sequence[str], title: str) -> None:
    """Ice, holes, start and goal; a cell is 1 by 1, its centre at (column, row)."""
    from matplotlib.patches import Circle, Rectangle

    lake_axes(axes, rows, title)
    scale = _mark_scale(rows)
    for row, line in enumerate(rows):
        for column, letter in enumerate(line):
            ground = {"G": style.GOAL, "S": style.START}.get(letter, style.ICE)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ground, edgecolor=style.ICE_EDGE))
            if letter == "H":
                axes.add_patch(Circle((column, row), 0.36, facecolor=style.HOLE, edgecolor=style.ICE_EDGE))
            if letter == "G":
                axes.text(column, row, letter, fontsize=13 * scale, ha="center", va="center", **LETTER)
            if letter == "S":
                # In the corner, however small the cell is, which leaves room for its arrows.
                axes.text(column - 0.44, row - 0.44, letter, fontsize=9 * scale, ha="left", va="top", **LETTER)


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
            axes.text(*place, probability(best, rows), fontsize=6.5, color=style.INK, ha="right", va="top", zorder=6)


def probability(value: float, rows: Sequence[str]) -> str:
    """A probability to two places. On large maps less its zero, so that it stays clear of the lines in its cell.

    Args:
        value: in [0, 1].
        rows: the map.
    """
    text = f"{value:.2f}"
    if _mark_scale(rows) == 1.0:
        return text
    return "1.0" if text == "1.00" else text.removeprefix("0")


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


def lake_axes(axes: "Axes", rows: Sequence[str], title: str) -> None:
    """Axes without ticks and frame in which the first row is the top one."""
    axes.set(xlim=(-0.55, len(rows[0]) - 0.45), ylim=(len(rows) - 0.45, -0.55), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, fontweight="bold", color=style.INK)


def lake_handles() -> "list[Artist]":
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


def _with_opacity(colour: str, opacity: Array) -> Array:
    """The colour once for each opacity, (N, 4)."""
    from matplotlib.colors import to_rgb

    return np.column_stack([np.tile(to_rgb(colour), (len(opacity), 1)), opacity])


def _mark_scale(rows: Sequence[str]) -> float:
    """By how much letters and routes shrink on large maps, which have smaller cells."""
    return min(1.0, 5 / max(len(rows), len(rows[0])))
