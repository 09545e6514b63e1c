"""Losses on DPO's margin by another measure or through another function. Shapes: P pairs."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.masking import mean_logps
from lit_ift.losses.pair.arithmetic import bounded_expm1, implicit_rewards, log_ratios, reward_metrics
from lit_ift.options import Positive


def sigmoid_norm_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Positive = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO with log-ratios per token, as in Tülu 3 (arXiv:2411.15124) and TRL.

    ``loss = -log σ(r_chosen - r_rejected)``, ``r = β (log π - log π_ref) / n``, n the trained tokens of the answer.
    A reward per token asks for a larger β than DPO's.

    Use:
        Like DPO, but a long answer counts no more than a short one, for data whose chosen answers are mostly the longer
        ones.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: pull towards the reference [1/nat], above 0; TRL's default.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(chosen_logps=chosen_logps, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    chosen, rejected = beta * mean_logps(chosen, chosen_lengths), beta * mean_logps(rejected, rejected_lengths)
    return -logsigmoid(chosen - rejected), reward_metrics(chosen, rejected)


def discopop_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.05,
    tau: Positive = 0.05,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO that turns into an exponential loss as the margin grows (DiscoPOP, arXiv:2406.08414, Eq. 5).

    ``loss = -(1 - m) log σ(h) + m e^-h``, ``m = σ(h / τ)``, ``h = r_chosen - r_rejected``,
    ``r = β (log π - log π_ref)``. It rises between h = -2.4 τ and 1.5 τ, for the default τ: there, where training
    begins, a step narrows the margin, until it is below -2.4 τ.

    Use:
        DPO where the margin is well below 0. Well above 0 the pull is e^-h, up to twice DPO's σ(-h). A search over
        losses that a language model wrote found it (so the paper). Expect the margin to narrow first.

    Departures:
        Where -h exceeds 30, e^-h goes on along its tangent. The factor m is below 1e-260 there, so that both are 0.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.
        tau: τ, width of the passage from one loss to the other, above 0.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    h = chosen - rejected
    losses = -(-h / tau).sigmoid() * logsigmoid(h) + (h / tau).sigmoid() * (1 + bounded_expm1(-h))
    return losses, reward_metrics(chosen, rejected)
