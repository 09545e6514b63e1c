"""Masked sums and means of token values, and the precision that they are taken in.

Shapes: B sequences, T positions, P answers.
"""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or unchanged if they are more precise already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` in float32 or better, exactly zero off ``mask`` even where they are NaN or infinite there."""
    return at_least_float32(values).masked_fill(~mask.bool(), 0.0)


def target_counts(mask: Tensor) -> Tensor:
    """Number of trained tokens of each row, (B,), int64."""
    return mask.bool().sum(-1)


def per_sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` over the masked positions of each row, (B, T) -> (B,); a row without any gives 0.

    That zero stays attached to the graph, so that a rank which holds only such rows still takes part in the
    gradient reduction.
    """
    return masked(values, mask).sum(-1) / target_counts(mask).clamp(min=1)


def token_mean(values: Tensor, mask: Tensor, data_weights: Tensor | None = None) -> Tensor:
    """``per_sequence_mean`` of the values times the weights that the data gives to tokens, if it does, (B, T) each."""
    return per_sequence_mean(values if data_weights is None else at_least_float32(values) * data_weights, mask)


def mean_logps(logps: Tensor, lengths: Tensor) -> Tensor:
    """Log-probability per trained token [nats]; an answer without any has 0, attached to the graph. (P,)."""
    return logps / lengths.clamp(min=1)
