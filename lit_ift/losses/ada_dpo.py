"""Adaptive preference scaling, Ada-DPO (Hong et al. 2024, arXiv:2406.02764). Shapes: P pairs."""

import math
from functools import cache

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.margins import log_ratios
from lit_ift.losses.rewards import check_positive, reward_metrics


def ada_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    tau_min: float = 0.1,
    tau_max: float = 5.0,
    rho0: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO with a temperature for each pair, small where the preference is unclear and large where it is clear.

    The defaults are those of the authors' code for language models, which leaves the term ρτ out of the loss: it has no
    gradient, as τ is fixed.

    ``loss = min over τ in [τ_min, τ_max] of -τ log σ(h/τ) + ρ τ``, ``ρ = ρ0 - log 2``, ``h`` as in DPO. No gradient
    flows through τ; at the minimum there is none anyway (envelope theorem). With τ_min = τ_max = 1 it is DPO plus ρ.

    The slope of the objective in τ is ``H(σ(h/τ)) - (log 2 - ρ0)`` with H the entropy of a coin in nats. It depends
    on τ through h/τ alone, so the minimum is at ``τ = |h| / u`` with one u for all pairs, cut to the interval.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.
        tau_min: smallest τ, above 0.
        tau_max: largest τ, at least ``tau_min``.
        rho0: how far τ may reshape the loss, a KL divergence [nats] in (0, log 2). Near 0 every τ is ``tau_max``,
            near log 2 every τ is ``tau_min``.

    Returns:
        Losses (P,), and the rewards of both answers with margins and accuracies, and ``tau``, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    chosen_ratios, rejected_ratios = log_ratios(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    check_positive(beta=beta, tau_min=tau_min)
    if not tau_min <= tau_max < math.inf:
        raise ValueError(f"tau_max={tau_max} must be finite and at least tau_min={tau_min}")
    if not 0 < rho0 < math.log(2):
        raise ValueError(f"rho0={rho0} must be above 0 and below log 2 = {math.log(2):.4f}")
    chosen, rejected = beta * chosen_ratios, beta * rejected_ratios
    h = chosen - rejected
    # The authors take a few projected Newton steps from τ = 1 (Algorithm 1; five in their code). They may jump from one
    # end of the interval to the other where the objective is nearly linear; the exact minimum costs one division.
    tau = (h.detach().abs() / _stationary_ratio(rho0)).clamp(tau_min, tau_max)
    losses = -tau * logsigmoid(h / tau) + (rho0 - math.log(2)) * tau
    return losses, {**reward_metrics(chosen, rejected), "tau": tau}


@cache
def _stationary_ratio(rho0: float) -> float:
    """The u > 0 at which a coin that lands heads with probability σ(u) has entropy ``log 2 - rho0``, by bisection."""
    low, high = 0.0, 64.0  # The entropy falls from log 2 to 1e-26.
    while low < (middle := (low + high) / 2) < high:
        entropy = math.log1p(math.exp(-middle)) + middle / (1 + math.exp(middle))
        low, high = (middle, high) if entropy > math.log(2) - rho0 else (low, middle)
    return high
