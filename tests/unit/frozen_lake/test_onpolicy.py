"""REINFORCE and PPO: games, gradients, and that they find the goal."""

from dataclasses import replace

import pytest
import torch
from lakes import lesson_of, loss_of, members_of, small_game

from lit_ift.frozen_lake.methods import SFT
from lit_ift.frozen_lake.onpolicy import PPO, Reinforce, play
from lit_ift.frozen_lake.policy import PolicyModule, train


@pytest.mark.parametrize("slippery", [False, True])
def test_games_follow_policy_and_lake(slippery: bool) -> None:
    """The share of games that reach the goal, and the visits, are the exact ones, within four standard errors."""
    game = small_game(slippery=slippery, horizon=30)
    policies = members_of(game, [0, 1]).policies()
    policies[1] = 0.8 * torch.from_numpy(game.optimal) + 0.05
    lesson, count = lesson_of(game, members_of(game, [0, 1])), 4000
    games = play(policies, lesson, [0, 1], 0, count)
    exact = game.judge(policies)
    reached = (games.returns[:, 0] > 0).double().mean(-1)
    assert (reached - exact["success_sampled"]).abs().max() < 4 * 0.5 / count**0.5
    assert (games.returns[:, 0].mean(-1) - exact["return"]).abs().max() < 4 * 0.5 / count**0.5
    visits = torch.stack([torch.bincount(m[p] // 4, minlength=16) for m, p in zip(*games[:2], strict=True)]) / count
    wanted = game.visits(policies) * ~torch.from_numpy(game.lake.terminal)
    torch.testing.assert_close(visits.double(), wanted, rtol=0.15, atol=0.05)
    assert lesson.moves == pytest.approx(float(games.playing.sum()) / 2)


def test_returns_are_discounted_from_each_move_on() -> None:
    game = small_game()
    policies = torch.from_numpy(game.optimal)[None]
    lesson = lesson_of(game, members_of(game, [0]))
    games = play(policies, lesson, [0], 0, 2)
    assert games.returns[0, :, 0].tolist() == pytest.approx([0.99**k for k in range(5, -1, -1)])
    assert (games.moves[0, :, 0] // 4).tolist() == game.chosen.cells[:-1]
    assert (games.moves[0, :, 0] % 4).tolist() == game.chosen.actions


def test_reinforces_loss_game_by_game() -> None:
    """The sum over moves of log π times what the game won beyond the mean of the others, over the number of games."""
    game = small_game()
    policy = members_of(game, [0, 1])
    train(PolicyModule(policy, loss_of(SFT(), lesson_of(game, policy)), [1e-2], 30, 0.1))
    lesson, table = lesson_of(game, policy), policy.table()
    games = play(table.detach().exp(), lesson, policy.seeds, 3, 6)
    losses = Reinforce(games=6).losses(policy, lesson, 3)
    for member in range(2):
        total = torch.zeros((), dtype=torch.float64)
        won = games.returns[member, 0]
        assert 0 < int((won > 0).sum()) < 6
        for g in range(6):
            others = torch.cat([won[:g], won[g + 1 :]]).mean()
            for move, playing, gain in zip(*(part[member, :, g] for part in games), strict=True):
                if playing:
                    total += (gain - others) * table[member, move // 4, move % 4]
        torch.testing.assert_close(losses[member], -total / 6, rtol=1e-10, atol=1e-12)


def test_reinforce_estimates_the_policy_gradient() -> None:
    """With very many games it comes near the gradient of the exact chance of success, taken through the recursion."""
    game = small_game()
    policy = members_of(game, [0])
    train(PolicyModule(policy, loss_of(SFT(), lesson_of(game, policy)), [1e-2], 30, 0.1))
    parameters = list(policy.parameters())
    lesson = lesson_of(game, policy)
    lesson.game = replace(game, discount=1.0)
    loss = Reinforce(games=20_000).losses(policy, lesson, 0).sum()
    estimated = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    value = game.values(policy.table().exp(), 1.0)[:, game.lake.start].sum()
    exact = -torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
    assert torch.cosine_similarity(estimated, exact, dim=0) > 0.98
    assert float(estimated.norm() / exact.norm()) == pytest.approx(1, abs=0.1)


def test_ppos_loss_is_the_clipped_surrogate_of_every_move() -> None:
    """Against Eq. 7 written out, move by move, one update after the games were played."""
    game = small_game()
    policy = members_of(game, [0, 1])
    train(PolicyModule(policy, loss_of(SFT(), lesson_of(game, policy)), [1e-2], 30, 0.1))
    lesson = lesson_of(game, policy)
    ppo = PPO(games=8, epochs=2, entropy=0.02)
    ppo.losses(policy, lesson, 0)
    before = policy.policies()
    games = play(before, lesson, policy.seeds, 0, 8)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.sin(torch.arange(parameter.numel()).view_as(parameter).double())
    losses, table = ppo.losses(policy, lesson, 1), policy.table()
    clipped = 0
    for member in range(2):
        here = games.playing[member]
        moves, returns = games.moves[member][here], games.returns[member][here]
        cells = moves // 4
        values = torch.stack([returns[cells == cell].mean() for cell in cells])
        advantages = (returns - values) / (returns - values).square().mean().sqrt()
        ratio = (table[member].flatten()[moves] - before[member].log().flatten()[moves]).exp()
        clipped += int(((ratio < 0.8) | (ratio > 1.2)).sum())
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        entropy = -(table[member].exp() * table[member]).sum(-1)[cells].mean()
        torch.testing.assert_close(losses[member], -surrogate - 0.02 * entropy, rtol=1e-10, atol=1e-12)
    assert clipped > 3


@pytest.mark.slow
@pytest.mark.parametrize("objective", [Reinforce(games=8), PPO(games=8)], ids=["reinforce", "ppo"])
def test_it_learns_to_reach_the_goal(objective: Reinforce | PPO) -> None:
    game = small_game(map=["SFF", "FFF", "HFG"], suboptimal="hole")
    policy = members_of(game, [0, 1])
    before = game.judge(policy.policies())["success_sampled"]
    train(PolicyModule(policy, loss_of(objective, lesson_of(game, policy)), [1e-2], 60, 0.1))
    after = game.judge(policy.policies())["success_sampled"]
    assert (after > 0.95).all()
    assert (before < 0.8).all()


def test_members_with_no_success_stand_still() -> None:
    """No reward, no gradient: neither method may make one up, nor divide by nothing."""
    game = small_game(horizon=9)
    policy = members_of(game, [0])
    with torch.no_grad():
        policy.groups[0][3][..., 3] = 50.0  # always up
    for objective in (Reinforce(games=4), PPO(games=4, entropy=0.0)):
        loss = objective.losses(policy, lesson_of(game, policy), 0)
        gradients = torch.autograd.grad(loss.sum(), list(policy.parameters()))
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("kind", "options"), [(Reinforce, {"games": 1}), (PPO, {"epochs": 0}), (PPO, {"clip": 1.0}), (PPO, {"entropy": -1})]
)
def test_bad_options(kind: type, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)
