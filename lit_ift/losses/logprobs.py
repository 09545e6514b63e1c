"""From hidden states to token log-probabilities, without the (B, T, V) tensor; the one next-token shift.

Shapes: B sequences, T tokens, N selected positions, D hidden size, V vocabulary size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from lit_ift.constants import IGNORE_INDEX
from lit_ift.losses.checks import check_shapes
from lit_ift.losses.linear_head import FrozenHeadLogps, HeadSweep, LinearHead, chunks
from lit_ift.losses.masking import at_least_float32
from lit_ift.options import PositiveInt, checked

Head = Callable[[Tensor], Tensor]
"""Maps hidden states (n, D) to final logits (n, V), scaling and soft-capping included."""
Select = Callable[[Tensor], Tensor]
"""Maps float32 logits (n, V) to token ids, (n,) or several a row, (n, K)."""
Statistic = Callable[[Tensor], Tensor]
"""Maps float32 logits (n, V) to a number of the next token's distribution, (n,)."""

_CHUNK_ELEMENTS = 2**25
"""Logits held at once: 128 MiB in float32."""
CHUNK_SIZE = 512
"""Positions whose logits are held at once where the vocabulary size is not told."""


def chunk_size_for(vocabulary_size: int) -> int:
    """Positions whose logits fit into 2^25 elements, at least one."""
    return max(1, _CHUNK_ELEMENTS // vocabulary_size)


@dataclass(frozen=True)
class TokenScores:
    """What the model says of the tokens to be trained on.

    Attributes:
        nll: -log p(token t+1 | tokens up to t) [nats], 0 off the mask, (B, T-1), float32 or better.
        mask: true where token t+1 is trained on, (B, T-1).
        predictions: what ``select`` chose at each masked position, row-major, (N,) or (N, K) int64; empty
            if nothing was asked for.
        statistics: what was asked for besides, by name, 0 off the mask, no gradient, (B, T-1) each.
    """

    nll: Tensor
    mask: Tensor
    predictions: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)


def target_mask(labels: Tensor) -> Tensor:
    """True at position t where token t+1 is trained on: (B, T) labels -> (B, T-1) bool."""
    return labels[:, 1:] != IGNORE_INDEX


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row, (n, V) -> (n,)."""
    return logits.argmax(-1)


def log_sum_sq_probs(logits: Tensor) -> Tensor:
    """``log Σ_v p(v)²`` [nats], minus the collision entropy (Rényi, order 2), (n, V) -> (n,)."""
    return (2 * logits.log_softmax(-1)).logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """``-Σ_v p(v) log p(v)`` [nats], Shannon's, (n, V) -> (n,)."""
    logps = logits.log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


def top_entropy(logits: Tensor, k: int) -> Tensor:
    """``entropy`` of the softmax over the k largest logits of each row, or over all if there are fewer."""
    return entropy(logits.topk(min(k, logits.shape[-1]), dim=-1).values)


@checked
def head_logps(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    select: Select | None = greedy,
    statistics: Sequence[Statistic] = (),
    chunk_size: PositiveInt | None = None,
    linear: LinearHead | None = None,
) -> tuple[Tensor, ...]:
    """Log-probabilities of ``targets``, the selected token ids, and statistics, a chunk of positions at a time.

    Where one chunk does not hold all positions, logits are recomputed in the backward pass, so that at most
    ``chunk_size`` rows of logits exist at any time. Any head will do (tied, untied, with bias, adapted), because it
    is called, not taken apart. The slow twin is ``head(hidden).float().log_softmax(-1).gather(...)``.

    Args:
        hidden: final hidden states, (N, D).
        targets: token ids, (N,).
        head: maps hidden states to logits.
        select: chooses token ids from each row of logits; no gradient. None chooses none.
        statistics: further numbers to take from each row of logits; no gradient.
        chunk_size: positions per chunk, such as ``chunk_size_for(V)``; 512 by default.
        linear: the head taken apart, if it is a linear one; then nothing is recomputed unless it is trained.

    Returns:
        Natural log-probabilities (N,), float32 or better, what was selected, and each statistic, (N,). Gradient flows
        to ``hidden`` and to the parameters of ``head``.

    Raises:
        ValueError: the shapes do not fit, or ``chunk_size`` is not positive.
    """
    check_shapes("N D, N", hidden=hidden, targets=targets)

    def score(hidden_nD: Tensor, targets_n: Tensor) -> tuple[Tensor, ...]:
        logits_nV = at_least_float32(head(hidden_nD))
        logps_n = -cross_entropy(logits_nV, targets_n, reduction="none")
        # Last: the backward pass stops recomputing once it has what it needs, and so does not select again.
        with torch.no_grad():
            plain_nV = logits_nV.detach()
            selected = targets_n.new_empty(0) if select is None else select(plain_nV)
            return logps_n, selected, *(statistic(plain_nV) for statistic in statistics)

    chunk_size = CHUNK_SIZE if chunk_size is None else chunk_size
    trains = torch.is_grad_enabled()
    if linear is not None and not (trains and linear.trained):
        sweep = HeadSweep(linear, hidden, targets, select, statistics)
        if trains and hidden.requires_grad:
            logps: tuple[Tensor, ...] = FrozenHeadLogps.apply(hidden, sweep, chunk_size)  # type: ignore[no-untyped-call]
            return logps
        return tuple(
            map(torch.cat, zip(*(sweep.scores(c)[0].flat for c in chunks(0, len(hidden), chunk_size)), strict=True))
        )
    if hidden.shape[0] <= chunk_size:
        return score(hidden, targets)
    parts = [
        checkpoint(score, h, t, use_reentrant=False, preserve_rng_state=False) if trains else score(h, t)
        for h, t in zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True)
    ]
    return tuple(torch.cat(chunks) for chunks in zip(*parts, strict=True))


def score_tokens(
    hidden: Tensor,
    labels: Tensor,
    head: Head,
    *,
    select: Select | None = greedy,
    statistics: Mapping[str, Statistic] | None = None,
    chunk_size: PositiveInt | None = None,
    linear: LinearHead | None = None,
) -> TokenScores:
    """Score the trained tokens of a batch from the final hidden states; other positions never meet the head.

    Args:
        hidden: final hidden states, (B, T, D).
        labels: token ids aligned with the inputs (unshifted), ``IGNORE_INDEX`` where not trained on, (B, T).
        head: see ``head_logps``.
        select: see ``head_logps``.
        statistics: by the names that they get, see ``head_logps``.
        chunk_size: see ``head_logps``.
        linear: see ``head_logps``.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shapes("B T D, B T", hidden=hidden, labels=labels)
    mask, statistics = target_mask(labels), statistics or {}
    logps, predictions, *numbers = head_logps(
        hidden[:, :-1][mask],
        labels[:, 1:][mask],
        head,
        select=select,
        statistics=[*statistics.values()],
        chunk_size=chunk_size,
        linear=linear,
    )
    return placed(-logps, mask, predictions, dict(zip(statistics, numbers, strict=True)))


def placed(nll: Tensor, mask: Tensor, predictions: Tensor, statistics: Mapping[str, Tensor]) -> TokenScores:
    """Scores of positions, (N,) each in row-major order, at their places in a mask, (B, T-1)."""

    def in_place(values: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

    by_name = {name: in_place(values) for name, values in statistics.items()}
    return TokenScores(nll=in_place(nll), mask=mask, predictions=predictions, statistics=by_name)
