"""Standard errors and paired bootstrap against numbers derived by hand."""

import math

import numpy as np
import pytest

from lit_ift.evaluation.statistics import (
    interval_of_proportion,
    paired_bootstrap,
    standard_error_of_mean,
    standard_error_of_proportion,
    weighted_mean,
)


def test_standard_error_of_a_mean() -> None:
    # Mean 2.5; squared distances 2.25 + 0.25 + 0.25 + 2.25 = 5; variance 5 / 3; over 4 items 5 / 12.
    assert weighted_mean([1, 2, 3, 4]) == 2.5
    assert standard_error_of_mean([1, 2, 3, 4]) == pytest.approx(math.sqrt(5 / 12), abs=1e-15)


def test_weights_count_the_questions_of_an_item() -> None:
    # 1 of 1, 1 of 2 and 0 of 3 right: 2 of 6. Residuals w (x - 1/3): 2/3, 1/3, -1; squares 4/9 + 1/9 + 1 = 14/9.
    scores, weights = [1, 0.5, 0], [1, 2, 3]
    assert weighted_mean(scores, weights) == pytest.approx(1 / 3, abs=1e-15)
    assert standard_error_of_mean(scores, weights) == pytest.approx(math.sqrt(3 / 2 * 14 / 9) / 6, abs=1e-15)


def test_equal_weights_change_nothing() -> None:
    scores = [0.0, 1, 1, 0.25]
    assert standard_error_of_mean(scores, [3, 3, 3, 3]) == pytest.approx(standard_error_of_mean(scores), abs=1e-15)


def test_standard_error_of_a_proportion() -> None:
    assert standard_error_of_proportion(1, 4) == pytest.approx(math.sqrt(3) / 8, abs=1e-15)
    assert standard_error_of_proportion(4, 4) == 0


def test_interval_of_a_proportion() -> None:
    # None of 10: from 0 to z² / (10 + z²), z = 1.96.
    low, high = interval_of_proportion(0, 10)
    assert low == 0
    assert high == pytest.approx(3.8414588207 / 13.8414588207, abs=1e-9)
    low, high = interval_of_proportion(10, 10)
    assert low == pytest.approx(10 / 13.8414588207, abs=1e-9)
    assert high == 1


def test_a_single_item_has_no_spread() -> None:
    assert math.isnan(standard_error_of_mean([1.0]))
    difference = paired_bootstrap([0.0], [1.0])
    assert difference.value == 1
    assert all(math.isnan(x) for x in (difference.low, difference.high, difference.standard_error))


def test_bootstrap_of_two_items() -> None:
    # Differences 0 and 1: resampled means are 0, 1/2, 1 with chances 1/4, 1/2, 1/4. Variance 1/8.
    difference = paired_bootstrap([0, 0], [0, 1], draws=40_000)
    assert (difference.value, difference.low, difference.high) == (0.5, 0, 1)
    assert difference.standard_error == pytest.approx(math.sqrt(1 / 8), rel=0.01)
    assert difference.p_value == pytest.approx(2 * 1 / 4, rel=0.03)  # A quarter of the draws is not above 0.


def test_weighted_bootstrap_of_two_items() -> None:
    # Differences 0 (weight 1) and 1 (weight 3): both once 3/4, else 0 or 1. Mean 0.625, variance 0.140625.
    difference = paired_bootstrap([0, 0], [0, 1], weights=[1, 3], draws=40_000)
    assert difference.value == 0.75
    assert difference.standard_error == pytest.approx(math.sqrt(0.140625), rel=0.01)


def test_what_both_find_hard_is_no_noise() -> None:
    first = np.array([0.0, 10, 20, 30])
    difference = paired_bootstrap(first, first + 0.5)
    assert difference.value == pytest.approx(0.5, abs=1e-12)
    assert difference.low == pytest.approx(0.5, abs=1e-12)
    assert difference.high == pytest.approx(0.5, abs=1e-12)


def test_interval_is_that_of_the_normal_distribution_for_many_items() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=2000), rng.normal(0.1, size=2000)
    difference = paired_bootstrap(first, second, seed=1)
    spread = standard_error_of_mean(second - first)
    assert difference.value == pytest.approx((second - first).mean(), abs=1e-12)
    assert difference.standard_error == pytest.approx(spread, rel=0.03)
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * spread, rel=0.04)


def test_equal_models_have_no_difference() -> None:
    difference = paired_bootstrap([0.1, 0.7, 0.3], [0.1, 0.7, 0.3])
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_p_value_is_never_zero() -> None:
    assert paired_bootstrap([0] * 30, [1] * 30, draws=999).p_value == pytest.approx(2 / 1000)


def test_the_seed_decides_the_draws() -> None:
    first, second = [0, 1, 0, 1, 1.0], [1, 1, 0, 0, 1.0]
    assert paired_bootstrap(first, second, seed=1) == paired_bootstrap(first, second, seed=1)
    assert (
        paired_bootstrap(first, second, seed=1, draws=501).standard_error
        != paired_bootstrap(first, second, seed=2, draws=501).standard_error
    )


@pytest.mark.parametrize(
    ("first", "second", "weights"),
    [([], [], None), ([1.0], [1.0, 2.0], None), ([1.0, math.nan], [0.0, 0.0], None), ([1.0, 2.0], [1.0, 2.0], [1, 0])],
)
def test_what_cannot_be_compared(first: list[float], second: list[float], weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="scores"):
        paired_bootstrap(first, second, weights=weights)
