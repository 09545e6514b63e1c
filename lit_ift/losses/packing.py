"""From packed rows back to one row per example, so that losses need not know of packing.

Shapes: P packed rows of T positions that hold B examples, the longest of L positions; N trained positions.
"""

import torch
from torch import Tensor

from lit_ift.losses.checks import check_shapes
from lit_ift.losses.logprobs import TokenScores


def count_examples(sequence_ids: Tensor) -> int:
    """B, given which example each position belongs to: 0 to B-1, each at least once, and -1 for none."""
    return int(sequence_ids.max()) + 1


def unpack(values: Tensor, sequence_ids: Tensor, num_examples: int, *, fill: float = 0) -> Tensor:
    """Give each example a row of its own, filled up on the right.

    Args:
        values: any dtype, (P, T).
        sequence_ids: int64, the example that each position belongs to, -1 for none, (P, T).
        num_examples: B; an example may have no position.
        fill: stands where an example has ended.

    Returns:
        (B, L). Within an example, positions keep their row-major order. Gradient flows to ``values``.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes("P T, P T", values=values, sequence_ids=sequence_ids)
    inside = sequence_ids >= 0
    owners = sequence_ids[inside]
    order = owners.argsort(stable=True)
    owners = owners[order]
    lengths = torch.bincount(owners, minlength=num_examples)
    starts = lengths.cumsum(0) - lengths
    columns = torch.arange(len(owners), device=owners.device) - starts[owners]
    width = int(lengths.max()) if num_examples else 0
    rows = torch.full((num_examples, width), fill, dtype=values.dtype, device=values.device)
    return rows.index_put((owners, columns), values[inside][order])


def example_order(mask: Tensor, sequence_ids: Tensor) -> Tensor:
    """Where the trained tokens, example after example, stand in the row-major order of packed rows.

    Args:
        mask: true where the token after a position is trained on, (P, T-1).
        sequence_ids: int64, the example that each token belongs to, -1 for none, (P, T).

    Returns:
        Indices into that order, (N,) int64.
    """
    return sequence_ids[:, 1:][mask].argsort(stable=True)


def unpack_scores(scores: TokenScores, sequence_ids: Tensor) -> TokenScores:
    """The scores that the examples of packed rows would have in rows of their own.

    Args:
        scores: of packed rows: nll and mask (P, T-1), and N predictions in the order of the mask.
        sequence_ids: int64, the example that each token belongs to, -1 for none, (P, T).

    Returns:
        nll, mask and statistics of shape (B, L-1), predictions in the order of that mask. Gradient flows to the nll.

    Raises:
        ValueError: a token is trained on that is the first of its example, so that another one would predict it.
    """
    owners = sequence_ids[:, 1:]
    inside = owners == sequence_ids[:, :-1]
    if bool((scores.mask & ~inside).any()):
        raise ValueError("the first token of a packed example is trained on, though nothing before it predicts it")
    steps = owners.where(inside, -1)
    num_examples = count_examples(sequence_ids)
    predictions = scores.predictions
    if len(predictions):
        predictions = predictions[example_order(scores.mask, sequence_ids)]
    return TokenScores(
        nll=unpack(scores.nll, steps, num_examples),
        mask=unpack(scores.mask, steps, num_examples),
        predictions=predictions,
        statistics={name: unpack(values, steps, num_examples) for name, values in scores.statistics.items()},
    )


def packed_order(values: Tensor, mask: Tensor, sequence_ids: Tensor) -> Tensor:
    """Undo what ``unpack_scores`` did to the order of the predictions.

    Args:
        values: one for each trained token, by example, (N, ...).
        mask: true where the token after a position is trained on, in packed rows, (P, T-1).
        sequence_ids: as for ``unpack_scores``, (P, T).

    Returns:
        ``values`` in the row-major order of ``mask``, (N, ...).
    """
    return values[example_order(mask, sequence_ids).argsort()]
