"""APO by hand."""

from math import log

import pytest
import torch
from pair_variants import ratios

from lit_ift.losses import apo_down_loss, apo_zero_loss


def test_zero() -> None:
    """r = log 3 and -log 2: 1 - 3/4 + 1/3, with the slopes -3/16 and 2/9, times β = 1/2."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = apo_zero_loss(**inputs, beta=0.5)
    assert losses.item() == pytest.approx(7 / 12, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == pytest.approx([-3 / 32, 1 / 9], abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(log(3), abs=1e-12)


def test_down() -> None:
    """3/4 + 1 - σ(log 6) = 3/4 + 1/7, with the slopes 3/16 - 6/49 and 6/49: both answers fall."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = apo_down_loss(**inputs, beta=0.5)
    assert losses.item() == pytest.approx(25 / 28, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == pytest.approx([3 / 32 - 3 / 49, 3 / 49], abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(log(6), abs=1e-12)
