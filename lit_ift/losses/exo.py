"""Efficient exact optimization (Ji et al. 2024, arXiv:2402.00856). Shapes: P pairs."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.margins import log_ratios
from lit_ift.losses.rewards import check_between, check_positive, reward_metrics


def exo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reverse KL from the policy's preference to the smoothed label (arXiv:2402.00856, Eq. 16 with K = 2).

    ``loss = q log(q / (1 - ε)) + (1 - q) log((1 - q) / ε)`` with ``q = σ(h)``, ``h = r_chosen - r_rejected``,
    ``r = β (log π - log π_ref)``. The minimum 0 lies at q = 1 - ε; beyond it the margin shrinks again. Where DPO's
    gradient is largest, far on the wrong side, this one's vanishes (q' → 0).

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: β_π of the paper, pull towards the reference [1/nat], above 0.
        label_smoothing: ε in (0, 0.5). Not 0: the divergence from a label that is certain is infinite. TRL's default;
            the authors' code has e^-10 for ε and 1 for 1 - ε.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_positive(beta=beta, label_smoothing=label_smoothing)
    check_between(0, 0.5, label_smoothing=label_smoothing)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    chosen, rejected = beta * chosen, beta * rejected
    h = chosen - rejected
    losses = h.sigmoid() * (logsigmoid(h) - math.log1p(-label_smoothing))
    losses = losses + (-h).sigmoid() * (logsigmoid(-h) - math.log(label_smoothing))
    return losses, reward_metrics(chosen, rejected)
