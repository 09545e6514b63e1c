"""Arithmetic that several pair losses share, safe at the extremes, and rewards as metrics. Shapes: P pairs."""

import math
from typing import Annotated, Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.masking import at_least_float32
from lit_ift.options import Range

LabelSmoothing = Annotated[float, Range(ge=0, lt=0.5)]
"""Share of labels that is supposed to be wrong."""
MaxOdds = Annotated[float, Range(ge=1, lt=2**23)]
"""At which odds the slope of ``log_complement`` can be held."""
MAX_EXPONENT = 30.0
"""Where `bounded_expm1` turns into its tangent: e^30 squared and summed is still a finite float32."""
MOST_ODDS: Final = 1 / math.expm1(torch.finfo(torch.float32).eps)
"""Largest odds p / (1 - p) that float32 tells from those of p = 1; about 2^23. The same in every precision."""


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


def implicit_rewards(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    reference_free: bool = False,
) -> tuple[Tensor, Tensor]:
    """``β (log π - log π_ref)`` of both answers, (P,) each; see `log_ratios`."""
    chosen, rejected = log_ratios(
        chosen_logps,
        rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        reference_free=reference_free,
    )
    return beta * chosen, beta * rejected


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


def logp_of_odds(odds: float) -> float:
    """``log p`` at which ``p / (1 - p)`` is ``odds``."""
    return -math.log1p(1 / odds)


def log_complement(logp: Tensor, *, max_odds: float = MOST_ODDS) -> Tensor:
    """``log(1 - p)`` of ``p = e^logp``, any shape, with all digits near p = 0 and near p = 1; logp is at most 0.

    It tends to minus infinity at p = 1, and so does its slope ``-p / (1 - p)``. From the p on whose odds are
    ``max_odds``, the tangent at that point takes over, with the slope ``-max_odds``, so that values and gradients stay
    finite, and a gradient remains. By default that is logp = -2^-23, and the value at p = 1 is -16.9. Half precision,
    in which 1 - p has no digits near p = 1, is computed in float32.
    """
    logp, bound = at_least_float32(logp), logp_of_odds(max_odds)
    curved = logp.clamp(max=bound)
    straight = (logp - bound).relu()  # not `logp - curved`: its large gradients would not cancel exactly
    # `curved` stays off 0, so that both are finite everywhere: the gradient of the one not taken is multiplied by 0,
    # which does not undo an infinity.
    near_one = torch.log(-torch.expm1(curved))
    near_zero = torch.log1p(-torch.exp(curved))
    return torch.where(curved > -math.log(2), near_one, near_zero) - max_odds * straight


def log_odds(logp: Tensor, *, max_odds: float = MOST_ODDS) -> Tensor:
    """``log(p / (1 - p))`` of ``p = e^logp``, any shape, logp at most 0; finite at p = 1, see ``log_complement``."""
    return logp - log_complement(logp, max_odds=max_odds)


def odds_exceed(logp: Tensor, max_odds: float) -> Tensor:
    """1 where the odds of ``p = e^logp`` are above ``max_odds``, else 0; any shape, no gradient."""
    return (logp.detach() > logp_of_odds(max_odds)).to(logp.dtype)


def reward_metrics(chosen: Tensor, rejected: Tensor, *, group: str = "rewards") -> dict[str, Tensor]:
    """``<group>/chosen``, ``/rejected``, ``/margins`` and ``/accuracies``, detached, (P,) each."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        f"{group}/chosen": chosen,
        f"{group}/rejected": rejected,
        f"{group}/margins": chosen - rejected,
        f"{group}/accuracies": (chosen > rejected).to(chosen.dtype),
    }
