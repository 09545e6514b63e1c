"""CPO by hand: sums of -4 + 2 log 2 and -4 over 2 and 4 tokens."""

from math import log

import pytest
import torch

from lit_ift.losses import cpo_loss

CHOSEN = -4 + 2 * log(2)


def pair() -> tuple[torch.Tensor, ...]:
    columns = torch.tensor([[CHOSEN], [-4.0], [2.0], [4.0]], dtype=torch.float64)
    return columns[0].requires_grad_(), *columns[1:]


def test_hand_derived() -> None:
    """β Δ = log 2: log(3/2) + w (2 - log 2), d loss / d chosen = -β/3 - w/2."""
    inputs = pair()
    losses, metrics = cpo_loss(*inputs, beta=0.5, sft_weight=0.25)
    assert losses.item() == pytest.approx(log(1.5) + 0.25 * (2 - log(2)), abs=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), inputs[0])
    assert gradient.item() == pytest.approx(-1 / 6 - 1 / 8, abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(CHOSEN / 2, abs=1e-12)
    assert metrics["nll_loss"].item() == pytest.approx(2 - log(2), abs=1e-12)


def test_label_smoothing() -> None:
    losses, _ = cpo_loss(*pair(), beta=0.5, sft_weight=0.0, label_smoothing=0.25)
    assert losses.item() == pytest.approx(0.75 * log(1.5) + 0.25 * log(3), abs=1e-12)


def test_hinge() -> None:
    losses, _ = cpo_loss(*pair(), beta=0.5, loss_type="hinge", sft_weight=1.0)
    assert losses.item() == pytest.approx(1 - log(2) + 2 - log(2), abs=1e-12)


def test_ipo_compares_means() -> None:
    """Δ = -2 + log 2 + 1, less 1/(2β) = 1."""
    losses, metrics = cpo_loss(*pair(), beta=0.5, loss_type="ipo", sft_weight=0.0)
    assert losses.item() == pytest.approx((log(2) - 2) ** 2, abs=1e-12)
    assert metrics["rewards/rejected"].item() == -0.5
    assert metrics["rewards/accuracies"].item() == 0.0  # the sums would say 1
