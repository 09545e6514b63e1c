"""Scales of colours that colour-blind readers can tell apart, and on which black text can be read."""

from dataclasses import dataclass
from math import ceil
from typing import Final

ORANGE: Final = (240, 150, 50)
BLUE: Final = (90, 160, 230)
PURPLE: Final = (175, 130, 205)
WHITE: Final = (252, 252, 252)

HALF: Final = 6
"""Steps on each side of the middle of a scale with two sides."""


def _mixed(colour: tuple[int, int, int], share: float) -> str:
    return "#" + "".join(f"{round(white + share * (c - white)):02x}" for white, c in zip(WHITE, colour, strict=True))


DIVERGING: Final = tuple(
    [_mixed(ORANGE, i / HALF) for i in range(HALF, 0, -1)] + [_mixed(BLUE, i / HALF) for i in range(HALF + 1)]
)
"""From orange for less, over white, to blue for more."""

RISING: Final = tuple(_mixed(PURPLE, i / (2 * HALF)) for i in range(2 * HALF + 1))
"""From white to purple."""


@dataclass(frozen=True)
class Scale:
    """Gives numbers their place among `DIVERGING` or `RISING`, which have equally many.

    Attributes:
        low: number at the first colour; smaller ones get it too.
        high: number at the last colour.
    """

    low: float
    high: float

    def place(self, value: float) -> int:
        """Which colour a number has."""
        share = (value - self.low) / (self.high - self.low)
        return round(2 * HALF * min(1.0, max(0.0, share)))


def limit_of(values: list[float], steps: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)) -> float:
    """The first of the steps that 95 of 100 values do not exceed in size, else the last one."""
    sizes = sorted(map(abs, values)) or [0.0]
    large = sizes[ceil(0.95 * len(sizes)) - 1]
    return next((step for step in steps if large <= step), steps[-1])
