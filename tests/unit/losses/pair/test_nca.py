"""NCA by hand."""

from math import log

import pytest
import torch
from pair_variants import ratios

from lit_ift.losses import nca_loss


def test_hand_derived() -> None:
    """r = log 3 and -log 2: σ(r_c) = 3/4, σ(-r_c) = 1/4, σ(-r_l) = 2/3.

    d loss / d r_c = -1/4 + 3/8 and d loss / d r_l = 1/2 · 1/3, times β = 1/2.
    """
    inputs = ratios(3, 1 / 2)
    losses, metrics = nca_loss(**inputs, beta=0.5)
    assert losses.item() == pytest.approx(log(4 / 3) + log(4) / 2 + log(3 / 2) / 2, abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == pytest.approx([1 / 16, 1 / 12], abs=1e-12)
    assert metrics["rewards/rejected"].item() == pytest.approx(-log(2), abs=1e-12)


def test_the_chosen_reward_comes_to_rest_at_log_2() -> None:
    inputs = ratios(2, 1 / 5)
    (gradient,) = torch.autograd.grad(nca_loss(**inputs, beta=0.5)[0].sum(), inputs["chosen_logps"])
    assert gradient.item() == pytest.approx(0, abs=1e-12)
