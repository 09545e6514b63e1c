"""ORPO by hand, and where other codes give inf or NaN."""

from math import exp, log

import pytest
import torch

from lit_ift.losses import orpo_loss


def test_hand_derived() -> None:
    """Geometric means p = 3/4 and 1/3 over 2 and 4 tokens: odds 3 and 1/2, log odds ratio log 6, σ = 6/7.

    d log odds / d log p = 1 / (1 - p) = 4 for the chosen and 3/2 for the rejected answer.
    """
    chosen = torch.tensor([2 * log(3 / 4)], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([4 * log(1 / 3)], dtype=torch.float64, requires_grad=True)
    losses, metrics = orpo_loss(chosen, rejected, torch.tensor([2.0]), torch.tensor([4.0]), beta=0.5)
    assert losses.item() == pytest.approx(log(4 / 3) + 0.5 * log(7 / 6), abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [chosen, rejected])
    expected = [-1 / 2 - 0.5 / 7 * 4 / 2, 0.5 / 7 * 1.5 / 4]
    assert [g.item() for g in gradients] == pytest.approx(expected, abs=1e-12)
    assert metrics["log_odds_ratio"].item() == pytest.approx(log(6), abs=1e-12)
    assert metrics["nll_loss"].item() == pytest.approx(log(4 / 3), abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(0.5 * log(3 / 4), abs=1e-12)


def test_a_certain_rejected_answer_is_still_pushed_down() -> None:
    """p = 1 exactly, where a clamp would leave no gradient."""
    chosen = torch.tensor([-1.0], requires_grad=True)
    rejected = torch.tensor([0.0], requires_grad=True)
    losses, _ = orpo_loss(chosen, rejected, torch.tensor([1.0]), torch.tensor([1.0]))
    gradients = torch.autograd.grad(losses.sum(), [chosen, rejected])
    assert losses.isfinite().all()
    assert gradients[0].item() < 0 < gradients[1].item() < float("inf")


def test_a_certain_chosen_answer_keeps_the_limit_of_its_gradient() -> None:
    """β σ(-log OR) / (1 - p) tends to β odds_l as p → 1: the huge slope meets a tiny σ.

    At p = 1 the tangent leaves σ at e^-1 of its value at 2^-23, so the gradient is β odds_l / e there.
    """
    for logp, factor in ((-1e-5, 1.0), (0.0, exp(-1))):
        chosen = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
        one = torch.ones(1, dtype=torch.float64)
        losses, _ = orpo_loss(chosen, torch.log(one / 3), one, one, beta=0.5)
        (gradient,) = torch.autograd.grad(losses.sum(), chosen)
        assert gradient.item() == pytest.approx(-1 - 0.5 * factor * 0.5, rel=1e-4)


def test_the_slope_of_a_certain_rejected_answer_is_bounded() -> None:
    """d log odds / d log p = 1 / (1 - p), at most 101, times σ(-log OR) and β = 0.1.

    At p_w = 1/2 and p_l = 1, log OR = 0 - (0 + log 101 + 100 log(101/100)).
    """
    f = torch.float64
    rejected = torch.tensor([0.0, -1e-8, log(0.98)], dtype=f, requires_grad=True)
    ones = torch.ones(3, dtype=f)
    losses, metrics = orpo_loss(-log(2) * ones, rejected, ones, ones)
    (slope,) = torch.autograd.grad(losses.sum(), rejected)
    odds = 101 * exp(100 * log(101 / 100))
    assert slope.tolist() == pytest.approx([0.1 * 101 * odds / (1 + odds)] * 2 + [0.1 * 50 * 49 / 50], rel=1e-6)
    assert metrics["odds_bounded"].tolist() == [1, 1, 0]
    unbounded, metrics = orpo_loss(-log(2) * ones, rejected, ones, ones, max_odds=8e6)
    (slope,) = torch.autograd.grad(unbounded.sum(), rejected)
    assert slope[0].item() > 5e5
    assert metrics["odds_bounded"].tolist() == [1, 1, 0]
