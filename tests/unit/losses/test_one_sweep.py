"""Head, loss and gradients in one sweep: equal to the head, the loss and a backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_ift.losses import logprobs
from lit_ift.losses.ift import ift_loss
from lit_ift.losses.linear_head import HeadScores, LinearHead
from lit_ift.losses.one_sweep import swept_losses

VOCABULARY, WIDTH = 53, 11
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.3},
    "capped": {"softcap": 1.5},
    "all": {"bias": True, "scale": 2.0, "softcap": 0.7},
}
LENGTHS = [3, 0, 7, 1, 0, 12]
WEIGHTS = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0])


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_head(dtype: torch.dtype = torch.float64, *, trained: bool = True, **options: Any) -> LinearHead:
    bias = numbers(VOCABULARY, seed=3, dtype=dtype).requires_grad_(trained) if options.pop("bias", False) else None
    return LinearHead(numbers(VOCABULARY, WIDTH, seed=2, dtype=dtype).requires_grad_(trained), bias, **options)


def logits(head: LinearHead, hidden: Tensor) -> Tensor:
    values = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    return values if head.softcap is None else head.softcap * torch.tanh(values / head.softcap)


def losses_of(nll: Tensor, lengths: list[int]) -> Tensor:
    """Propagation, in which every token's gradient depends on all others of its row."""
    rows = [torch.nn.functional.pad(row, (0, 1)).unsqueeze(0) for row in nll.split(lengths)]
    masks = [torch.arange(row.shape[1]).unsqueeze(0) < row.shape[1] - 1 for row in rows]
    return torch.cat([ift_loss(row, mask)[0] for row, mask in zip(rows, masks, strict=True)])


def swept(head: LinearHead, hidden: Tensor, targets: Tensor, chunk_size: int, weights: Tensor = WEIGHTS) -> Tensor:
    def judge(groups: range, scores: HeadScores, nll: Tensor) -> Tensor:
        torch.testing.assert_close(scores.logps, -nll.detach(), rtol=0, atol=0)
        return losses_of(nll, LENGTHS[groups.start : groups.stop])

    return swept_losses(hidden, targets, head, judge, lengths=LENGTHS, weights=weights, chunk_size=chunk_size)


def some_positions(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    hidden = numbers(sum(LENGTHS), WIDTH, seed=1, dtype=dtype).requires_grad_()
    return hidden, torch.randint(VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("chunk_size", [100, 12, 8, 1])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_equals_a_backward_pass(options: dict[str, Any], chunk_size: int) -> None:
    head, (hidden, targets) = some_head(**options), some_positions()
    inputs = [hidden, *head.trained]
    assert len(inputs) == 2 + ("bias" in options)
    expected = losses_of(torch.nn.functional.cross_entropy(logits(head, hidden), targets, reduction="none"), LENGTHS)
    found = swept(head, hidden, targets, chunk_size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # The factor of accumulation, or of a part of a mixture, is known in the backward pass alone.
    for ours, wanted in zip(
        torch.autograd.grad((found * WEIGHTS).sum() * 3, inputs),
        torch.autograd.grad((expected * WEIGHTS).sum() * 3, inputs),
        strict=True,
    ):
        assert wanted.abs().max() > 0.01
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [100, 5, 1])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_a_head_that_is_not_trained_does_for_every_loss(options: dict[str, Any], chunk_size: int) -> None:
    head, (hidden, targets) = some_head(trained=False, **options), some_positions()
    factors = numbers(len(targets), seed=9)
    found = logprobs.head_logps(
        hidden, targets, lambda h: logits(head, h), statistics=[logprobs.entropy], chunk_size=chunk_size, linear=head
    )
    slow = logprobs.head_logps(hidden, targets, lambda h: logits(head, h), statistics=[logprobs.entropy])
    assert torch.equal(found[1], slow[1])
    for ours, wanted in zip(found, slow, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    (ours,), (wanted,) = (torch.autograd.grad((s[0].exp() * factors).sum(), hidden) for s in (found, slow))
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)
    assert not found[2].requires_grad


def test_without_gradient_it_is_the_plain_head() -> None:
    head, (hidden, targets) = some_head(softcap=2.0), some_positions()
    with torch.no_grad():
        found = logprobs.head_logps(hidden, targets, lambda h: logits(head, h), chunk_size=4, linear=head)
        slow = logprobs.head_logps(hidden, targets, lambda h: logits(head, h))
    torch.testing.assert_close(found[0], slow[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[1], slow[1])


@pytest.mark.parametrize("chunk_size", [100, 6, 1])
def test_bfloat16_adds_up_in_float32(chunk_size: int) -> None:
    """The error of the weight's gradient is that of one rounding, whatever the number of chunks."""
    head, (hidden, targets) = some_head(torch.float32), some_positions(torch.float32)
    exact = torch.autograd.grad((swept(head, hidden, targets, 100) * WEIGHTS).sum(), [hidden, head.weight])
    with torch.autocast("cpu", torch.bfloat16):
        losses = swept(head, hidden, targets, chunk_size)
    assert losses.dtype == torch.float32
    found = torch.autograd.grad((losses * WEIGHTS).sum(), [hidden, head.weight])
    for ours, wanted in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - wanted).norm() / wanted.norm()) < 8e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_have_the_dtype_of_what_they_are_of(dtype: torch.dtype) -> None:
    head, (hidden, targets) = some_head(dtype, bias=True), some_positions(dtype)
    losses = swept(head, hidden, targets, 6)
    (losses * WEIGHTS).sum().backward()
    assert losses.dtype == torch.float32
    assert {t.grad.dtype for t in (hidden, *head.trained) if t.grad is not None} == {dtype}


def test_another_weighting_is_refused() -> None:
    head, (hidden, targets) = some_head(), some_positions()
    with pytest.raises(RuntimeError, match="one_sweep=False"):
        swept(head, hidden, targets, 6).sum().backward()
    losses = swept(head, hidden, targets, 6)
    (losses * WEIGHTS).sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can run once"):
        (losses * WEIGHTS).sum().backward()


def test_no_row_at_all() -> None:
    head = some_head()
    hidden, targets = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True), torch.zeros(0, dtype=torch.long)
    losses = swept_losses(
        hidden, targets, head, lambda g, s, nll: nll.sum() + nll.new_zeros(len(g)), lengths=[0, 0], weights=WEIGHTS[:2],
        chunk_size=4,
    )  # fmt: skip
    (losses * WEIGHTS[:2]).sum().backward()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
