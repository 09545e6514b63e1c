"""Contrastive preference optimization (Xu et al. 2024, arXiv:2401.08417). Shapes: P pairs."""

from typing import Literal, get_args

from torch import Tensor

from lit_ift.losses.margins import mean_logps, sigmoid_loss
from lit_ift.losses.rewards import (
    check_at_least,
    check_between,
    check_choice,
    check_positive,
    check_same_length,
    reward_metrics,
)

LossType = Literal["sigmoid", "hinge", "ipo"]


def cpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
    sft_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO with a uniform reference, and the likelihood of the chosen answer (arXiv:2401.08417, Eq. 3).

    ``loss = contrast + w nll_chosen``. With ``Δ = log π(chosen) - log π(rejected)`` the contrast is

    - ``sigmoid``: ``-(1 - ε) log σ(βΔ) - ε log σ(-βΔ)``, the paper's for ε = 0;
    - ``hinge``: ``max(0, 1 - βΔ)``;
    - ``ipo``: ``(Δ - 1/(2β))²`` with log-probabilities per token, as in TRL.

    The nll is per token of each answer. The paper writes a sum over tokens; TRL takes the mean over all chosen tokens
    of the batch, which weights long answers more.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: steepness [1/nat], above 0.
        loss_type: see above.
        label_smoothing: ε in [0, 0.5), for ``sigmoid`` only.
        sft_weight: w, at least 0; TRL's ``cpo_alpha``.

    Returns:
        Losses (P,), rewards ``β log π`` of both answers (per token for ``ipo``) with margins and accuracies, and
        ``nll_loss`` of the chosen answers, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range or has no effect.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_positive(beta=beta)
    check_choice(get_args(LossType), loss_type=loss_type)
    check_between(0, 0.5, label_smoothing=label_smoothing)
    check_at_least(0, sft_weight=sft_weight)
    if label_smoothing and loss_type != "sigmoid":
        raise ValueError(f"label_smoothing={label_smoothing} has no effect with loss_type={loss_type!r}; leave it out")
    chosen_mean = mean_logps(chosen_logps, chosen_lengths)
    chosen, rejected = chosen_logps, rejected_logps
    if loss_type == "ipo":
        chosen, rejected = chosen_mean, mean_logps(rejected_logps, rejected_lengths)
    delta = chosen - rejected
    if loss_type == "sigmoid":
        contrast = sigmoid_loss(beta * delta, label_smoothing)
    elif loss_type == "hinge":
        contrast = (1 - beta * delta).relu()
    else:
        contrast = (delta - 1 / (2 * beta)) ** 2
    metrics = reward_metrics(beta * chosen, beta * rejected) | {"nll_loss": -chosen_mean.detach()}
    return contrast - sft_weight * chosen_mean, metrics
