"""EXO by hand."""

from math import log

import pytest
import torch
from pair_variants import ratios

from lit_ift.losses import exo_loss


def test_hand_derived() -> None:
    """q = σ(log 6) = 6/7 against 3/4: 6/7 log(6/7 · 4/3) + 1/7 log(1/7 · 4).

    d loss / dh = q (1 - q) (h - log 3), as the divergence is stationary in its own logarithms: 6/49 log 2.
    """
    inputs = ratios(3, 1 / 2)
    losses, metrics = exo_loss(**inputs, beta=0.5, label_smoothing=0.25)
    assert losses.item() == pytest.approx(6 / 7 * log(8 / 7) + 1 / 7 * log(4 / 7), abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == pytest.approx([3 / 49 * log(2), -3 / 49 * log(2)], abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(log(6), abs=1e-12)


def test_no_loss_where_the_policy_agrees_with_the_label() -> None:
    """h = log 3: q = 3/4."""
    inputs = ratios(3, 1)
    losses, _ = exo_loss(**inputs, beta=0.5, label_smoothing=0.25)
    assert losses.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(losses.sum(), inputs["chosen_logps"])[0].item() == pytest.approx(0, abs=1e-12)
