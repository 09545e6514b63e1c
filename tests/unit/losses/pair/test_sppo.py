"""SPPO with hard labels by hand."""

from math import log

import pytest
import torch
from torch import Tensor

from lit_ift.losses import sppo_hard_loss


def ratios(chosen: float, rejected: float, beta: float = 0.5) -> dict[str, Tensor]:
    """One pair with rewards ``log(chosen)`` and ``log(rejected)``, so that sigmoids are fractions."""
    inputs = {
        "chosen_logps": log(chosen) / beta - 7,
        "rejected_logps": log(rejected) / beta - 11,
        "reference_chosen_logps": -7.0,
        "reference_rejected_logps": -11.0,
    }
    return {name: torch.tensor([value], dtype=torch.float64, requires_grad=True) for name, value in inputs.items()}


def test_hand_derived() -> None:
    """Log-ratios 2 log 3 and -2 log 2 against ±1/(2β) = ±1."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = sppo_hard_loss(**inputs, beta=0.5)
    assert losses.item() == pytest.approx((2 * log(3) - 1) ** 2 + (1 - 2 * log(2)) ** 2, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == pytest.approx([4 * log(3) - 2, 2 - 4 * log(2)], abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(log(6), abs=1e-12)
