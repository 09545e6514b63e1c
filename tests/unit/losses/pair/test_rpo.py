"""RPO: the contrast matrix by hand and by loop, what it is without other prompts, the coupling of a micro-batch."""

import math

import pytest
import torch
from torch import Tensor

from lit_ift.losses import PairLoss
from lit_ift.losses.pair.in_batch import rpo_loss
from lit_ift.losses.pair.reference import dpo_loss


def pairs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [-4 * torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_values_by_hand() -> None:
    """Two pairs with orthogonal prompts, temperature 1: cos is 1 on the diagonal and 0 off it.

    ω_ii = 1 / (1 + 1/e) = e/(e+1) =: w, ω_ij = 1 - w. β = 1, chosen rewards (1, 2), rejected (0, -1):
    h = [[1, 2], [2, 3]]; loss_0 = s(w) + s(2(1-w)), loss_1 = s(2(1-w)) + s(3w), s(x) = log(1 + e^-x).
    """
    zeros = torch.zeros(2, dtype=torch.float64)
    chosen, rejected = zeros.new_tensor([1, 2]), zeros.new_tensor([0, -1])
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    w = math.e / (math.e + 1)

    def s(x: float) -> float:
        return math.log(1 + math.exp(-x))

    losses, metrics = rpo_loss(chosen, rejected, zeros, zeros, embeddings, beta=1.0, temperature=1.0)
    assert losses[0].item() == pytest.approx(s(w) + s(2 * (1 - w)), abs=1e-12)
    assert losses[1].item() == pytest.approx(s(2 * (1 - w)) + s(3 * w), abs=1e-12)
    assert metrics["rpo/own_weight"].tolist() == pytest.approx([w, w])


def test_equals_a_loop_and_the_mean_is_the_sum_divided() -> None:
    inputs = pairs(5)
    torch.manual_seed(1)
    embeddings = torch.randn(5, 7, dtype=torch.float64)
    losses, _ = rpo_loss(*inputs, embeddings, beta=0.3, temperature=0.2)
    for i in range(5):
        cosines = torch.nn.functional.cosine_similarity(embeddings[i : i + 1], embeddings)
        scores = torch.exp(-(1 - cosines) / 0.2)
        total = 0.0
        for j in range(5):
            h = 0.3 * ((inputs[0][i] - inputs[2][i]) - (inputs[1][j] - inputs[3][j]))
            total += torch.log1p(torch.exp(-h * scores[j] / scores.sum())).item()
        assert losses[i].item() == pytest.approx(total, abs=1e-12)
    means, _ = rpo_loss(*inputs, embeddings, beta=0.3, temperature=0.2, reduction="mean")
    torch.testing.assert_close(means, losses / 5)


def test_identity_weights_give_dpo() -> None:
    """A contrast of weight 0 adds -log σ(0) = log 2 and no gradient."""
    inputs, twin = pairs(), pairs()
    inputs[0].requires_grad_(), twin[0].requires_grad_()
    ours, _ = rpo_loss(*inputs, torch.eye(3, dtype=torch.float64), temperature=1e-3)
    theirs, _ = dpo_loss(*twin)
    torch.testing.assert_close(ours, theirs + 2 * math.log(2), rtol=0, atol=1e-12)
    ours.sum().backward(), theirs.sum().backward()
    torch.testing.assert_close(inputs[0].grad, twin[0].grad, rtol=0, atol=1e-12)


def test_a_single_pair_is_dpo_exactly() -> None:
    inputs = pairs(1)
    assert torch.equal(rpo_loss(*inputs, torch.ones(1, 4))[0], dpo_loss(*inputs)[0])


def test_the_same_prompt_twice_shares_the_weight() -> None:
    _, metrics = rpo_loss(*pairs(2), torch.ones(2, 4))
    assert metrics["rpo/own_weight"].tolist() == pytest.approx([0.5, 0.5])


def test_gradcheck_and_no_gradient_for_embeddings() -> None:
    inputs = pairs()
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    embeddings = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: rpo_loss(*a, embeddings, beta=0.5)[0], inputs)
    losses, _ = rpo_loss(*inputs, embeddings)
    assert torch.autograd.grad(losses.sum(), embeddings, allow_unused=True) == (None,)


def test_extremes_are_finite() -> None:
    chosen = torch.tensor([-1e4, 0.0, -1e4], requires_grad=True)
    zeros = torch.zeros(3)
    for scale in (0.0, 1e-20, 1e18):
        losses, _ = rpo_loss(chosen, -1e4 - chosen, zeros, zeros, scale * torch.eye(3), temperature=1e-6)
        (gradient,) = torch.autograd.grad(losses.sum(), chosen)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


def test_bad_arguments() -> None:
    embeddings = torch.ones(3, 2)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        PairLoss("rpo", {"temperature": 0})
    with pytest.raises(ValueError, match="reduction='max' must be one of 'sum', 'mean'"):
        PairLoss("rpo", {"reduction": "max"})
    with pytest.raises(ValueError, match=r"prompt_embeddings of shape \(2, 2\) must be \(P, E\), P=3"):
        rpo_loss(*pairs(), embeddings[:2])
