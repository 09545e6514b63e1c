"""TIS-DPO: importance weights and loss by hand, the limit of DPO, gradients."""

import math

import pytest
import torch
from torch import Tensor

from lit_ift.losses.pair.by_token import importance_weights, tis_dpo_loss
from lit_ift.losses.pair.reference import dpo_loss
from lit_ift.losses.registry import PairLoss


def inputs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (4, 6, 4, 6)
    logps = [-4 * torch.rand(count, t, generator=generator, dtype=torch.float64) for t in sizes]
    return [*logps, *(torch.rand(count, t, generator=generator, dtype=torch.float64) for t in (4, 6))]


def test_weights_by_hand() -> None:
    """k = 2, μ = 0.5, [L, U] = [-0.5, 1.5]: ratios -3, 0, 1, 9 are clamped to -0.5, 0, 1, 1.5.

    Negated for a rejected answer, 3, 0, -1, -9 are clamped to 1.5, 0, -0.5, -0.5.
    """
    ratios = torch.tensor([[-3.0, 0.0, 1.0, 9.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    chosen = importance_weights(ratios, mask, k=2.0, mu=0.5)
    rejected = importance_weights(ratios, mask, k=2.0, mu=0.5, sign=-1)
    assert chosen[0].tolist() == pytest.approx([2 * math.exp(0.5 * v) for v in (-0.5, 0, 1, 1.5)] + [0])
    assert rejected[0].tolist() == pytest.approx([2 * math.exp(0.5 * v) for v in (1.5, 0, -0.5, -0.5)] + [0])


def test_weights_take_no_gradient_and_survive_infinite_ratios() -> None:
    ratios = torch.tensor([math.inf, -math.inf, math.nan], requires_grad=True)
    weights = importance_weights(ratios, torch.tensor([True, True, False]))
    assert not weights.requires_grad
    assert weights.tolist() == pytest.approx([math.exp(1.5), math.exp(-0.5), 0])


def test_loss_by_hand() -> None:
    """Token log-ratios (1, 2) with weights (2, 0.5) and (-1,) with weight 3; β = 0.1: 0.1 (2 + 1 + 3) = 0.6.

    Without the weights the rewards are 0.1 (1 + 2) and -0.1.
    """
    f = torch.float64
    losses, metrics = tis_dpo_loss(
        torch.tensor([[-1.0, -1.0]], dtype=f),
        torch.tensor([[-4.0]], dtype=f),
        torch.tensor([[-2.0, -3.0]], dtype=f),
        torch.tensor([[-3.0]], dtype=f),
        torch.tensor([[2.0, 0.5]], dtype=f),
        torch.tensor([[3.0]], dtype=f),
        beta=0.1,
    )
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-0.6)), abs=1e-12)
    assert {name: values.item() for name, values in metrics.items()} == pytest.approx(
        {
            "tis_dpo/chosen": 0.3,
            "tis_dpo/rejected": -0.3,
            "tis_dpo/margins": 0.6,
            "tis_dpo/accuracies": 1.0,
            "rewards/chosen": 0.3,
            "rewards/rejected": -0.1,
            "rewards/margins": 0.4,
            "rewards/accuracies": 1.0,
        }
    )


def test_accuracy_does_not_hear_of_the_weights() -> None:
    """Token log-ratios (1, -3) and (2, -3) add up to -2 and -1; weighted by (1, 0) and (0, 1) they give 1 and -3."""
    logps = [torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, -3.0]])]
    weights = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    _, metrics = tis_dpo_loss(*logps, *(torch.zeros(1, 2) for _ in logps), *weights, beta=1.0)
    assert metrics["rewards/accuracies"].item() == 0
    assert metrics["rewards/margins"].item() == pytest.approx(-1)
    assert metrics["tis_dpo/accuracies"].item() == 1
    assert metrics["tis_dpo/margins"].item() == pytest.approx(4)
    assert not any(values.requires_grad for values in metrics.values())


def test_weights_of_1_give_dpo() -> None:
    arguments = inputs()
    ones = [torch.ones_like(tensor) for tensor in arguments[4:]]
    losses, metrics = tis_dpo_loss(*arguments[:4], *ones, beta=0.3)
    expected, expected_metrics = dpo_loss(*(tensor.sum(-1) for tensor in arguments[:4]), beta=0.3)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-12)
    for name, values in expected_metrics.items():
        torch.testing.assert_close(metrics[name], values, rtol=0, atol=1e-12)


def test_a_heavier_token_gets_more_gradient() -> None:
    arguments = inputs(1)
    arguments[0].requires_grad_()
    losses, _ = tis_dpo_loss(*arguments)
    (gradient,) = torch.autograd.grad(losses.sum(), arguments[0])
    shares = gradient / gradient.sum()
    torch.testing.assert_close(shares, arguments[4] / arguments[4].sum())
    assert (gradient < 0).all()


def test_gradcheck() -> None:
    arguments = inputs()
    for tensor in arguments[:2]:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: tis_dpo_loss(*a, beta=0.2)[0], arguments)


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_extremes_are_finite(size: float) -> None:
    chosen = torch.full((2, 3), size, requires_grad=True)
    zeros, weights = torch.zeros(2, 3), torch.full((2, 3), 100.0)
    losses, _ = tis_dpo_loss(chosen, zeros, zeros, zeros, weights, weights)
    (gradient,) = torch.autograd.grad(losses.sum(), chosen)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_bad_arguments() -> None:
    ratios, mask = torch.ones(2, 3), torch.ones(2, 3).bool()
    for options, message in (
        ({"k": 0}, "k=0 must be above 0"),
        ({"mu": -1}, "mu=-1 must be above 0"),
        ({"low": 2.0, "high": 1.0}, "low=2.0 must be at most high=1.0"),
        ({"sign": 0}, "sign=0 must be 1"),
    ):
        with pytest.raises(ValueError, match=message):
            importance_weights(ratios, mask, **options)
    with pytest.raises(ValueError, match="must be of one shape"):
        importance_weights(ratios, mask[:1])
    arguments = inputs()
    with pytest.raises(ValueError, match="beta=0 must be above 0"):
        PairLoss("tis_dpo", {"beta": 0})
    with pytest.raises(ValueError, match=r"rejected_token_weights \(3, 4\) must all be \(P, T\)"):
        tis_dpo_loss(*arguments[:5], arguments[4])


def test_eta_by_hand() -> None:
    """As in ``test_loss_by_hand``: r = 0.3 and -0.3, margin 0.6.

    Divergences (0.5, 1) with weights (2, 0.5) add up to 1.5, and (2,) with weight 3 to 6. With e = 0.5 the margin is
    0.6 - 0.1 · 0.5 (1.5 - 6) = 0.825, r = 0.225 and -0.6; the rewards without weights hear nothing of it.
    """
    f = torch.float64
    divergences = [torch.tensor(values, dtype=f, requires_grad=True) for values in ([[0.5, 1.0]], [[2.0]])]
    losses, metrics = tis_dpo_loss(
        torch.tensor([[-1.0, -1.0]], dtype=f),
        torch.tensor([[-4.0]], dtype=f),
        torch.tensor([[-2.0, -3.0]], dtype=f),
        torch.tensor([[-3.0]], dtype=f),
        torch.tensor([[2.0, 0.5]], dtype=f),
        torch.tensor([[3.0]], dtype=f),
        *divergences,
        beta=0.1,
        eta=0.5,
    )
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-0.825)), abs=1e-12)
    assert metrics["tis_dpo/chosen"].item() == pytest.approx(0.225)
    assert metrics["tis_dpo/rejected"].item() == pytest.approx(-0.6)
    assert metrics["rewards/margins"].item() == pytest.approx(0.4)
    slope = 1 / (1 + math.exp(0.825))
    gradients = torch.autograd.grad(losses.sum(), divergences)
    assert gradients[0][0].tolist() == pytest.approx([slope * 0.1 * 0.5 * w for w in (2, 0.5)])
    assert gradients[1][0].tolist() == pytest.approx([-slope * 0.1 * 0.5 * 3])


def test_eta_asks_for_divergences() -> None:
    with pytest.raises(ValueError, match=r"eta needs chosen_token_reverse_kl of shape \(3, 4\), \(P, T\); got none"):
        tis_dpo_loss(*inputs(), eta=1.0)
    with pytest.raises(ValueError, match="eta=-1 must be at least 0"):
        PairLoss("tis_dpo", {"eta": -1})
    asked = {"chosen_token_reverse_kl", "rejected_token_reverse_kl"}
    assert not asked & set(PairLoss("tis_dpo").inputs)
    assert asked < set(PairLoss("tis_dpo", {"eta": 0.5}).inputs)
