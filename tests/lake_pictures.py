"""What is to be seen on a picture of the lake."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from lit_ift.frozen_lake import style
from lit_ift.frozen_lake.drawing import STEPS


def panel(figure: Figure, name: str) -> Axes:
    """The axes with that title."""
    found = [axes for axes in figure.axes if name in (axes.get_title(), axes.get_title(loc="left"))]
    assert len(found) == 1, name
    return found[0]


def arrows(axes: Axes, width: int) -> dict[tuple[int, int], tuple[float, float, str]]:
    """(cell, action) -> length, opacity and colour of its arrow."""
    found = {}
    for quiver in (child for child in axes.get_children() if isinstance(child, Quiver)):
        colours = quiver.get_facecolors()
        for x, y, u, v, rgba in zip(quiver.X, quiver.Y, quiver.U, quiver.V, colours, strict=True):
            action = int(np.argmax(STEPS @ (u, v)))
            across, down = STEPS[action]
            assert abs(u * down) + abs(v * across) < 1e-12, "arrows point along rows and columns"
            cell = round(float(y)) * width + round(float(x))
            assert (cell, action) not in found
            found[cell, action] = (
                float(np.hypot(u, v)),
                float(rgba[3]),
                "greedy" if np.allclose(rgba[:3], [c / 255 for c in bytes.fromhex(style.GREEDY[1:])]) else "other",
            )
    return found


def bars(axes: Axes, index: int = 0) -> tuple[list[float], list[float] | None]:
    """Lengths of the bars and half lengths of their error bars."""
    container = axes.containers[index]
    # A bar with an error bar comes as two containers, the error bar first.
    widths = [patch.get_width() for patch in container.patches]
    if container.errorbar is None:
        return widths, None
    segments = container.errorbar.lines[2][0].get_segments()
    for segment, width in zip(segments, widths, strict=True):
        assert segment[:, 0].mean() == pytest.approx(width)
    return widths, [(segment[1, 0] - segment[0, 0]) / 2 for segment in segments]


def bar_containers(axes: Axes) -> list[int]:
    """Which of the axes' containers are bars."""
    return [index for index, container in enumerate(axes.containers) if hasattr(container, "patches")]
