"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290). Shapes: P pairs."""

from torch import Tensor

from lit_ift.losses.margins import log_ratios, sigmoid_loss
from lit_ift.losses.rewards import check_between, check_bool, check_positive, reward_metrics


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sigmoid loss on the difference of implicit rewards (arXiv:2305.18290, Eq. 7).

    ``loss = -(1 - ε) log σ(h) - ε log σ(-h)``, ``h = r_chosen - r_rejected``, ``r = β (log π - log π_ref)``.
    With ``ε > 0`` it is conservative DPO (cDPO, Mitchell 2023, Eq. 3), which supposes that a share ε of the labels is
    wrong.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.
        label_smoothing: ε in [0, 0.5).
        reference_free: take a uniform reference, which is to ignore it.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_positive(beta=beta)
    check_between(0, 0.5, label_smoothing=label_smoothing)
    check_bool(reference_free=reference_free)
    chosen, rejected = log_ratios(
        chosen_logps,
        rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        reference_free=reference_free,
    )
    chosen, rejected = beta * chosen, beta * rejected
    return sigmoid_loss(chosen - rejected, label_smoothing), reward_metrics(chosen, rejected)
