"""SPPO with hard labels by hand."""

from math import log

import pytest
import torch
from pair_variants import ratios

from lit_ift.losses import sppo_hard_loss


def test_hand_derived() -> None:
    """Log-ratios 2 log 3 and -2 log 2 against ±1/(2β) = ±1."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = sppo_hard_loss(**inputs, beta=0.5)
    assert losses.item() == pytest.approx((2 * log(3) - 1) ** 2 + (1 - 2 * log(2)) ** 2, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == pytest.approx([4 * log(3) - 2, 2 - 4 * log(2)], abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(log(6), abs=1e-12)
