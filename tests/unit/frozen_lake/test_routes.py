"""The optimal and the sub-optimal route."""

import time

import numpy as np
import pytest
from lakes import SMALL, small_game

from lit_ift.errors import UserError

FORK = ["SFFFF", "FHHHF", "FHFFF", "FHFHH", "FFFFG"]


def test_routes_of_gymnasiums_small_map() -> None:
    game = small_game()
    assert game.chosen.cells == [0, 4, 8, 9, 13, 14, 15]
    assert game.chosen.actions == [1, 1, 2, 1, 2, 2]
    assert game.rejected.cells == [0, 1, 2, 6, 10, 9, 13, 14, 15]
    assert small_game(suboptimal="hole").rejected.cells == [0, 1, 5]


def test_the_fork() -> None:
    game = small_game(map=FORK)
    assert (len(game.chosen.actions), len(game.rejected.actions)) == (8, 12)
    assert set(game.chosen.cells) & set(game.rejected.cells) == {0, 22, 23, 24}


@pytest.mark.parametrize("kind", ["longer", "hole"])
@pytest.mark.parametrize("name", ["4x4", "8x8"])
def test_routes_can_be_walked(name: str, kind: str) -> None:
    game = small_game(map=name, suboptimal=kind)
    for route in (game.chosen, game.rejected):
        assert route.cells[0] == game.lake.start
        assert not game.lake.terminal[route.cells[:-1]].any()
        assert game.lake.aim[route.cells[:-1], route.actions].tolist() == route.cells[1:]
        assert len(set(route.cells)) == len(route.cells)
    assert game.lake.goal[game.chosen.cells[-1]]
    assert game.lake.goal[game.rejected.cells[-1]] == (kind == "longer")
    assert kind == "hole" or len(game.rejected.actions) > len(game.chosen.actions)


@pytest.mark.parametrize("kind", ["longer", "hole"])
def test_slippery_routes_are_games_with_a_fixed_seed(kind: str) -> None:
    game, again = (small_game(slippery=True, horizon=100, suboptimal=kind) for _ in range(2))
    assert (game.chosen, game.rejected) == (again.chosen, again.rejected)
    for route in (game.chosen, game.rejected):
        for cell, action, after in zip(route.cells[:-1], route.actions, route.cells[1:], strict=True):
            assert game.lake.transition[cell, action, after] > 0
    assert game.optimal[game.chosen.cells[:-1], game.chosen.actions] == pytest.approx(1)
    assert game.lake.goal[game.chosen.cells[-1]]
    if kind == "hole":
        assert not game.lake.goal[game.rejected.cells[-1]]
    else:
        assert game.lake.goal[game.rejected.cells[-1]]
        assert len(game.rejected.actions) > len(game.chosen.actions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": SMALL}, "no longer way to a goal within lake.horizon=30 moves. Take lake.suboptimal='hole'"),
        ({"map": ["SFG"], "suboptimal": "hole"}, "no way into a hole"),
        ({"map": "8x8", "horizon": 13}, "takes more than lake.horizon=13 moves"),
        ({"slippery": True, "horizon": 5}, "None of 50 games of the optimal policy reaches a goal"),
    ],
)
def test_a_lake_without_such_a_route_says_so(options: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_ift.frozen_lake.routes.TRIES", 50)
    with pytest.raises(UserError) as caught:
        small_game(**options)
    assert message in str(caught.value)


def test_a_dead_end_is_not_searched_through() -> None:
    """A room with one door holds no longer way. Trying all ways through it would take minutes."""
    rows = ["SFFFFFFG", "HFHHHHHH", *["FFFFFFFF"] * 4]
    before = time.process_time()
    with pytest.raises(UserError, match="no longer way to a goal"):
        small_game(map=rows, horizon=100)
    assert time.process_time() - before < 2


def test_the_sub_optimal_route_leaves_as_early_as_it_can() -> None:
    """The corridor admits a detour only at its end."""
    game = small_game(map=["SFFFF", "HHHFF", "HHHFG"])
    shared = np.argmin(np.array(game.chosen.cells[:6]) == np.array(game.rejected.cells[:6]))
    assert shared >= 4
