"""SFTMix: a mixup between confident and unconfident examples (arXiv:2410.05248).

Shapes: B examples, N trained positions of them, K pairs, M mixed positions, D hidden size, V vocabulary size.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_ift.losses.checks import check_shapes
from lit_ift.losses.logprobs import CHUNK_SIZE, Head
from lit_ift.losses.masking import at_least_float32
from lit_ift.options import PositiveInt, checked


def confidence_pairs(confidence: Tensor, trained: Tensor) -> Tensor:
    """Pair the most confident half of a micro-batch with the least confident half, k-th with k-th.

    With an odd number of examples the one in the middle has no partner.

    Departures:
        The micro-batch is halved, which finds every example a partner. The paper halves the whole data set, and pairs
        at random.

    Args:
        confidence: larger is more confident, (B,).
        trained: true for an example with trained tokens, (B,); the others are left out.

    Returns:
        Examples of each pair, the confident one first, (K, 2) int64. Equal confidence keeps the examples' order.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes("B, B", confidence=confidence, trained=trained)
    order = confidence.argsort(descending=True, stable=True)
    order = order[trained[order].bool()]
    half = len(order) // 2
    return torch.stack([order[:half], order[len(order) - half :]], dim=-1)


def paired_positions(owners: Tensor, pairs: Tensor, num_examples: int) -> tuple[Tensor, Tensor, Tensor]:
    """The t-th trained token of a confident example beside the t-th of its partner, up to the shorter one's end.

    Args:
        owners: int64, the example that each trained position belongs to, (N,); an example's positions are in order.
        pairs: see ``confidence_pairs``, (K, 2).
        num_examples: B.

    Returns:
        Indices into the N positions, (M, 2); the pair that they belong to, (M,); mixed positions of each pair, (K,).
    """
    order = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=num_examples)
    starts = counts.cumsum(0) - counts
    lengths = counts[pairs].amin(-1)
    pair_of = torch.repeat_interleave(torch.arange(len(pairs), device=pairs.device), lengths)
    steps = torch.arange(len(pair_of), device=pairs.device) - (lengths.cumsum(0) - lengths)[pair_of]
    return order[starts[pairs[pair_of]] + steps[:, None]], pair_of, lengths


@checked
def mixup_loss(
    hidden_c: Tensor,
    hidden_u: Tensor,
    targets_c: Tensor,
    targets_u: Tensor,
    lam: Tensor,
    head: Head,
    *,
    chunk_size: PositiveInt = CHUNK_SIZE,
) -> Tensor:
    """Cross-entropy of mixed hidden states with equally mixed targets, at each position.

    ``z = lam*z_c + (1-lam)*z_u`` and ``loss = -lam*log p(y_c|z) - (1-lam)*log p(y_u|z)``, p the softmax of
    ``head(z)``. The head runs once for both targets, on at most ``chunk_size`` rows at a time.

    Args:
        hidden_c: final hidden states of the confident examples, (M, D).
        hidden_u: those of their partners, (M, D).
        targets_c: tokens that follow in the confident examples, (M,).
        targets_u: tokens that follow in their partners, (M,).
        lam: share of the confident example, in [0, 1], (M,).
        head: maps hidden states to logits, see ``head_logps``.
        chunk_size: positions per chunk, such as ``chunk_size_for(V)``.

    Returns:
        (M,) [nats], float32 or better. Gradient flows to both hidden states and to the parameters of ``head``.

    Raises:
        ValueError: the shapes do not fit, or ``chunk_size`` is not positive.
    """
    given = {"hidden_c": hidden_c, "hidden_u": hidden_u, "targets_c": targets_c, "targets_u": targets_u, "lam": lam}
    check_shapes("M D, M D, M, M, M", **given)

    def score(z_c: Tensor, z_u: Tensor, targets_n2: Tensor, lam_n: Tensor) -> Tensor:
        share = torch.stack([lam_n, 1 - lam_n], dim=-1)
        # In the model's own dtype, which its head expects.
        mixed = (share[:, :1] * z_c + share[:, 1:] * z_u).to(z_c.dtype)
        logps = at_least_float32(head(mixed)).log_softmax(-1).gather(-1, targets_n2)
        return -(share * logps).sum(-1)

    inputs = (hidden_c, hidden_u, torch.stack([targets_c, targets_u], dim=-1), lam)
    if len(lam) <= chunk_size:
        return score(*inputs)
    chunks = zip(*(torch.split(values, chunk_size) for values in inputs), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([score(*chunk) for chunk in chunks])
    # As in `head_logps`: the backward pass makes the logits again instead of keeping them.
    return torch.cat([checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


def mean_by_pair(values: Tensor, pair_of: Tensor, lengths: Tensor) -> Tensor:
    """Mean of each pair's positions: (M,), (M,) and (K,) from ``paired_positions`` -> (K,)."""
    steps = torch.arange(len(values), device=values.device) - (lengths.cumsum(0) - lengths)[pair_of]
    rows = values.new_zeros(len(lengths), int(lengths.max()) if len(lengths) else 0)
    return rows.index_put((pair_of, steps), values).sum(-1) / lengths
