"""Triple preference optimization (Saeidi et al. 2024, arXiv:2405.16681). Shapes: P pairs with a gold answer."""

from typing import Literal, get_args

from torch import Tensor

from lit_ift.losses.margins import mean_logps, sigmoid_loss
from lit_ift.losses.rewards import check_at_least, check_choice, check_positive, check_same_length, reward_metrics

LossType = Literal["sigmoid", "hinge"]


def tpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    gold_logps: Tensor,
    gold_lengths: Tensor,
    *,
    beta: float = 0.01,
    alpha: float = 1.0,
    loss_type: LossType = "sigmoid",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Preference without a reference, and the likelihood of a gold answer (arXiv:2405.16681).

    ``loss = -log σ(h) + α nll_gold``, ``h = r_chosen - r_rejected``, ``r = β log π``; ``hinge`` takes
    ``max(0, 1 - h)`` instead. The nll is per token of each gold answer. The paper writes a sum over tokens; the
    authors' code and TRL take the mean over all gold tokens of the batch. The defaults are those of the authors'
    recipes for base models; for instruction-tuned ones they set α to 0.05, which is their code's default.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        gold_logps: of the gold answers, (P,).
        gold_lengths: trained tokens of the gold answers, (P,).
        beta: steepness [1/nat], above 0.
        alpha: weight of the gold answer, at least 0.
        loss_type: see above.

    Returns:
        Losses (P,), the rewards r of both answers with margins and accuracies, and ``nll_loss`` of the gold answers,
        detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_same_length(
        chosen_logps=chosen_logps, rejected_logps=rejected_logps, gold_logps=gold_logps, gold_lengths=gold_lengths
    )
    check_positive(beta=beta)
    check_at_least(0, alpha=alpha)
    check_choice(get_args(LossType), loss_type=loss_type)
    chosen, rejected, gold = beta * chosen_logps, beta * rejected_logps, mean_logps(gold_logps, gold_lengths)
    h = chosen - rejected
    contrast = sigmoid_loss(h) if loss_type == "sigmoid" else (1 - h).relu()
    return contrast - alpha * gold, reward_metrics(chosen, rejected) | {"nll_loss": -gold.detach()}


def tpo_l_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    gold_logps: Tensor,
    gold_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    alpha: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """TPO with rewards per token and a target margin (arXiv:2405.16681, TPO-L).

    ``loss = -log σ(r_chosen - r_rejected - γ) + α nll_gold``, ``r = β m``, with m the mean log-probability of an
    answer's tokens; without the gold answer it is SimPO.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        gold_logps: summed log-probability of the gold answers, (P,).
        gold_lengths: trained tokens of the gold answers, (P,).
        beta: scale of the rewards [1/nat], above 0.
        gamma: γ, at least 0; the authors' and TRL's ``tpo_l_gamma``. The authors search it with β, model by model
            (Mistral 7B: 1.6 with β = 2).
        alpha: weight of the gold answer, at least 0.

    Returns:
        As ``tpo_loss``, with rewards per token.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        gold_logps=gold_logps,
        gold_lengths=gold_lengths,
    )
    check_positive(beta=beta)
    check_at_least(0, gamma=gamma, alpha=alpha)
    chosen = beta * mean_logps(chosen_logps, chosen_lengths)
    rejected = beta * mean_logps(rejected_logps, rejected_lengths)
    gold = mean_logps(gold_logps, gold_lengths)
    metrics = reward_metrics(chosen, rejected) | {"nll_loss": -gold.detach()}
    return sigmoid_loss(chosen - rejected - gamma) - alpha * gold, metrics
