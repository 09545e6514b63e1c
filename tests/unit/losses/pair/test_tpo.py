"""TPO by hand: gold answers of 5 tokens and -10 nats."""

from math import exp, log

import pytest
import torch

from lit_ift.losses import tpo_l_loss, tpo_loss


def column(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def test_hand_derived() -> None:
    """r = β (-4 + 2 log 2) and -4β with β = 1/2: h = log 2, loss log(3/2) + α · 2."""
    chosen, rejected, gold = column(-4 + 2 * log(2)), column(-4.0), column(-10.0)
    losses, metrics = tpo_loss(chosen, rejected, gold, column(5.0), beta=0.5, alpha=0.25)
    assert losses.item() == pytest.approx(log(1.5) + 0.5, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [chosen, rejected, gold])
    assert [g.item() for g in gradients] == pytest.approx([-1 / 6, 1 / 6, -0.05], abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(log(2), abs=1e-12)
    assert metrics["nll_loss"].item() == 2.0


def test_hinge() -> None:
    losses, _ = tpo_loss(
        column(-4 + 2 * log(2)), column(-4.0), column(-10.0), column(5.0), beta=0.5, alpha=1.0, loss_type="hinge"
    )
    assert losses.item() == pytest.approx(1 - log(2) + 2, abs=1e-12)


def test_length_normalised() -> None:
    """Means -1 and -2 over 2 and 4 tokens, β = 2: h = -2 + 4 - γ = 3/2."""
    chosen, gold = column(-2.0), column(-10.0)
    losses, metrics = tpo_l_loss(
        chosen, column(-8.0), column(2.0), column(4.0), gold, column(5.0), beta=2.0, gamma=0.5, alpha=0.25
    )
    assert losses.item() == pytest.approx(log(1 + exp(-1.5)) + 0.5, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [chosen, gold])
    assert [g.item() for g in gradients] == pytest.approx([-1 / (1 + exp(1.5)), -0.05], abs=1e-12)
    assert metrics["rewards/chosen"].item() == -2.0
    assert metrics["nll_loss"].item() == 2.0
