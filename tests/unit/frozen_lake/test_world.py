"""The lake: its checks, its tables, and planning on it."""

import sys

import numpy as np
import pytest
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from lakes import SMALL

from lit_ift.errors import UserError
from lit_ift.frozen_lake.world import make_lake, optimal_policy, value_iteration

LEFT, DOWN, RIGHT, UP = range(4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty"),
        (["SFG", ""], "empty row"),
        (["SFG", "FF"], "row 2, 'FF', has 2 cells, row 1 has 3"),
        (["SFG", "FxF"], "row 2, column 2 is 'x'"),
        (["FFG"], "has 0 starts"),
        (["SFG", "FSF"], "2 starts: row 1 column 1, row 2 column 2"),
        (["SFF", "FFH"], "no goal"),
        (["SHG", "HFF"], "no path leads from the start (row 1 column 1)"),
        (["sfg"], "row 1, column 1 is 's'"),
        ("5x5", "lake.map='5x5' is none of gymnasium's maps: 4x4, 8x8"),
    ],
)
def test_bad_maps_say_what_to_mend(rows: list[str] | str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_lake(rows)
    assert message in str(caught.value)


def test_gymnasium_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium.envs.toy_text", None)
    with pytest.raises(UserError, match=r"pip install 'lit-ift\[lake\]'"):
        make_lake("4x4")


@pytest.mark.parametrize("slippery", [False, True])
@pytest.mark.parametrize("name", ["4x4", "8x8"])
def test_tables_are_gymnasiums(name: str, slippery: bool) -> None:
    table = FrozenLakeEnv(map_name=name, is_slippery=slippery).P
    lake = make_lake(name, slippery=slippery)
    for cell, action in np.ndindex(lake.reward.shape):
        chances, gain = np.zeros(lake.num_cells), 0.0
        for chance, after, reward, _ in table[cell][action]:
            chances[after] += chance
            gain += chance * reward
        np.testing.assert_allclose(lake.transition[cell, action], chances, rtol=0, atol=1e-12)
        assert lake.reward[cell, action] == pytest.approx(gain)
        spread = np.zeros(lake.num_cells)
        np.add.at(spread, lake.outcomes[cell, action], lake.chances[cell, action])
        np.testing.assert_allclose(spread, chances, rtol=0, atol=1e-12)
    assert lake.transition.sum(-1) == pytest.approx(1)


@pytest.mark.parametrize("rows", [["SFFG"], ["S", "F", "F", "G"]])
def test_a_lake_of_one_row_or_column(rows: list[str]) -> None:
    lake = make_lake(rows)
    ahead = RIGHT if len(rows) == 1 else DOWN
    assert lake.aim[:3, ahead].tolist() == [1, 2, 3]
    assert lake.reward[2, ahead] == 1
    assert optimal_policy(lake, 0.9)[:3, ahead].tolist() == [1, 1, 1]


def test_values_of_a_small_lake_by_hand() -> None:
    """SFF/FHF/FFG: cells 0 to 8, a hole at 4, the goal at 8; the reward of 1 comes with the move onto the goal."""
    values, of_moves = value_iteration(make_lake(SMALL), 0.5)
    expected = np.array([1 / 8, 1 / 4, 1 / 2, 1 / 4, 0, 1, 1 / 2, 1, 0])
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert of_moves[5] == pytest.approx([0, 1, 1 / 2, 1 / 4])  # left into the hole, down onto the goal, stay, up
    assert of_moves[0] == pytest.approx([1 / 16, 1 / 8, 1 / 8, 1 / 16])


def test_values_of_a_slippery_lake_by_hand() -> None:
    """SG: left keeps to the cell for sure; right, up and down slip, and reach the goal in one case of three each."""
    values, of_moves = value_iteration(make_lake(["SG"], slippery=True), 0.9)
    # v = 1/3 + 2/3 · 0.9 · v for each of the three.
    assert values[0] == pytest.approx((1 / 3) / (1 - 0.6))
    assert of_moves[0, LEFT] == pytest.approx(0.9 * values[0])
    assert of_moves[0, DOWN] == pytest.approx(of_moves[0, RIGHT])


def test_far_away_values_are_not_lost_in_rounding() -> None:
    """At a discount of 0.05 the start of 8x8 is worth 0.05^13 = 1e-17."""
    lake = make_lake("8x8")
    policy = optimal_policy(lake, 0.05)
    cell, moves = lake.start, 0
    while not lake.terminal[cell]:
        cell, moves = int(lake.aim[cell, policy[cell].argmax()]), moves + 1
        assert moves <= 14
    assert moves == 14
    assert lake.goal[cell]


def test_a_discount_that_leaves_nothing_of_the_goal_is_refused() -> None:
    with pytest.raises(UserError, match=r"lake\.discount=1e-60.* nearer to 1"):
        optimal_policy(make_lake("4x4"), 1e-60)


def test_ties_take_the_first_action() -> None:
    first = optimal_policy(make_lake(SMALL), 0.9)
    assert first[0].tolist() == first[5].tolist() == [0, 1, 0, 0]
    assert (first.sum(1) == 1).all()


def test_cells_that_cannot_be_reached_are_not_judged() -> None:
    lake = make_lake(["SFHF", "FGHF"])
    assert lake.judged.reshape(2, 4).tolist() == [[True, True, False, False], [True, False, False, False]]
    assert (optimal_policy(lake, 0.9)[3] == 0.25).all()
