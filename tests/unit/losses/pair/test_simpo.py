"""SimPO and AlphaPO's reward by hand."""

from math import exp, log

import pytest
import torch

from lit_ift.losses import simpo_loss


def pair(chosen: float, rejected: float) -> tuple[torch.Tensor, ...]:
    """Answers of 2 and 4 tokens with these mean log-probabilities."""
    columns = torch.tensor([[2 * chosen], [4 * rejected], [2.0], [4.0]], dtype=torch.float64)
    return columns[0].requires_grad_(), *columns[1:]


def test_hand_derived() -> None:
    """Means -1 and -2 with β = 2 and γ = 2 · 1/2: h = 2 - 1 = 1, d loss / d sum = -β σ(-1) / 2 tokens."""
    inputs = pair(-1.0, -2.0)
    losses, metrics = simpo_loss(*inputs, beta=2.0, gamma_over_beta=0.5)
    assert losses.item() == pytest.approx(log(1 + exp(-1)), abs=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), inputs[0])
    assert gradient.item() == pytest.approx(-1 / (1 + exp(1)), abs=1e-12)
    assert metrics["rewards/chosen"].item() == -2.0
    assert metrics["rewards/rejected"].item() == -4.0
    assert metrics["nll_loss"].item() == 1.0


def test_the_margin_is_not_part_of_the_rewards() -> None:
    """The chosen answer is better by less than γ: counted as right, with h = 1/2 - 1 below 0."""
    losses, metrics = simpo_loss(*pair(-1.0, -1.25), beta=2.0, gamma_over_beta=0.5)
    assert losses.item() == pytest.approx(log(1 + exp(0.5)), abs=1e-12)
    assert metrics["rewards/accuracies"].item() == 1.0


def test_label_smoothing_and_sft() -> None:
    """h = 1: 3/4 log(1 + 1/e) + 1/4 log(1 + e) + 1/2 · 1."""
    inputs = pair(-1.0, -2.0)
    losses, _ = simpo_loss(*inputs, beta=2.0, gamma_over_beta=0.5, label_smoothing=0.25, sft_weight=0.5)
    expected = 0.75 * log(1 + exp(-1)) + 0.25 * log(1 + exp(1)) + 0.5
    assert losses.item() == pytest.approx(expected, abs=1e-12)


def test_alphapo() -> None:
    """p = 1/4 and 1/16 with α = 1/2: rewards β (1 - 2) / α = -2β and β (1 - 4) / α = -6β; γ = β: h = 3β = 3/2."""
    inputs = pair(-log(4), -log(16))
    losses, metrics = simpo_loss(*inputs, beta=0.5, gamma_over_beta=1.0, alpha=0.5, sft_weight=0.1)
    assert losses.item() == pytest.approx(log(1 + exp(-1.5)) + 0.1 * log(4), abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(-1.0, abs=1e-12)
    assert metrics["rewards/rejected"].item() == pytest.approx(-3.0, abs=1e-12)
    # The nll is of the probability itself, not of the transformed reward.
    assert metrics["nll_loss"].item() == pytest.approx(log(4), abs=1e-12)
