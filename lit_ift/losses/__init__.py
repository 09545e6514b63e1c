"""Objectives as pure functions of tensors: torch only, one value per example, detached metrics."""

from lit_ift.losses.cumsum import discounted_cumsum
from lit_ift.losses.ift import ift_loss, propagation_weights, temporal_residual
from lit_ift.losses.logprobs import TokenScores, head_logps, score_tokens, target_mask
from lit_ift.losses.packing import unpack, unpack_scores
from lit_ift.losses.sft import per_sequence_mean, sft_loss

__all__ = [
    "TokenScores",
    "discounted_cumsum",
    "head_logps",
    "ift_loss",
    "per_sequence_mean",
    "propagation_weights",
    "score_tokens",
    "sft_loss",
    "target_mask",
    "temporal_residual",
    "unpack",
    "unpack_scores",
]
