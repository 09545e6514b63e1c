"""ASFT: values by hand, extremes, gradients."""

import math

import pytest
import torch

from lit_ift.losses import PairLoss
from lit_ift.losses.pair.reference_free import asft_loss


def test_value_by_hand() -> None:
    """Chosen: 4 tokens of log(1/2) each, p_w = 1/2. Rejected: 2 tokens of log(1/4), p_l = 1/4. β = 0.5.

    logit p_w = 0, so -log σ = log 2; logit p_l = -log 3, -log σ(log 3) = log(4/3); nll_w = log 2.
    loss = log 2 + 0.5 (log 2 + log(4/3)).
    """
    f = torch.float64
    losses, metrics = asft_loss(
        torch.tensor([4 * math.log(0.5)], dtype=f),
        torch.tensor([2 * math.log(0.25)], dtype=f),
        torch.tensor([4.0], dtype=f),
        torch.tensor([2.0], dtype=f),
        beta=0.5,
    )
    assert losses.item() == pytest.approx(math.log(2) + 0.5 * (math.log(2) + math.log(4 / 3)), abs=1e-12)
    assert metrics["nll"].item() == pytest.approx(math.log(2))
    assert metrics["rewards/margins"].item() == pytest.approx(0.5 * math.log(2))


def test_equals_the_odds_as_written_in_the_paper() -> None:
    torch.manual_seed(0)
    chosen, rejected = (-20 * torch.rand(50, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, 9, (50,)).double()
    p_w, p_l = (chosen / lengths).exp(), (rejected / lengths).exp()
    odds = torch.nn.functional.logsigmoid(p_w.logit()) + torch.nn.functional.logsigmoid(-p_l.logit())
    losses, _ = asft_loss(chosen, rejected, lengths, lengths, beta=0.7)
    torch.testing.assert_close(losses, -chosen / lengths - 0.7 * odds, rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    inputs = [torch.tensor(v, dtype=torch.float64) for v in ([-1.0, -30.0, -0.01], [-9.0, -0.02, -1.0])]
    lengths = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, x: asft_loss(w, x, lengths, lengths)[0], inputs)


def test_chosen_goes_up_and_rejected_goes_down() -> None:
    chosen, rejected = (torch.tensor([-3.0], requires_grad=True) for _ in range(2))
    losses, _ = asft_loss(chosen, rejected, torch.ones(1), torch.ones(1))
    losses.sum().backward()
    assert chosen.grad < 0 < rejected.grad


@pytest.mark.parametrize("value", [0.0, 1e-6, -1e-30, -1e-8, -1e4, -1e30])
def test_extremes_are_finite_and_still_push_the_right_way(value: float) -> None:
    chosen, rejected = (torch.tensor([value], requires_grad=True) for _ in range(2))
    losses, _ = asft_loss(chosen, rejected, torch.ones(1), torch.ones(1))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()
    assert chosen.grad < 0 <= rejected.grad
    if value > -1e-3:
        assert rejected.grad.item() == pytest.approx(0.1 * 100)


def test_the_slope_of_the_rejected_answer_is_bounded() -> None:
    """d(-β log(1 - p))/d log p = β p / (1 - p): 0.1 · 9 at p = 0.9; from odds of 100, p = 100/101, on it is 0.1 · 100.

    There log(1 - p) = -log 101; 1e-3 nats further the tangent is 0.1 lower.
    """
    f = torch.float64
    bound = math.log(100 / 101)
    rejected = torch.tensor([math.log(0.9), bound - 1e-9, bound + 1e-3, 0.0], dtype=f, requires_grad=True)
    ones = torch.ones(4, dtype=f)
    losses, metrics = asft_loss(-ones, rejected, ones, ones)
    (slope,) = torch.autograd.grad(losses.sum(), rejected)
    assert slope.tolist() == pytest.approx([0.9, 10, 10, 10], rel=1e-6)
    assert losses[2].item() == pytest.approx(1.1 + 0.1 * (math.log(101) + 0.1), abs=1e-12)
    assert metrics["odds_bounded"].tolist() == [0, 0, 1, 1]
    losses, metrics = asft_loss(-ones, rejected, ones, ones, max_odds=8e6)
    assert losses[2].item() == pytest.approx(1.1 - 0.1 * math.log(-math.expm1(bound + 1e-3)), abs=1e-9)
    assert metrics["odds_bounded"].tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"max_odds=0\.5 must be at least 1"):
        PairLoss("asft", {"max_odds": 0.5})


def test_bad_arguments() -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="beta=-1 must be above 0"):
        PairLoss("asft", {"beta": -1})
    with pytest.raises(ValueError, match=r"chosen_lengths \(1,\)"):
        asft_loss(ones, ones, ones[:1], ones)
