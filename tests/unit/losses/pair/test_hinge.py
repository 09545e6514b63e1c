"""The hinge loss by hand."""

from math import log

import pytest
import torch
from pair_variants import ratios

from lit_ift.losses import hinge_loss


def test_hand_derived() -> None:
    """r = log(3/2) and -log(5/4), h = log(15/8) < 1: loss 1 - h and the gradients -β and β."""
    inputs = ratios(3 / 2, 4 / 5)
    losses, metrics = hinge_loss(**inputs, beta=0.5)
    assert losses.item() == pytest.approx(1 - log(15 / 8), abs=1e-12)
    gradients = torch.autograd.grad(losses.sum(), [inputs["chosen_logps"], inputs["rejected_logps"]])
    assert [g.item() for g in gradients] == [-0.5, 0.5]
    assert metrics["rewards/chosen"].item() == pytest.approx(log(1.5), abs=1e-12)


def test_nothing_is_left_to_learn_beyond_the_margin() -> None:
    """h = log 6 > 1."""
    inputs = ratios(3, 1 / 2)
    losses, _ = hinge_loss(**inputs, beta=0.5)
    assert losses.item() == 0.0
    assert torch.autograd.grad(losses.sum(), inputs["chosen_logps"])[0].item() == 0.0
