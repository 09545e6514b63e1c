"""Head, loss and their gradients in one sweep over the logits, which are made once and never kept.

A plain backward pass through a chunked head makes the logits twice. But the gradient of a row's loss with respect to
its tokens' log-probabilities is known as soon as these are. So the gradients of hidden states and head are made
together with the loss, a few rows at a time.

Shapes: N positions, D hidden size, G groups of positions (rows, or pairs), each of which has one loss.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_ift.losses.linear_head import ChunkLogits, HeadScores, HeadSweep, LinearHead, chunks

Judge = Callable[[range, HeadScores, Tensor], Tensor]
"""Gives losses of some groups (g,) from what the head says of their positions, and their nll (n,) with gradient."""


def swept_losses(
    hidden: Tensor,
    targets: Tensor,
    head: LinearHead,
    judge: Judge,
    *,
    lengths: Sequence[int],
    weights: Tensor,
    chunk_size: int,
    select: Any = None,
    statistics: Sequence[Any] = (),
) -> Tensor:
    """Losses of groups whose gradient is made in the forward pass; slow twin: head, loss and a backward pass.

    Whole groups share a chunk as far as they fit. The logits of a group that is longer than a chunk are made twice.

    Args:
        hidden: final hidden states, group after group, (N, D).
        targets: token ids, (N,).
        head: must be the same in the backward pass, as it is until an optimizer's step.
        judge: called for runs of consecutive groups, in order.
        lengths: positions of each group, G numbers with sum N.
        weights: what the loss of each group will be multiplied by, up to one common factor, (G,).
        chunk_size: positions whose logits are held at once.
        select: see ``lit_ift.losses.head_logps``.
        statistics: see ``lit_ift.losses.head_logps``.

    Returns:
        (G,). Gradient flows to ``hidden`` and to the head's trained weights.

    Raises:
        RuntimeError: in the backward pass on a CPU, if the losses were weighted otherwise. On other devices the
            gradient is then NaN, because the look would make the device wait.
    """
    sweep = HeadSweep(head, hidden, targets, select, statistics)
    losses: Tensor = _SweptLosses.apply(  # type: ignore[no-untyped-call]
        hidden, sweep, judge, lengths, weights, chunk_size, *head.trained
    )
    return losses


class _SweptLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        sweep: HeadSweep,
        judge: Judge,
        lengths: Sequence[int],
        weights: Tensor,
        chunk_size: int,
        *trained: Tensor,
    ) -> Tensor:
        of_hidden = torch.empty_like(sweep.hidden)
        of_weights: list[Tensor | None] = [None] * len(trained)
        losses = []
        for groups, start, stop in _runs(lengths, chunk_size):
            cut = list(chunks(start, stop, chunk_size))
            scores, kept = _scored(sweep, cut)
            with torch.enable_grad():
                nll = (-scores.logps).requires_grad_()
                judged = judge(groups, scores, nll)
                own = weights[groups.start : groups.stop].to(judged.dtype)
                (of_nll,) = torch.autograd.grad((judged * own).sum(), nll)
            losses.append(judged.detach())
            for chunk in cut:
                logits = sweep.scores(chunk)[1] if kept is None else kept
                gradient = logits.gradient(of_nll[chunk.start - start : chunk.stop - start])
                of_hidden[chunk] = sweep.to_hidden(gradient)
                sweep.add_to_weights(gradient, chunk, of_weights)
        ctx.save_for_backward(of_hidden, weights)
        ctx.hidden_dtype, ctx.dtypes = hidden.dtype, [parameter.dtype for parameter in trained]
        # Not among the saved tensors, so that the backward pass may scale them in place.
        ctx.of_weights = [torch.zeros_like(p) if g is None else g for g, p in zip(of_weights, trained, strict=True)]
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        of_hidden, weights = ctx.saved_tensors
        if ctx.of_weights is None:
            raise RuntimeError("These losses were made in one sweep of the head, whose backward pass can run once.")
        factor = _common_factor(gradient, weights.to(gradient.dtype))
        scaled = [total.mul_(factor).to(dtype) for total, dtype in zip(ctx.of_weights, ctx.dtypes, strict=True)]
        ctx.of_weights = None
        return ((of_hidden * factor).to(ctx.hidden_dtype), None, None, None, None, None, *scaled)


def _runs(lengths: Sequence[int], chunk_size: int) -> Iterator[tuple[range, int, int]]:
    """Consecutive groups that fit into a chunk together, or one that is longer, with their first and last position."""
    first = start = stop = 0
    for group, length in enumerate(lengths):
        if group > first and stop - start + length > chunk_size:
            yield range(first, group), start, stop
            first, start = group, stop
        stop += length
    if lengths:
        yield range(first, len(lengths)), start, stop


def _scored(sweep: HeadSweep, cut: Sequence[slice]) -> tuple[HeadScores, ChunkLogits | None]:
    """Scores of some groups' positions, and their logits if they are in one chunk."""
    if len(cut) == 1:
        return sweep.scores(cut[0])
    found = [sweep.scores(chunk)[0] for chunk in cut]
    statistics = [torch.cat(parts) for parts in zip(*(s.statistics for s in found), strict=True)]
    return HeadScores(torch.cat([s.logps for s in found]), torch.cat([s.selected for s in found]), statistics), None


def _common_factor(gradient: Tensor, weights: Tensor) -> Tensor:
    """The number that times the weights is the gradient of the losses, a scalar."""
    factor = (gradient * weights).sum() / weights.square().sum().clamp(min=torch.finfo(weights.dtype).tiny)
    unlike = (gradient - factor * weights).abs().amax() > 1e-4 * gradient.abs().amax()
    if not gradient.is_cuda and bool(unlike):
        raise RuntimeError(
            "The gradient of these losses was made for their sum weighted by example_weights, and another sum of them "
            "was trained on. Set one_sweep=False on the module, or override example_weights."
        )
    return torch.where(unlike, torch.nan, factor)
