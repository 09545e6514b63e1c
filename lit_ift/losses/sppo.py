"""Self-play preference optimization (Wu et al. 2024, arXiv:2405.00675). Shapes: P pairs."""

from torch import Tensor

from lit_ift.losses.margins import log_ratios
from lit_ift.losses.rewards import check_positive, reward_metrics


def sppo_hard_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 1e-3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared distance of each log-ratio from its win rate (arXiv:2405.00675, Eq. 4.7), with hard labels.

    ``loss = (ρ_chosen - 1/(2β))² + (ρ_rejected + 1/(2β))²``, ``ρ = log π - log π_ref``; the paper's η is 1/β. The paper
    and its authors' code take the win rate P of each answer from a preference model; here P is 1 for the chosen and 0
    for the rejected answer, as in TRL (``sppo_hard``). The authors' code has half of this sum.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: 1/η [1/nat], above 0. The paper's η is 1000.

    Returns:
        Losses (P,), and rewards βρ of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    losses = (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
    return losses, reward_metrics(beta * chosen, beta * rejected)
