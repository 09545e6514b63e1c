"""GDPO and GIPO: values by hand, their hard-label limits, gradients, extremes."""

import math

import pytest
import torch
from torch import Tensor

from lit_ift.losses import PairLoss
from lit_ift.losses.pair.reference import dpo_loss
from lit_ift.losses.pair.soft_labels import gdpo_loss, gipo_loss

LOSSES = [gdpo_loss, gipo_loss]


def pairs(seed: int = 0, scale: float = 5.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-scale * torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_values_by_hand() -> None:
    """Log-ratios 2 and -3 nats, β = 0.1, p̂ = 0.9: h = 0.1 · 5 = 0.5 and 2p̂ - 1 = 0.8.

    GDPO: -log σ(0.4) = log(1 + e^-0.4). GIPO: (0.8 · 5 - 1/0.2)² = (4 - 5)² = 1.
    """
    arguments = [torch.tensor([v], dtype=torch.float64) for v in (-1, -6, -3, -3, 0.9)]
    gdpo, metrics = gdpo_loss(*arguments, beta=0.1)
    gipo, _ = gipo_loss(*arguments, beta=0.1)
    assert gdpo.item() == pytest.approx(math.log(1 + math.exp(-0.4)), abs=1e-12)
    assert gipo.item() == pytest.approx(1.0, abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(0.2)
    assert metrics["rewards/margins"].item() == pytest.approx(0.5)


def test_certain_labels_give_dpo_and_ipo() -> None:
    inputs, ones = pairs(), torch.ones(4, dtype=torch.float64)
    assert torch.equal(gdpo_loss(*inputs, ones, beta=0.3)[0], dpo_loss(*inputs, beta=0.3)[0])
    difference = (inputs[0] - inputs[2]) - (inputs[1] - inputs[3])
    assert torch.equal(gipo_loss(*inputs, ones, beta=0.3)[0], (difference - 1 / 0.6) ** 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_coin_flip_has_no_gradient_and_a_surer_label_has_more(loss) -> None:
    chosen = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(3, dtype=torch.float64)
    preference = torch.tensor([0.5, 0.7, 1.0], dtype=torch.float64)
    loss(chosen, zeros, zeros, zeros, preference)[0].sum().backward()
    assert chosen.grad[0] == 0
    assert chosen.grad[2] < chosen.grad[1] < 0


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss) -> None:
    inputs, preference = pairs(1), torch.tensor([0.5, 0.6, 0.8, 1.0], dtype=torch.float64)
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: loss(*a, preference)[0], inputs)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chosen", [-1e4, 0.0])
def test_extremes_are_finite(loss, chosen: float) -> None:
    policy = torch.tensor([chosen, -1e4 - chosen], requires_grad=True)
    zeros = torch.zeros(2)
    losses, _ = loss(policy, -1e4 - policy, zeros, zeros, torch.tensor([0.5, 1.0]))
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_arguments(loss) -> None:
    with pytest.raises(ValueError, match=r"beta=0 must be above 0"):
        PairLoss(loss.__name__.removesuffix("_loss"), {"beta": 0})
    with pytest.raises(ValueError, match=r"preference \(3,\)"):
        loss(*pairs(), torch.ones(3))
