"""The chunked divergence against the whole (B, T, V) tensors, values and gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from lit_ift.losses.token_kl import token_kl

B, T, V, D = 3, 6, 11, 4


def setup() -> tuple[Tensor, Tensor, Tensor, nn.Linear, nn.Linear]:
    """The reference has hidden states of another size; 2 to 4 trained positions a row, position 0 among them."""
    torch.manual_seed(0)
    hidden = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    reference_hidden = torch.randn(B, T, D + 1, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (B, T))
    labels[0, :3] = labels[1, 3:] = labels[2, ::2] = -100
    return hidden, reference_hidden, labels, nn.Linear(D, V).double(), nn.Linear(D + 1, V, bias=False).double()


def slow_token_kl(
    hidden: Tensor, reference_hidden: Tensor, labels: Tensor, head: nn.Linear, other: nn.Linear, *, reverse: bool
) -> Tensor:
    p, q = other(reference_hidden).softmax(-1).detach(), head(hidden).softmax(-1)
    p, q = (q, p) if reverse else (p, q)
    divergences = torch.zeros(B, T - 1, dtype=torch.float64)
    for b in range(B):
        for t in range(T - 1):
            if labels[b, t + 1] != -100:
                divergences[b, t] = sum(p[b, t, v] * torch.log(p[b, t, v] / q[b, t, v]) for v in range(V))
    return divergences


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 8, 100])
def test_equals_the_slow_twin(chunk_size: int | None, reverse: bool) -> None:
    arguments = setup()
    hidden, _, labels, head, _ = arguments
    ours = token_kl(*arguments, reverse=reverse, chunk_size=chunk_size)
    theirs = slow_token_kl(*arguments, reverse=reverse)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ((ours > 0) == (labels[:, 1:] != -100)).all()
    upstream = torch.randn(B, T - 1, dtype=torch.float64)
    wanted = [hidden, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * upstream).sum(), wanted),
        torch.autograd.grad((theirs * upstream).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_value_by_hand() -> None:
    """Reference (3/4, 1/4), policy (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2); the other way round differs."""
    logits = torch.tensor([0.75, 0.25]).double().log().expand(1, 2, 2)
    divergence = token_kl(torch.zeros(1, 2, 2).double(), logits, torch.tensor([[0, 1]]), lambda h: h, lambda h: h)
    assert divergence.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)


@pytest.mark.parametrize("chunk_size", [2, 100])
def test_gradcheck(chunk_size: int) -> None:
    hidden, reference_hidden, labels, head, other = setup()
    assert torch.autograd.gradcheck(
        lambda h: token_kl(h, reference_hidden, labels, head, other, chunk_size=chunk_size), [hidden]
    )


def test_no_gradient_to_the_reference() -> None:
    arguments = setup()
    for chunk_size in (2, 100):
        token_kl(*arguments, chunk_size=chunk_size).sum().backward()
        assert arguments[1].grad is None
        assert arguments[4].weight.grad is None
        assert arguments[3].weight.grad is not None


def test_the_policy_against_itself_has_no_divergence() -> None:
    hidden, _, labels, head, _ = setup()
    divergences = token_kl(hidden, hidden, labels, head, head)
    assert (divergences == 0).all()
    (gradient,) = torch.autograd.grad(divergences.sum(), hidden)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_never_holds_more_than_a_chunk_of_logits() -> None:
    hidden, reference_hidden, labels, head, other = setup()
    sizes, reference_sizes = [], []

    def counted(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return head(rows)

    def reference_counted(rows: Tensor) -> Tensor:
        reference_sizes.append(len(rows))
        return other(rows)

    trained = int((labels[:, 1:] != -100).sum())
    token_kl(hidden, reference_hidden, labels, counted, reference_counted, chunk_size=3).sum().backward()
    assert max(sizes + reference_sizes) == 3
    assert sum(sizes) == sum(reference_sizes) == 2 * trained  # Once more in the backward pass.
    sizes.clear()
    with torch.no_grad():
        token_kl(hidden, reference_hidden, labels, counted, reference_counted, chunk_size=3)
    assert sum(sizes) == trained


def test_no_trained_position_keeps_the_graph() -> None:
    hidden, reference_hidden, labels, head, other = setup()
    divergences = token_kl(hidden, reference_hidden, torch.full_like(labels, -100), head, other)
    divergences.sum().backward()
    assert (divergences == 0).all()
    assert (hidden.grad == 0).all()


def test_bfloat16_logits_are_scored_in_float32() -> None:
    torch.manual_seed(0)
    logits, others = torch.randn(2, 1, 5, V, dtype=torch.bfloat16)
    divergences = token_kl(logits, others, torch.zeros(1, 5).long(), lambda h: h, lambda h: h)
    p, q = (values[:, :-1].double().log_softmax(-1) for values in (others, logits))
    assert divergences.dtype == torch.float32
    torch.testing.assert_close(divergences.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-6)


def test_extremes_are_finite() -> None:
    hidden = torch.tensor([[[1e4, -1e4, 0.0], [0.0] * 3]], dtype=torch.bfloat16, requires_grad=True)
    divergences = token_kl(hidden, -hidden.detach(), torch.tensor([[0, 1]]), lambda h: h, lambda h: h)
    (gradient,) = torch.autograd.grad(divergences.sum(), hidden)
    assert divergences.item() == pytest.approx(2e4, rel=0.01)
    assert gradient.isfinite().all()


def test_bad_arguments() -> None:
    hidden, reference_hidden, labels, head, other = setup()
    with pytest.raises(ValueError, match="chunk_size=0 must be at least 1"):
        token_kl(hidden, reference_hidden, labels, head, other, chunk_size=0)
    with pytest.raises(ValueError, match=r"must be \(B, T, D\), \(B, T, D'\), \(B, T\)"):
        token_kl(hidden, reference_hidden[:, 1:], labels, head, other)
