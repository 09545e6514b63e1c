"""How far float32 results may be apart that differ in nothing but the order of sums, which a processor chooses."""

from typing import Final

EPS32: Final = 2.0**-23
"""Distance of two neighbouring float32 numbers near 1."""
NEAR32: Final = 100 * EPS32
"""Relative. Processors differ by up to some ten units; a real fault is far larger."""
CLOSE32: Final = {"rtol": NEAR32, "atol": NEAR32}
