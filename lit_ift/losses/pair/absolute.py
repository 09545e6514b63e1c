"""Losses with a reference that judge each answer's implicit reward by itself, not the margin alone. Shapes: P pairs."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_positive
from lit_ift.losses.pair.arithmetic import log_ratios, reward_metrics


def nca_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """NCA for pairs: every answer is told from noise by itself (arXiv:2402.05369, pairwise NCA).

    ``loss = -log σ(r_chosen) - ½ log σ(-r_chosen) - ½ log σ(-r_rejected)``, ``r = β (log π - log π_ref)``. The first
    two terms hold the chosen reward near log 2 (σ = 2/3), so that its likelihood does not fall with the rejected one's.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    chosen, rejected = beta * chosen, beta * rejected
    losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
    return losses, reward_metrics(chosen, rejected)


def sppo_hard_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 1e-3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared distance of each log-ratio from its win rate (arXiv:2405.00675, Eq. 4.7), with hard labels.

    ``loss = (ρ_chosen - 1/(2β))² + (ρ_rejected + 1/(2β))²``, ``ρ = log π - log π_ref``; the paper's η is 1/β.

    Departures:
        The win rate P is 1 for the chosen and 0 for the rejected answer, as in TRL (``sppo_hard``). The paper and its
        authors' code take it from a preference model.
        The authors' code has half of this sum.

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


def apo_zero_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the chosen and lower the rejected answer (arXiv:2408.06266, Eq. 7).

    ``loss = 1 - σ(r_chosen) + σ(r_rejected)``, ``r = β (log π - log π_ref)``. For data whose chosen answers are
    better than the policy's own.

    Departures:
        The 1 is TRL's, so that the loss is above 0. It has no gradient.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    chosen, rejected = beta * chosen, beta * rejected
    return (-chosen).sigmoid() + rejected.sigmoid(), reward_metrics(chosen, rejected)


def apo_down_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Lower both answers, the rejected one more (arXiv:2408.06266, Eq. 8).

    ``loss = σ(r_chosen) + 1 - σ(r_chosen - r_rejected)``, ``r = β (log π - log π_ref)``. For data whose chosen
    answers are worse than the policy's own. Where the margin is small the second term can outweigh the first, and the
    chosen answer rises.

    Departures:
        The 1 is TRL's, so that the loss is above 0. It has no gradient.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_positive(beta=beta)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    chosen, rejected = beta * chosen, beta * rejected
    return chosen.sigmoid() + (rejected - chosen).sigmoid(), reward_metrics(chosen, rejected)
