"""Objectives as pure functions of tensors: torch only, one value per example, detached metrics."""

from lit_ift.losses.cumsum import discounted_cumsum
from lit_ift.losses.ift import ift_loss, propagation_weights, temporal_residual
from lit_ift.losses.logprobs import TokenScores, head_logps, score_tokens, target_mask
from lit_ift.losses.masking import per_sequence_mean
from lit_ift.losses.packing import unpack, unpack_scores
from lit_ift.losses.pair.absolute import apo_down_loss, apo_zero_loss, nca_loss, sppo_hard_loss
from lit_ift.losses.pair.arithmetic import reward_metrics
from lit_ift.losses.pair.in_batch import aot_loss, aot_unpaired_loss
from lit_ift.losses.pair.reference import dpo_loss, exo_loss, f_dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from lit_ift.losses.pair.reference_free import chosen_sft_loss, cpo_loss, orpo_loss, simpo_loss, tpo_l_loss, tpo_loss
from lit_ift.losses.registry import INPUTS, PAIR_LOSSES, PairLoss
from lit_ift.losses.sft import sft_loss
from lit_ift.losses.token_registry import TOKEN_INPUTS, TOKEN_LOSSES, TokenLoss

__all__ = [
    "INPUTS",
    "PAIR_LOSSES",
    "TOKEN_INPUTS",
    "TOKEN_LOSSES",
    "PairLoss",
    "TokenLoss",
    "TokenScores",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "chosen_sft_loss",
    "cpo_loss",
    "discounted_cumsum",
    "dpo_loss",
    "exo_loss",
    "f_dpo_loss",
    "head_logps",
    "hinge_loss",
    "ift_loss",
    "ipo_loss",
    "nca_loss",
    "orpo_loss",
    "per_sequence_mean",
    "propagation_weights",
    "reward_metrics",
    "robust_dpo_loss",
    "score_tokens",
    "sft_loss",
    "simpo_loss",
    "sppo_hard_loss",
    "target_mask",
    "temporal_residual",
    "tpo_l_loss",
    "tpo_loss",
    "unpack",
    "unpack_scores",
]
