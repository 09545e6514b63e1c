"""How sure a score is: standard errors, and paired bootstrap of the difference between two models.

A score is a mean over items (rows of a task). Two models that answered the same items are compared item by item: what
makes an item hard for both does not count as noise then, so the interval is narrower than that of two separate means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Scores = Sequence[float] | npt.NDArray[Any]

DRAWS: Final = 10_000
"""Resamples of a bootstrap."""

CONFIDENCE: Final = 0.95
"""Share of intervals that hold the true value."""

NORMAL_QUANTILE: Final = 1.959963984540054
"""Of the standard normal distribution, at the middle 95 %."""

NUMBERS_AT_A_TIME: Final = 2**22
"""Resampled scores that are held in memory together."""


@dataclass(frozen=True)
class PairedDifference:
    """How much better the second of two models is, over the same items.

    Attributes:
        value: mean of the second model's scores minus that of the first's.
        low: lower end of the 95 % interval; NaN for fewer than two items.
        high: upper end.
        standard_error: standard deviation of the resampled differences; NaN for fewer than two items.
        p_value: two-sided, of the hypothesis that there is no difference; at least 1 / (draws + 1).
        n: items.
        draws: resamples.
    """

    value: float
    low: float
    high: float
    standard_error: float
    p_value: float
    n: int
    draws: int


def weighted_mean(scores: Scores, weights: Scores | None = None) -> float:
    """Mean of scores, each of which counts as often as its weight says.

    Args:
        scores: of the items, shape (n,).
        weights: such as the number of questions that an item holds, shape (n,); all 1 by default.

    Raises:
        ValueError: there are no scores, one is not finite, shapes differ, or the weights are not positive.
    """
    values, counts = _checked(scores, weights)
    return float((values * counts).sum() / counts.sum())


def standard_error_of_mean(scores: Scores, weights: Scores | None = None) -> float:
    """Standard error of `weighted_mean` over items that were drawn independently.

    Without weights it is the standard deviation (with n - 1) over the square root of n. With weights it is that of a
    ratio of two sums, linearised: ``sqrt(n / (n - 1) * sum((w * (x - mean)) ** 2)) / sum(w)``.

    Returns:
        NaN for a single item, whose spread cannot be known.

    Raises:
        ValueError: see `weighted_mean`.
    """
    values, counts = _checked(scores, weights)
    n = len(values)
    if n == 1:
        return math.nan
    residuals = counts * (values - (values * counts).sum() / counts.sum())
    return float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / counts.sum())


def standard_error_of_proportion(successes: int, n: int) -> float:
    """Standard error of a share of right answers: ``sqrt(p (1 - p) / n)``. It is 0 where all or none are right.

    Raises:
        ValueError: there are no items, or more successes than items.
    """
    _check_counts(successes, n)
    share = successes / n
    return math.sqrt(share * (1 - share) / n)


def interval_of_proportion(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of right answers by Wilson's score, which has a width where all or none are right.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.

    Raises:
        ValueError: there are no items, or more successes than items.
    """
    _check_counts(successes, n)
    share, z2 = successes / n, NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding would leave the least bit between an end and the share itself.
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def paired_bootstrap(
    first: Scores, second: Scores, *, weights: Scores | None = None, draws: int = DRAWS, seed: int = 0
) -> PairedDifference:
    """Difference between the means of two models on the same items, with its 95 % interval by percentiles.

    Each draw takes n of the n items with replacement, the same for both models. The same arguments give the same
    numbers.

    Args:
        first: scores of the first model, shape (n,).
        second: scores of the second model on the same items in the same order, shape (n,).
        weights: of the items, shape (n,); all 1 by default.
        draws: resamples.
        seed: of the draws.

    Raises:
        ValueError: the two have different numbers of items, or see `weighted_mean`.
    """
    before, counts = _checked(first, weights)
    after, _ = _checked(second, weights)
    if len(before) != len(after):
        raise ValueError(f"the first model has scores of {len(before)} items and the second of {len(after)}")
    differences = after - before
    n = len(differences)
    value = float((differences * counts).sum() / counts.sum())
    if n == 1:
        return PairedDifference(value, math.nan, math.nan, math.nan, math.nan, n, draws)
    resampled = _resampled_means(differences, counts, draws, np.random.default_rng(seed))
    return by_percentiles(value, resampled, n)


def by_percentiles(value: float, resampled: npt.NDArray[np.float64], n: int) -> PairedDifference:
    """A difference with what its resamples say of it.

    Args:
        value: the difference itself.
        resampled: the same of each resample, shape (draws,).
        n: items.
    """
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # A sum in another order may leave the least bit of what is no difference at all.
    signs = np.where(np.abs(resampled) < 1e-12, 0.0, resampled)
    rarer = min(int((signs <= 0).sum()), int((signs >= 0).sum()))
    draws = len(resampled)
    p_value = min(1.0, 2 * (rarer + 1) / (draws + 1))
    return PairedDifference(value, float(low), float(high), float(resampled.std(ddof=1)), p_value, n, draws)


def _resampled_means(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], draws: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Weighted means of `draws` resamples, shape (draws,)."""
    n = len(values)
    at_a_time = max(1, NUMBERS_AT_A_TIME // n)
    means = []
    for start in range(0, draws, at_a_time):
        taken = rng.integers(n, size=(min(at_a_time, draws - start), n))
        means.append((values * counts)[taken].sum(axis=1) / counts[taken].sum(axis=1))
    return np.concatenate(means)


def _checked(scores: Scores, weights: Scores | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    values = np.asarray(scores, dtype=np.float64)
    counts = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or not len(values) or values.shape != counts.shape:
        raise ValueError(f"scores of shape {values.shape} with weights of shape {counts.shape}: both are (n,), n >= 1")
    if not np.isfinite(values).all() or not (np.isfinite(counts) & (counts > 0)).all():
        raise ValueError("scores must be finite, and weights finite and above 0")
    return values, counts


def _check_counts(successes: int, n: int) -> None:
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes among {n} items")
