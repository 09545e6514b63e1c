"""Losses with a reference that judge each answer's implicit reward by itself, not the margin alone. Shapes: P pairs."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.pair.arithmetic import implicit_rewards, log_ratios, reward_metrics
from lit_ift.options import Positive


def nca_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """NCA for pairs: every answer is told from noise by itself (arXiv:2402.05369, pairwise NCA).

    ``loss = -log σ(r_chosen) - ½ log σ(-r_chosen) - ½ log σ(-r_rejected)``, ``r = β (log π - log π_ref)``. The first
    two terms hold the chosen reward near log 2 (σ = 2/3), so that its likelihood does not fall with the rejected one's.

    Use:
        Like DPO, but the chosen answer's own reward is held up, where DPO may let the likelihood of both answers fall.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
    return losses, reward_metrics(chosen, rejected)


def sppo_hard_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 1e-3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared distance of each log-ratio from its win rate (arXiv:2405.00675, Eq. 4.7), with hard labels.

    ``loss = (ρ_chosen - 1/(2β))² + (ρ_rejected + 1/(2β))²``, ``ρ = log π - log π_ref``; the paper's η is 1/β.

    Use:
        Like IPO, but each answer has a target of its own. The paper uses it in rounds, on answers of the policy itself.

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
        ValueError: shapes differ.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    losses = (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
    return losses, reward_metrics(beta * chosen, beta * rejected)


def apo_zero_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the chosen and lower the rejected answer (arXiv:2408.06266, Eq. 7).

    ``loss = 1 - σ(r_chosen) + σ(r_rejected)``, ``r = β (log π - log π_ref)``. For data whose chosen answers are
    better than the policy's own.

    Use:
        Where chosen answers are better than what the policy gives itself. Unlike with DPO, the chosen answer rises by
        itself, whatever the rejected one does.

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
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    return (-chosen).sigmoid() + rejected.sigmoid(), reward_metrics(chosen, rejected)


def apo_down_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Lower both answers, the rejected one more (arXiv:2408.06266, Eq. 8).

    ``loss = σ(r_chosen) + 1 - σ(r_chosen - r_rejected)``, ``r = β (log π - log π_ref)``. For data whose chosen
    answers are worse than the policy's own. Where the margin is small the second term can outweigh the first, and the
    chosen answer rises.

    Use:
        Where chosen answers are worse than what the policy gives itself, and still better than the rejected ones.

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
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    return chosen.sigmoid() + (rejected - chosen).sigmoid(), reward_metrics(chosen, rejected)


def bco_pair_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Tell chosen from rejected answers one by one, as TRL's ``bco_pair`` does; ``bco`` without a shift.

    ``loss = -log σ(r_chosen) - log σ(-r_rejected)``, ``r = β (log π - log π_ref)``. The paper of BCO
    (arXiv:2404.04656) shifts rewards by their mean.

    Use:
        Like DPO, but each answer is judged by itself. Take it for numbers that compare with TRL's, else ``bco``.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    return bco_loss(
        chosen_logps,
        rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        torch.zeros_like(chosen_logps),
        beta=beta,
    )


def bco_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    log_ratio_mean: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Tell chosen from rejected answers by rewards less their running mean (arXiv:2404.04656, pairs).

    ``loss = -log σ(r_chosen - δ) - log σ(δ - r_rejected)``, ``r = β (log π - log π_ref)``, and δ the mean reward of
    all answers of the steps before, each step counting the same. The first step has δ = 0, where policy and reference
    agree.

    Use:
        Like DPO, but each answer is judged by itself, against the mean reward so far. MPO has it as one term of three.

    Departures:
        The paper takes the rewards of a step into δ before that step's loss. Here δ is of the steps before, by the rows
        of all processes, so that the loss does not depend on how a step is split.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        log_ratio_mean: δ / β [nats], no gradient, the same for all pairs, (P,).
        beta: pull towards the reference [1/nat], above 0.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(chosen_logps=chosen_logps, log_ratio_mean=log_ratio_mean)
    chosen, rejected = implicit_rewards(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    shift = beta * log_ratio_mean.detach()
    return -logsigmoid(chosen - shift) - logsigmoid(shift - rejected), reward_metrics(chosen, rejected)
