"""Robust DPO by hand."""

from math import log

import pytest
import torch
from pair_variants import ratios

from lit_ift.losses import dpo_loss, robust_dpo_loss


def test_hand_derived() -> None:
    """r = log 3 and -log 2: σ(h) = 6/7 and σ(-h) = 1/7, so [3/4 log(7/6) - 1/4 log 7] / (1/2)."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = robust_dpo_loss(**inputs, beta=0.5, label_smoothing=0.25)
    assert losses.item() == pytest.approx(1.5 * log(7 / 6) - 0.5 * log(7), abs=1e-12)
    # β [-3/4 · 1/7 - 1/4 · 6/7] / (1/2)
    (gradient,) = torch.autograd.grad(losses.sum(), inputs["chosen_logps"])
    assert gradient.item() == pytest.approx(-9 / 28, abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(log(6), abs=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.4])
def test_unbiased_under_flipped_labels(epsilon: float) -> None:
    """(1 - ε) loss(w, l) + ε loss(l, w) is the DPO loss of (w, l): the property that the method is built on."""
    right, flipped = ratios(3, 1 / 2), ratios(1 / 2, 3)
    options = {"beta": 0.5, "label_smoothing": epsilon}
    mean = (1 - epsilon) * robust_dpo_loss(**right, **options)[0] + epsilon * robust_dpo_loss(**flipped, **options)[0]
    torch.testing.assert_close(mean, dpo_loss(**right, beta=0.5)[0])
