"""Differences between two variants that were trained with several seeds and scored on the same items.

Shapes: S seeds, I items.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lit_ift.evaluation.statistics import (
    DRAWS,
    NORMAL_QUANTILE,
    NUMBERS_AT_A_TIME,
    PairedDifference,
    by_percentiles,
    paired_bootstrap,
)

Table = npt.NDArray[np.float64]

DETECTABLE: Final = NORMAL_QUANTILE + 0.8416212335729143
"""Standard errors that a difference must have to be found at 5 % in 80 % of studies: two quantiles of the normal."""


def hierarchical_bootstrap(first: Any, second: Any, *, draws: int = DRAWS, seed: int = 0) -> PairedDifference:
    """Difference between the means of two variants, with its 95 % interval over seeds and items.

    Each draw takes S of the S seeds and I of the I items with replacement, the same for both variants: a pairing by
    seed (order of the data, dropout) and by item. So seeds and items count as two crossed samples (Owen 2007, The
    pigeonhole bootstrap, arXiv:0712.1111). Before, the means of seeds are spread by ``sqrt(S / (S - 1))``: otherwise
    few seeds would pass for more alike than they are. With one seed, items alone are drawn.

    Args:
        first: scores of the first variant, (S, I).
        second: of the second one, by the same seeds and items, (S, I).
        draws: resamples.
        seed: of the draws.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 2 or not before.size:
        raise ValueError(f"scores of shapes {before.shape} and {after.shape}: both are (S, I), S and I at least 1")
    if len(before) == 1:
        return paired_bootstrap(before[0], after[0], draws=draws, seed=seed)
    differences = after - before
    if not np.isfinite(differences).all():
        raise ValueError("scores must be finite")
    seeds, items = differences.shape
    value = float(differences.mean())
    of_seeds = differences.mean(axis=1, keepdims=True)
    spread = differences + (of_seeds - value) * (math.sqrt(seeds / (seeds - 1)) - 1)
    resampled = _resampled_means(spread, draws, np.random.default_rng(seed))
    return by_percentiles(value, resampled, items)


def _resampled_means(values: Table, draws: int, rng: np.random.Generator) -> Table:
    """Means of `draws` resamples of rows and columns, (draws,)."""
    rows, columns = values.shape
    at_a_time = max(1, NUMBERS_AT_A_TIME // max(rows, columns))
    means = []
    for start in range(0, draws, at_a_time):
        count = min(at_a_time, draws - start)
        of_rows = rng.multinomial(rows, [1 / rows] * rows, size=count)
        of_columns = rng.multinomial(columns, [1 / columns] * columns, size=count)
        means.append(((of_rows @ values) * of_columns).sum(axis=1) / (rows * columns))
    return np.concatenate(means)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that among all of them a false finding occurs in 5 % of studies at most.

    The smallest of n is multiplied by n, the next one by n - 1, and so on; none is smaller than one before it, or
    above 1. NaN, which is no test, stays and does not count. Source: Holm 1979.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted = list(p_values)
    highest = 0.0
    for number, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - number) * p))
        adjusted[place] = highest
    return adjusted
