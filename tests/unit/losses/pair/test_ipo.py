"""IPO by hand."""

from math import log

import pytest
import torch
from pair_variants import ratios
from torch import Tensor

from lit_ift.losses import ipo_loss


def lengths(chosen: float, rejected: float) -> dict[str, Tensor]:
    return {"chosen_lengths": torch.tensor([chosen]).double(), "rejected_lengths": torch.tensor([rejected]).double()}


def test_hand_derived() -> None:
    """Log-ratios 2 log 3 and -2 log 2 with β = 1/2: (2 log 6 - 1)², whatever the lengths."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = ipo_loss(**inputs, **lengths(2, 4), beta=0.5)
    assert losses.item() == pytest.approx((2 * log(6) - 1) ** 2, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == pytest.approx([4 * log(6) - 2, 2 - 4 * log(6)], abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(log(3), abs=1e-12)


def test_per_token() -> None:
    """Over 2 and 4 tokens the log-ratios are log 3 and -log(2)/2: (log 3 + log(2)/2 - 1)²."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = ipo_loss(**inputs, **lengths(2, 4), beta=0.5, average=True)
    delta = log(3) + log(2) / 2
    assert losses.item() == pytest.approx((delta - 1) ** 2, abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(delta / 2, abs=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), inputs["rejected_logps"])
    assert gradient.item() == pytest.approx(-2 * (delta - 1) / 4, abs=1e-12)


def test_the_target_margin_is_the_minimum() -> None:
    """A margin of 1/(2β) = 1 nat: no loss and no gradient."""
    inputs = {name: tensor.detach() for name, tensor in ratios(1, 1).items()}
    inputs["chosen_logps"] = (inputs["chosen_logps"] + 1).requires_grad_()
    losses, _ = ipo_loss(**inputs, **lengths(2, 4), beta=0.5)
    assert losses.item() == 0.0
    assert torch.autograd.grad(losses.sum(), inputs["chosen_logps"])[0].item() == 0.0
