"""How pictures of the lake look: colours, lines and the card they are drawn on.

Every picture is drawn on a light card with rounded corners and transparent surroundings. So it has the same contrast on
light and dark pages, which transparent pictures with mid-tone text do not reach. Colours are those of Okabe and Ito,
which people with any colour vision tell apart, and a grey; lines and bars beyond the seventh differ by dashes and
hatching.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARD = "#f7f8fa"
EDGE = "#c9d1d9"
INK = "#1f2937"
MUTED = "#5b6675"
GRID = "#dde2e8"
ICE = "#dcebf7"
ICE_EDGE = "#a9c3d8"
HOLE = "#2f4257"
GOAL = "#f6d55c"
START = "#ffffff"
OPTIMAL = "#009e73"
SUBOPTIMAL = "#d55e00"
GREEDY = "#12263f"
OTHER = "#4f6f92"
AGENT = "#cc2a7b"

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#8c8c8c")

DPI = 100
"""Pixels per inch of the PNG files."""


@dataclass(frozen=True)
class Look:
    """How one method is drawn: colour, dashes of its line, hatching of its bar."""

    colour: str
    line: str
    hatch: str


def looks(count: int) -> list[Look]:
    """One look a method, by its place in the configuration; all different up to 21 methods."""
    patterns = (("-", ""), ("--", "////"), (":", "...."))
    return [
        Look(PALETTE[index % len(PALETTE)], *patterns[index // len(PALETTE) % len(patterns)]) for index in range(count)
    ]


def new_figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure on its card.

    Args:
        width: in inches.
        height: in inches.
        title: stands above all panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import FancyBboxPatch

    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, rect=(0.006, 0.006, 0.988, 0.988))
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="none")
    FigureCanvasAgg(figure)
    inset, radius = 0.02, 0.12
    card = FancyBboxPatch(
        (inset, inset),
        width - 2 * inset,
        height - 2 * inset,
        boxstyle=f"round,pad=0,rounding_size={radius}",
        facecolor=CARD,
        edgecolor=EDGE,
        linewidth=1.0,
        transform=figure.dpi_scale_trans,
        zorder=-10,
    )
    card.set_in_layout(False)
    figure.add_artist(card)
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    return figure


def plain_axes(axes: "Axes", title: str) -> None:
    """Style the axes of a chart."""
    axes.set_facecolor("none")
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.set_axisbelow(True)


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write ``<name>.png`` and ``<name>.svg``; the same figure gives the same bytes.

    Returns:
        The two paths.
    """
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    # The layout is made once and rounded: its solver leaves noise in the last digits, which would reach the SVG's ids.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(float(bound), 6) for bound in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))
    # Without a salt and with a date, every run would write other bytes.
    with rc_context({"svg.hashsalt": "lit-ift", "hatch.linewidth": 0.6}):
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
