"""Supervised fine-tuning: the mean negative log-likelihood of each response."""

from torch import Tensor

from lit_ift.losses.checks import check_shapes
from lit_ift.losses.masking import token_mean


def sft_loss(nll: Tensor, mask: Tensor, data_weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean negative log-likelihood of each example's trained tokens.

    ``loss = mean over tokens of nll``, over the n_b positions where ``mask[b]`` is true.

    Use:
        The usual fine-tuning, and what all other token losses are to be compared with.

    Args:
        nll: negative log-likelihood of the token that follows each position [nats], (B, T).
        mask: true where that token is trained on, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.

    Returns:
        Losses of shape (B,), float32 or better, 0 for a row without trained tokens; no metrics.

    Raises:
        ValueError: the shapes differ or are not (B, T).
    """
    check_shapes("B T, B T", nll=nll, mask=mask)
    return token_mean(nll, mask, data_weights), {}
