"""Arithmetic that several pair losses share, safe at the extremes, and rewards as metrics. Shapes: P pairs."""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.masking import at_least_float32

MAX_EXPONENT = 30.0
"""Where `bounded_expm1` turns into its tangent: e^30 squared and summed is still a finite float32."""
NEAREST_TO_ZERO: Final = -torch.finfo(torch.float32).eps
"""Log-probability from which on `log_complement` is its tangent, the same in every precision."""


def log_ratios(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    reference_free: bool = False,
) -> tuple[Tensor, Tensor]:
    """``log π - log π_ref`` of both answers [nats], (P,) each; ``reference_free`` takes a uniform π_ref.

    Raises:
        ValueError: the shapes differ or are not (P,).
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    if reference_free:
        return chosen_logps, rejected_logps
    return chosen_logps - reference_chosen_logps, rejected_logps - reference_rejected_logps


def sigmoid_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-(1 - ε) log σ(margin) - ε log σ(-margin)``, (P,)."""
    if label_smoothing == 0:
        return -logsigmoid(margin)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def bounded_expm1(exponent: Tensor) -> Tensor:
    """``e^x - 1`` up to x = 30, from there on its tangent: no overflow, and the gradient neither ends nor explodes."""
    # Not `exponent - curved`, whose two large gradients would cancel, and the small one with them.
    straight = (exponent - MAX_EXPONENT).relu()
    return torch.expm1(exponent.clamp(max=MAX_EXPONENT)) + math.exp(MAX_EXPONENT) * straight


def log_complement(logp: Tensor) -> Tensor:
    """``log(1 - p)`` of ``p = e^logp``, any shape, with all digits near p = 0 and near p = 1; logp is at most 0.

    It tends to minus infinity at p = 1, and so does its slope ``-p / (1 - p)``. From logp = -2^-23 on, the tangent at
    that point takes over: it is -16.9 at p = 1, with the slope 1 - 2^23, so that values and gradients stay finite, and
    a gradient remains. Half precision, in which 1 - p has no digits near p = 1, is computed in float32.
    """
    logp = at_least_float32(logp)
    curved = logp.clamp(max=NEAREST_TO_ZERO)
    straight = (logp - NEAREST_TO_ZERO).relu()  # not `logp - curved`: its large gradients would not cancel exactly
    slope = math.exp(NEAREST_TO_ZERO) / math.expm1(NEAREST_TO_ZERO)
    # `curved` stays off 0, so that both are finite everywhere: the gradient of the one not taken is multiplied by 0,
    # which does not undo an infinity.
    near_one = torch.log(-torch.expm1(curved))
    near_zero = torch.log1p(-torch.exp(curved))
    return torch.where(curved > -math.log(2), near_one, near_zero) + slope * straight


def log_odds(logp: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of ``p = e^logp``, any shape, logp at most 0; finite at p = 1, see ``log_complement``."""
    return logp - log_complement(logp)


def reward_metrics(chosen: Tensor, rejected: Tensor, *, group: str = "rewards") -> dict[str, Tensor]:
    """``<group>/chosen``, ``/rejected``, ``/margins`` and ``/accuracies``, detached, (P,) each."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        f"{group}/chosen": chosen,
        f"{group}/rejected": rejected,
        f"{group}/margins": chosen - rejected,
        f"{group}/accuracies": (chosen > rejected).to(chosen.dtype),
    }
