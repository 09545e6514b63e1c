"""DPO by hand: rewards are logarithms of fractions."""

from math import log

import pytest
import torch
from pair_variants import ratios

from lit_ift.losses import dpo_loss


def test_hand_derived() -> None:
    """r = log 3 and -log 2, so h = log 6 and σ(h) = 6/7: loss log(7/6), d loss / d chosen = -β (1 - 6/7)."""
    inputs = ratios(3, 1 / 2)
    losses, metrics = dpo_loss(**inputs, beta=0.5)
    assert losses.item() == pytest.approx(log(7 / 6), abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), list(inputs.values()))
    assert [g.item() for g in gradients] == pytest.approx([-1 / 14, 1 / 14, 1 / 14, -1 / 14], abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(log(3), abs=1e-12)
    assert metrics["rewards/rejected"].item() == pytest.approx(-log(2), abs=1e-12)
    assert metrics["rewards/margins"].item() == pytest.approx(log(6), abs=1e-12)
    assert metrics["rewards/accuracies"].item() == 1.0


def test_a_flipped_share_of_labels() -> None:
    """σ(-h) = 1/7: loss 3/4 log(7/6) + 1/4 log 7, with the gradient β (-3/4 · 1/7 + 1/4 · 6/7) = 3/56."""
    inputs = ratios(3, 1 / 2)
    losses, _ = dpo_loss(**inputs, beta=0.5, label_smoothing=0.25)
    assert losses.item() == pytest.approx(0.75 * log(7 / 6) + 0.25 * log(7), abs=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), inputs["chosen_logps"])
    assert gradient.item() == pytest.approx(3 / 56, abs=1e-12)


def test_without_reference() -> None:
    """The log-probabilities are the rewards over β: -1 and -1 - 2 log 2 give h = log 2 and the loss log(3/2)."""
    chosen, other = torch.tensor([-1.0]).double(), torch.tensor([-100.0]).double()
    losses, _ = dpo_loss(chosen, chosen - 2 * log(2), other, other / 7, beta=0.5, reference_free=True)
    assert losses.item() == pytest.approx(log(1.5), abs=1e-12)
