"""Exact metrics, against games that are played and sums that are done by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from lakes import SMALL, small_game


def random_policy(cells: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(1, cells, 4, generator=generator, dtype=torch.float64)).softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("slippery", [False, True])
def test_success_return_and_visits_are_those_of_played_games(slippery: bool) -> None:
    """2000 games in gymnasium; the bounds are four standard errors of a share, the widest there is."""
    game = small_game(slippery=slippery, horizon=30)
    policy = random_policy(16, seed=3)
    exact, visits = game.judge(policy), game.visits(policy)[0]
    env, generator, games = FrozenLakeEnv(is_slippery=slippery), np.random.default_rng(0), 2000
    env.reset(seed=0)
    success, returns, counts = 0.0, 0.0, np.zeros(16)
    for _ in range(games):
        cell, ended, moves = 0, False, 0
        env.reset()
        counts[cell] += 1
        while not ended and moves < 30:
            cell, reward, ended, _, _ = env.step(int(generator.choice(4, p=policy[0, cell].numpy())))
            counts[cell] += 1
            success += reward
            returns += reward * 0.99**moves
            moves += 1
    bound = 4 * 0.5 / games**0.5
    assert float(exact["success_sampled"]) > 0.01
    assert abs(float(exact["success_sampled"]) - success / games) < bound
    assert abs(float(exact["return"]) - returns / games) < bound
    np.testing.assert_allclose(visits, counts / games, rtol=0.15, atol=bound)
    assert float(visits[15]) == pytest.approx(float(exact["success_sampled"]))


def test_the_optimal_policy_is_perfect() -> None:
    game = small_game()
    found = {name: float(value) for name, value in game.judge(torch.from_numpy(game.optimal)[None]).items()}
    assert found == pytest.approx(
        {
            "mse_trajectory": 0,
            "mse_all": 0,
            "success_greedy": 1,
            "success_sampled": 1,
            "return": 0.99**5,
            "success_perturbed": 1,
        }
    )


def test_errors_are_of_judged_cells_alone() -> None:
    """Uniform policy: each cell that counts adds (3/4)² + 3·(1/4)² over 4 actions; terminal cells would add nothing."""
    game = small_game()
    policy = torch.full((1, 16, 4), 0.25, dtype=torch.float64)
    assert float(game.judge(policy)["mse_all"]) == pytest.approx(0.1875)
    policy[0, [5, 7, 11, 12, 15]] = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert float(game.judge(policy)["mse_all"]) == pytest.approx(0.1875)
    policy[0, game.chosen.cells[:-1]] = torch.from_numpy(game.optimal)[game.chosen.cells[:-1]]
    assert float(game.judge(policy)["mse_trajectory"]) == 0
    assert float(game.judge(policy)["mse_all"]) == pytest.approx(0.1875 * 5 / 11)


def test_perturbed_starts_by_hand() -> None:
    """Going right: on SFF/FHF/FFG only the last row gets to the goal, 2 of the 6 cells besides the start."""
    game = small_game(map=SMALL, suboptimal="hole")
    policy = torch.zeros(1, 9, 4, dtype=torch.float64)
    policy[..., 2] = 1
    found = game.judge(policy)
    assert float(found["success_perturbed"]) == pytest.approx(2 / 6)
    assert float(found["success_sampled"]) == 0


def test_greedy_play_takes_the_likeliest_action() -> None:
    game = small_game()
    policy = 0.4 * torch.from_numpy(game.optimal)[None] + 0.15
    assert float(game.judge(policy)["success_greedy"]) == 1
    assert float(game.judge(policy)["success_sampled"]) < 0.5


def test_games_end_at_the_horizon() -> None:
    game = small_game()
    policy = torch.from_numpy(game.optimal)[None]
    for horizon, success in ((6, 1), (5, 0)):
        assert float(replace(game, horizon=horizon).judge(policy)["success_sampled"]) == success
