"""Simple preference optimization (Meng et al. 2024, arXiv:2405.14734) and AlphaPO's form of its reward.

AlphaPO: Gupta et al. 2025, arXiv:2501.03884. Shapes: P pairs.
"""

from torch import Tensor

from lit_ift.losses.margins import bounded_expm1, mean_logps, sigmoid_loss
from lit_ift.losses.rewards import (
    check_at_least,
    check_between,
    check_number,
    check_positive,
    check_same_length,
    reward_metrics,
)


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma_over_beta: float = 0.5,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    alpha: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sigmoid loss on mean log-probabilities, with a target margin and no reference (arXiv:2405.14734, Eq. 6).

    ``loss = -(1 - ε) log σ(h) - ε log σ(-h) + w nll_chosen``, ``h = r_chosen - r_rejected - γ``, ``r = β m``, with m
    the mean log-probability of an answer's tokens, and ``nll = -m``. ε and w are options of the authors' code.

    With ``alpha`` the reward is AlphaPO's (arXiv:2501.03884): ``r = β (1 - e^(-α m)) / α``, which is SimPO's
    for α → 0. Where -α m exceeds 30 it goes on along its tangent.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: scale of the rewards [1/nat], above 0.
        gamma_over_beta: target margin γ divided by β, at least 0; the authors' ``gamma_beta_ratio``, which they advise
            to search from 0.5 on (their code's default is 0.25). TRL's ``simpo_gamma`` is γ itself.
        label_smoothing: ε in [0, 0.5).
        sft_weight: w, at least 0. The nll is that of each answer; TRL (``cpo_alpha``) takes the mean over all chosen
            tokens of the batch.
        alpha: shape of the reward; 0 for SimPO.

    Returns:
        Losses (P,), the rewards r of both answers with margins and accuracies, and ``nll_loss`` of the chosen
        answers, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_positive(beta=beta)
    check_between(0, 0.5, label_smoothing=label_smoothing)
    check_at_least(0, gamma_over_beta=gamma_over_beta, sft_weight=sft_weight)
    check_number(alpha=alpha)
    chosen_mean = mean_logps(chosen_logps, chosen_lengths)
    chosen, rejected = chosen_mean, mean_logps(rejected_logps, rejected_lengths)
    if alpha:
        chosen, rejected = (-bounded_expm1(-alpha * mean) / alpha for mean in (chosen, rejected))
    losses = sigmoid_loss(beta * (chosen - rejected - gamma_over_beta), label_smoothing) - sft_weight * chosen_mean
    return losses, reward_metrics(beta * chosen, beta * rejected) | {"nll_loss": -chosen_mean.detach()}
