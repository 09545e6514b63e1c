"""Soft preference labels by geometric averaging (Furuta et al. 2024, arXiv:2409.06691). Shapes: P pairs.

With ``p̂`` the probability that the chosen answer is the better one, the paper replaces each answer's likelihood by a
weighted geometric average, ``π_w^p̂ π_l^(1-p̂)`` and ``π_l^p̂ π_w^(1-p̂)``. Their log-ratio against the reference is
``(2p̂ - 1) h``, so this factor on ``h`` is all that changes in any loss built on ``h``. A coin flip, ``p̂ = 1/2``, has
no gradient.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.pair.arithmetic import log_ratios, reward_metrics
from lit_ift.options import Positive


def gdpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    preference: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Geometric DPO, which weights a pair by how sure its label is (arXiv:2409.06691).

    ``loss = -log σ((2p̂ - 1) h)`` with ``h`` as in DPO, which it is where p̂ = 1.

    Use:
        Like DPO, for pairs whose labels are more or less certain: an unsure pair counts less. On pairs without soft
        labels it is DPO.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        preference: p̂ in [0.5, 1], (P,).
        beta: pull towards the reference [1/nat], above 0.

    Returns:
        Losses (P,), and the rewards of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = _log_ratios(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, preference
    )
    chosen, rejected = beta * chosen, beta * rejected
    return -logsigmoid((2 * preference - 1) * (chosen - rejected)), reward_metrics(chosen, rejected)


def gipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    preference: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Geometric IPO, which weights a pair by how sure its label is (arXiv:2409.06691).

    ``loss = ((2p̂ - 1) d - 1/(2β))²``, ``d = h/β`` the difference of log-ratios; IPO where p̂ = 1.

    Use:
        Like IPO, for pairs whose labels are more or less certain. On pairs without soft labels it is IPO.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        preference: p̂ in [0.5, 1], (P,).
        beta: pull towards the reference [1/nat], above 0; at p̂ = 1 the best d is 1/(2β) nats.

    Returns:
        Losses (P,), and the rewards of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = _log_ratios(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, preference
    )
    losses = ((2 * preference - 1) * (chosen - rejected) - 1 / (2 * beta)).square()
    return losses, reward_metrics(beta * chosen, beta * rejected)


def _log_ratios(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    preference: Tensor,
) -> tuple[Tensor, Tensor]:
    """``log π - log π_ref`` of the chosen and of the rejected answers, (P,) each."""
    check_same_length(chosen_logps=chosen_logps, preference=preference)
    return log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
