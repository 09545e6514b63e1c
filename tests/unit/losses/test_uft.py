"""UFT: scores and pairs by hand, the direction of a step, gradients at the extremes."""

import math

import pytest
import torch
from rounding import NEAR32

from lit_ift.losses.uft import uft_loss, uft_pair_loss

DISCREPANCIES = ["mse", "bce"]


def test_values_by_hand() -> None:
    """σ(log 3) = 3/4. Score 1/4: (3/4 - 1/4)² = 1/4, and -1/4 log(3/4) - 3/4 log(1/4) = log 4 - 1/4 log 3."""
    rewards, scores = torch.tensor([math.log(3)]).double(), torch.tensor([0.25]).double()
    mse, metrics = uft_loss(rewards, scores)
    bce, _ = uft_loss(rewards, scores, discrepancy="bce")
    assert mse.item() == pytest.approx(0.25, abs=NEAR32)
    assert bce.item() == pytest.approx(math.log(4) - math.log(3) / 4, abs=NEAR32)
    assert metrics["score_error"].item() == pytest.approx(0.5, abs=NEAR32)
    assert metrics["rewards"].item() == pytest.approx(math.log(3))


def test_pairs_by_hand() -> None:
    """Margin log 3: -log σ = log(4/3), -log σ(-log 3) = log 4; p̂ = 3/4 weights them 3 to 1."""
    chosen, rejected = torch.tensor([1 + math.log(3)] * 2).double(), torch.ones(2).double()
    losses, metrics = uft_pair_loss(chosen, rejected, torch.tensor([1.0, 0.75]).double())
    expected = [math.log(4 / 3), 0.75 * math.log(4 / 3) + 0.25 * math.log(4)]
    assert losses.tolist() == pytest.approx(expected, abs=NEAR32)
    assert metrics["rewards/accuracies"].tolist() == [1, 1]


@pytest.mark.parametrize("discrepancy", DISCREPANCIES)
def test_a_step_on_instruction_rows_raises_the_likelihood(discrepancy: str) -> None:
    """A policy over 5 tokens, its own reference at first; the answer (2, 4) has score 1."""
    torch.manual_seed(0)
    logits = torch.randn(2, 5, requires_grad=True)
    reference = logits.detach().log_softmax(-1)
    answer = torch.tensor([2, 4])

    def rewards(logits: torch.Tensor) -> torch.Tensor:
        ratios = logits.log_softmax(-1) - reference
        return 0.5 * ratios.gather(-1, answer[:, None]).sum()[None]

    losses, _ = uft_loss(rewards(logits), torch.ones(1), discrepancy=discrepancy)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    after, _ = uft_loss(rewards(logits - 0.1 * gradient), torch.ones(1), discrepancy=discrepancy)
    assert rewards(logits - 0.1 * gradient) > rewards(logits) == 0
    assert after < losses


@pytest.mark.parametrize("discrepancy", DISCREPANCIES)
def test_the_best_reward_has_the_score_as_its_sigmoid(discrepancy: str) -> None:
    scores = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    rewards = scores.logit().requires_grad_()
    losses, metrics = uft_loss(rewards, scores, discrepancy=discrepancy)
    (gradient,) = torch.autograd.grad(losses.sum(), rewards)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    assert metrics["score_error"].max() < 1e-12


def test_a_coin_flip_pulls_rewards_together() -> None:
    rewards = torch.tensor([2.0, 2.0], requires_grad=True)
    losses, _ = uft_pair_loss(rewards, torch.zeros(2), torch.tensor([0.5, 1.0]))
    (gradient,) = torch.autograd.grad(losses.sum(), rewards)
    assert gradient[0] > 0 > gradient[1]


def test_gradcheck() -> None:
    rewards = torch.tensor([-3.0, 0.2, 4.0], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0.0, 0.6, 1.0], dtype=torch.float64)
    for discrepancy in DISCREPANCIES:
        assert torch.autograd.gradcheck(lambda r, d=discrepancy: uft_loss(r, labels, discrepancy=d)[0], [rewards])
    assert torch.autograd.gradcheck(lambda a, b: uft_pair_loss(a, b, labels)[0], [rewards, others])


@pytest.mark.parametrize("discrepancy", [*DISCREPANCIES, "pair"])
def test_extremes_are_finite(discrepancy: str) -> None:
    rewards = torch.tensor([-1e4, -1e4, -1e4, 1e4, 1e4, 1e4], requires_grad=True)
    labels = torch.tensor([0.0, 0.5, 1.0] * 2)
    if discrepancy == "pair":
        losses, _ = uft_pair_loss(rewards, -rewards, labels)
    else:
        losses, _ = uft_loss(rewards, labels, discrepancy=discrepancy)
    (gradient,) = torch.autograd.grad(losses.sum(), rewards)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    if discrepancy != "mse":
        assert gradient[2] < 0 < gradient[3]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="discrepancy='kl' must be one of 'mse', 'bce'"):
        uft_loss(torch.ones(2), torch.ones(2), discrepancy="kl")
    with pytest.raises(ValueError, match=r"must be \(B,\), \(B,\)"):
        uft_loss(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"preference \(1,\)"):
        uft_pair_loss(torch.ones(2), torch.ones(2), torch.ones(1))
