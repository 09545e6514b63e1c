"""A plain output head taken apart, so that loss and gradients come from one computation of its logits.

Shapes: N positions, n of them in a chunk, D hidden size, V vocabulary size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_ift.losses.masking import at_least_float32


@dataclass(frozen=True)
class LinearHead:
    """``softcap · tanh(scale · (W h + b) / softcap)``, computed in autocast's dtype where autocast is on.

    Args:
        weight: W, (V, D).
        bias: b, (V,).
        scale: factor on the logits.
        softcap: bound of the logits; None for no bound.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def trained(self) -> list[Tensor]:
        """Weight and bias, as far as they are trained."""
        return [p for p in (self.weight, self.bias) if p is not None and p.requires_grad]


class HeadScores(NamedTuple):
    """What a chunk of logits says, all without gradient.

    Attributes:
        logps: of the targets, float32 or better, (n,).
        selected: token ids that ``select`` chose.
        statistics: one tensor for each statistic, (n,).
    """

    logps: Tensor
    selected: Tensor
    statistics: list[Tensor]

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """All of them, one after the other."""
        return self.logps, self.selected, *self.statistics


class HeadSweep:
    """One pass over a linear head: its logits are made, used and overwritten by their gradient, a chunk at a time.

    Args:
        head: the head; its weights are read once, in the dtype that it computes in.
        hidden: final hidden states, (N, D).
        targets: token ids, (N,).
        select: see ``lit_ift.losses.head_logps``.
        statistics: see ``lit_ift.losses.head_logps``.
    """

    def __init__(
        self, head: LinearHead, hidden: Tensor, targets: Tensor, select: Any, statistics: Sequence[Any]
    ) -> None:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype
        self.head, self.targets, self.select, self.statistics = head, targets, select, statistics
        self.hidden = hidden.detach().to(self.dtype)
        self.weight = head.weight.detach().to(self.dtype)
        self.bias = None if head.bias is None else head.bias.detach().to(self.dtype)

    def scores(self, chunk: slice) -> tuple[HeadScores, "ChunkLogits"]:
        """Score a chunk of positions. The second result makes the gradient of the chunk's logits."""
        targets = self.targets[chunk]
        logits = at_least_float32(torch.nn.functional.linear(self.hidden[chunk], self.weight, self.bias))
        slope = None
        if self.head.scale != 1.0:
            logits = logits.mul_(self.head.scale)
        if self.head.softcap is not None:
            tanh = logits.div_(self.head.softcap).tanh_()
            slope = 1 - tanh.square()
            logits = tanh.mul_(self.head.softcap)
        selected = targets.new_empty(0) if self.select is None else self.select(logits)
        statistics = [statistic(logits) for statistic in self.statistics]
        highest = logits.amax(-1, keepdim=True)
        of_targets = logits.gather(-1, targets.unsqueeze(-1))
        exps = logits.sub_(highest).exp_()
        sums = exps.sum(-1, keepdim=True)
        logps = (of_targets - highest - sums.log()).squeeze(-1)
        return HeadScores(logps, selected, statistics), ChunkLogits(exps, sums, targets, slope, self.head.scale)

    def to_hidden(self, gradient: Tensor) -> Tensor:
        """Gradient of the hidden states from that of the logits, (n, V) -> (n, D)."""
        return gradient.to(self.dtype) @ self.weight

    def add_to_weights(self, gradient: Tensor, chunk: slice, sums: list[Tensor | None]) -> None:
        """Add a chunk's gradient of `LinearHead.trained` to ``sums``, float32 or better; None before the first chunk.

        Products of half precision are added up in float32, whatever the number of chunks.
        """
        for i, parameter in enumerate(self.head.trained):
            total = sums[i]
            if parameter is not self.head.weight:
                sums[i] = gradient.sum(0) if total is None else total.add_(gradient.sum(0))
            elif total is not None and total.dtype == self.dtype:
                total.addmm_(gradient.T, self.hidden[chunk])
            else:  # Without zeros to begin with, whose memory would have to be written first.
                product = at_least_float32(gradient.to(self.dtype).T @ self.hidden[chunk])
                sums[i] = product if total is None else total.add_(product)


@dataclass
class ChunkLogits:
    """Exponentials of a chunk's logits, which are overwritten by the gradient.

    Args:
        exps: of the logits less the highest of each row, (n, V).
        sums: over the vocabulary, (n, 1).
        targets: (n,).
        slope: derivative of the soft cap, (n, V), if there is one.
        scale: factor on the logits.
    """

    exps: Tensor
    sums: Tensor
    targets: Tensor
    slope: Tensor | None
    scale: float

    def gradient(self, nll_gradient: Tensor) -> Tensor:
        """Gradient of the head's own output from that of the nll, (n,) -> (n, V); can be asked for once."""
        factor = nll_gradient.to(self.exps.dtype).unsqueeze(-1)
        gradient = self.exps.mul_(factor / self.sums).scatter_add_(-1, self.targets.unsqueeze(-1), -factor)
        if self.slope is not None:
            gradient.mul_(self.slope)
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def chunks(start: int, stop: int, size: int) -> Iterator[slice]:
    """The positions from start to stop, cut into chunks of at most a size; one that is empty if there are none."""
    for at in range(start, max(stop, start + 1), size):
        yield slice(at, min(at + size, stop))


class FrozenHeadLogps(torch.autograd.Function):
    """Log-probabilities of targets under a head that is not trained, with the gradient made in the forward pass.

    The gradient of a position's log-probability with respect to its hidden state is one vector, whatever the loss. So
    it is kept in the place of logits that would be made again: two products with the head's weight instead of three.
    Exact for every use of the log-probabilities.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, sweep: HeadSweep, chunk_size: int) -> tuple[Tensor, ...]:
        """See ``lit_ift.losses.head_logps``; ``hidden`` is that of the sweep, (N, D)."""
        found, gradients = [], []
        for chunk in chunks(0, len(hidden), chunk_size):
            scores, logits = sweep.scores(chunk)
            found.append(scores.flat)
            gradients.append(sweep.to_hidden(logits.gradient(scores.logps.new_full(scores.logps.shape, -1.0))))
        ctx.save_for_backward(torch.cat(gradients))
        ctx.dtype = hidden.dtype
        results = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Scale each position's vector."""
        (of_logps,) = ctx.saved_tensors
        return (gradients[0].unsqueeze(-1).to(of_logps.dtype) * of_logps).to(ctx.dtype), None, None
