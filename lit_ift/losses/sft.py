"""Supervised fine-tuning: the mean negative log-likelihood of each response."""

from torch import Tensor

from lit_ift.losses.cumsum import at_least_float32
from lit_ift.losses.margins import mean_logps
from lit_ift.losses.rewards import check_same_length


def check_token_shapes(nll: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless ``nll`` and ``mask`` are both (B, T)."""
    if nll.ndim != 2 or nll.shape != mask.shape:
        raise ValueError(f"nll of shape {tuple(nll.shape)} and mask of shape {tuple(mask.shape)} must both be (B, T)")


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


def sft_loss(nll: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean negative log-likelihood of each example's trained tokens.

    ``loss_b = (1/n_b) * sum_t nll[b,t]`` over the n_b positions where ``mask[b]`` is true.

    Args:
        nll: negative log-likelihood of the token that follows each position [nats], (B, T).
        mask: true where that token is trained on, (B, T).

    Returns:
        Losses of shape (B,), float32 or better, 0 for a row without trained tokens; no metrics.

    Raises:
        ValueError: the shapes differ or are not (B, T).
    """
    check_token_shapes(nll, mask)
    return per_sequence_mean(nll, mask), {}


def chosen_sft_loss(chosen_logps: Tensor, chosen_lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """``sft_loss`` of the chosen answers of pairs; the rejected ones take no part.

    TRL's ``sft`` is the mean over all chosen tokens of a batch, so that a long answer counts for more; here every
    answer counts the same, as in ``sft_loss``.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        chosen_lengths: their trained tokens, (P,).

    Returns:
        Losses (P,); no metrics.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(chosen_logps=chosen_logps, chosen_lengths=chosen_lengths)
    return -mean_logps(chosen_logps, chosen_lengths), {}
