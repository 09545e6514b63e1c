"""Differences over seeds and items against numbers derived by hand."""

import math

import numpy as np
import pytest

from lit_ift.evaluation.statistics import paired_bootstrap
from lit_ift.study.statistics import hierarchical_bootstrap, holm


def test_one_seed_draws_items_alone() -> None:
    before, after = [0.1, 0.4, 0.2, 0.9], [0.3, 0.4, 0.1, 1.5]
    assert hierarchical_bootstrap([before], [after], seed=3) == paired_bootstrap(before, after, seed=3)


def test_the_standard_error_is_that_of_two_crossed_samples() -> None:
    """d = a + b with a of seeds and b of items: the variances of both means add up, that of seeds with S - 1."""
    of_seeds, of_items = np.array([-1.0, 1.0, 3.0, 1.0]), np.array([0.0, 2.0, 4.0, 0.0, -1.0])
    differences = of_seeds[:, None] + of_items[None, :]
    found = hierarchical_bootstrap(np.zeros_like(differences), differences, draws=50_000)
    assert found.value == pytest.approx(2.0)  # 1 + 1
    variance = of_seeds.var(ddof=1) / 4 + of_items.var() / 5  # 8/3 / 4 + 3.2 / 5
    assert variance == pytest.approx(2 / 3 + 0.64)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=0.02)
    assert found.low < found.value < found.high
    assert found.n == 5


def test_no_difference_and_a_sure_one() -> None:
    scores = np.arange(12.0).reshape(3, 4)
    same = hierarchical_bootstrap(scores, scores)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    sure = hierarchical_bootstrap(scores, scores + 1, draws=999)
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)
    assert sure.p_value == pytest.approx(2 / 1000)


def test_the_p_value_keeps_its_promise_where_there_is_no_difference() -> None:
    """With 8 seeds and 30 items about one in twenty studies finds what is not there."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        differences = rng.normal(size=(8, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(8, 30))
        found += hierarchical_bootstrap(np.zeros((8, 30)), differences, draws=500).p_value < 0.05
    assert 200 * 0.02 < found < 200 * 0.12


@pytest.mark.parametrize(
    ("before", "after"),
    [([[1.0]], [[1.0, 2.0]]), ([1.0], [1.0]), ([[], []], [[], []]), ([[1], [2]], [[math.nan], [2]])],
)
def test_what_is_no_table_is_refused(before: object, after: object) -> None:
    with pytest.raises(ValueError, match="scores"):
        hierarchical_bootstrap(before, after)


def test_holm_by_hand() -> None:
    # Ordered .01, .02, .03, .04: times 4, 3, 2, 1 gives .04, .06, .06 and .04, which may not fall below .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    adjusted = holm([math.nan, 0.02])  # One test: nothing to adjust for.
    assert math.isnan(adjusted[0])
    assert adjusted[1] == 0.02
    assert holm([]) == []
