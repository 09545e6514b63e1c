"""Every objective is the collection's own loss of the routes' log-probabilities: values and gradients."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from lakes import lesson_of, loss_of, members_of, small_game
from torch import Tensor

from lit_ift.frozen_lake.methods import DPO, IFT, IPO, KTO, ORPO, SFT, UFT, Lesson, Objective, route_logps
from lit_ift.frozen_lake.policy import Members, PolicyModule, train
from lit_ift.losses import dpo_loss, ift_loss, ipo_loss, orpo_loss, sft_loss
from lit_ift.losses.kto import kl_baseline, kto_loss
from lit_ift.losses.uft import uft_loss

SEEDS = [0, 1, 2]


def by_hand(policy: Members, lesson: Lesson, member: int, sees: Tensor | None = None) -> tuple[Tensor, ...]:
    """Log-probabilities of one member's actions on both routes, one cell at a time, and the reference's sums."""
    first, first_bias, second, second_bias = (weight[member] for weight in policy.weights())

    def logp(seen: Tensor, action: int) -> Tensor:
        return ((seen @ first + first_bias[0]).relu() @ second + second_bias[0]).log_softmax(-1)[action]

    found = []
    for route in (lesson.game.chosen, lesson.game.rejected):
        rows = policy.features[route.cells[:-1]]
        if sees is not None and route is lesson.game.chosen:
            rows = sees
        found.append(torch.stack([logp(row, action) for row, action in zip(rows, route.actions, strict=True)]))
    chosen, rejected = (
        lesson.reference[member, route.cells[:-1], route.actions].sum().view(1)
        for route in (lesson.game.chosen, lesson.game.rejected)
    )
    return found[0], found[1], chosen, rejected


def length(logps: Tensor) -> Tensor:
    return torch.tensor([float(len(logps))], dtype=logps.dtype)


def of_sft(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return sft_loss(-c[None], torch.ones(1, len(c), dtype=torch.bool))[0][0]


def of_dpo(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return dpo_loss(c.sum().view(1), r.sum().view(1), rc, rr, beta=0.3)[0][0]


def of_orpo(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return orpo_loss(c.sum().view(1), r.sum().view(1), length(c), length(r), beta=0.25)[0][0]


def of_ipo(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return ipo_loss(c.sum().view(1), r.sum().view(1), rc, rr, length(c), length(r), beta=0.1)[0][0]


def of_kto(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    logps, reference = torch.stack([c.sum(), r.sum()]), torch.cat([rc, rr])
    kl = kl_baseline(logps.flip(0), reference.flip(0))
    return kto_loss(logps, reference, torch.tensor([True, False]), kl, beta=0.2)[0].mean()


def of_uft(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    rewards = 0.2 * torch.cat([c.sum() - rc, r.sum() - rr])
    return uft_loss(rewards, torch.tensor([1.0, 0.0], dtype=rewards.dtype), discrepancy="mse")[0].mean()


@pytest.mark.parametrize(
    ("objective", "slow"),
    [
        (SFT(), of_sft),
        (DPO(beta=0.3), of_dpo),
        (ORPO(), of_orpo),
        (IPO(), of_ipo),
        (KTO(beta=0.2), of_kto),
        (UFT(beta=0.2), of_uft),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_losses_are_the_collections_own(objective: Objective, slow: Callable[..., Tensor]) -> None:
    game = small_game()
    policy = members_of(game, SEEDS)
    lesson = lesson_of(game, policy)
    lesson.reference = members_of(game, [7, 8, 9]).table().detach()
    losses = objective.losses(policy, lesson, 0)
    expected = torch.stack([slow(*by_hand(policy, lesson, member)) for member in range(len(SEEDS))])
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    parameters = list(policy.parameters())
    gradients, wanted = (torch.autograd.grad(value.sum(), parameters) for value in (losses, expected))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-12)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients)


@pytest.mark.parametrize("objective", [IFT(), IFT(lam=0.7, gamma=0.5, norm="softmax", detach_weights=True)], ids=repr)
def test_ift_sees_a_mixture_of_the_true_and_the_expected_cell(objective: IFT) -> None:
    """Move by move: from the previous true cell, the greedy action, the cell that it leads to, the mean of both."""
    game = small_game()
    policy = members_of(game, SEEDS)
    lesson = lesson_of(game, policy)
    losses = objective.losses(policy, lesson, 0)
    cells, expected, parted = lesson.game.chosen.cells, [], 0
    for member in range(len(SEEDS)):
        sees = [policy.features[cells[0]]]
        for before, here in pairwise(cells[:-1]):
            after = int(game.lake.aim[before, int(policy.table()[member, before].argmax())])
            parted += after != here
            sees.append((1 - objective.lam) * policy.features[here] + objective.lam * policy.features[after])
        nll = -by_hand(policy, lesson, member, torch.stack(sees))[0]
        options = {"gamma": objective.gamma, "norm": objective.norm, "detach_weights": objective.detach_weights}
        expected.append(ift_loss(nll[None], torch.ones(1, len(nll), dtype=torch.bool), **options)[0][0])
    assert parted > 3
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-12, atol=1e-12)
    parameters = list(policy.parameters())
    for gradient, want in zip(
        torch.autograd.grad(losses.sum(), parameters),
        torch.autograd.grad(torch.stack(expected).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-12)


def test_ift_without_lambda_and_gamma_is_sft_bit_for_bit() -> None:
    game = small_game()
    trained = []
    for objective in (IFT(lam=0, gamma=0), SFT()):
        policy = members_of(game, SEEDS, rates=2)
        train(PolicyModule(policy, loss_of(objective, lesson_of(game, policy)), [1e-3, 1e-1], 20, 0.1))
        trained.append(policy.policies())
    assert torch.equal(*trained)
    assert not torch.equal(trained[0][:3], members_of(game, SEEDS).policies())


def test_noisy_lambda_is_drawn_for_each_seed_and_step() -> None:
    game = small_game()
    policy = members_of(game, SEEDS, rates=2)
    lesson, noisy = lesson_of(game, policy), IFT(lam_noise=0.5)
    lam = noisy._lam(policy, lesson, 4)
    assert isinstance(lam, Tensor)
    of_members = lam.view(6, 5)
    assert (of_members == of_members[:, :1]).all()
    assert torch.equal(of_members[:3], of_members[3:])
    assert len(set(of_members[:3, 0].tolist())) == 3
    assert not torch.equal(lam, noisy._lam(policy, lesson, 5))
    assert ((lam >= 0) & (lam <= 1)).all()


def test_on_slippery_ice_the_expected_cell_is_where_the_move_aims() -> None:
    game = small_game(slippery=True, horizon=100)
    policy = members_of(game, [0])
    lesson = lesson_of(game, policy)
    fused = IFT(lam=1.0).fused(policy, lesson, 0)[0]
    cells = lesson.game.chosen.cells[:-1]
    aims = [int(game.lake.aim[cell, int(policy.table()[0, cell].argmax())]) for cell in cells[:-1]]
    assert fused.argmax(-1).tolist() == [cells[0], *aims]


def test_route_logps() -> None:
    game = small_game()
    policy = members_of(game, SEEDS)
    table = policy.table()
    expected = table[:, game.rejected.cells[:-1], game.rejected.actions]
    torch.testing.assert_close(route_logps(policy, game.rejected), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (IFT, {"lam": 1.5}),
        (IFT, {"lam_noise": -1}),
        (IFT, {"lam_noise": float("nan")}),
        (IFT, {"gamma": 2}),
        (IFT, {"norm": "l3"}),
        (DPO, {"beta": -1}),
        (ORPO, {"beta": 0}),
        (IPO, {"beta": 0}),
        (KTO, {"beta": 0}),
        (UFT, {"beta": 0}),
    ],
    ids=repr,
)
def test_bad_options_are_refused_before_training(kind: type, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)
