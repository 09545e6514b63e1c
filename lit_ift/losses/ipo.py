"""Identity preference optimization (Azar et al. 2023, arXiv:2310.12036). Shapes: P pairs."""

from torch import Tensor

from lit_ift.losses.margins import log_ratios, mean_logps
from lit_ift.losses.rewards import check_bool, check_positive, check_same_length, reward_metrics


def ipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
    average: bool = False,
    reference_free: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared distance of the log-ratio margin from a target (arXiv:2310.12036, Eq. 17).

    ``loss = (Δ - 1 / (2β))²``, ``Δ = (log π - log π_ref)(chosen) - (log π - log π_ref)(rejected)``; the paper's τ is
    β. The paper sums log-probabilities over tokens, as does the code of the IFT authors. TRL divides each log-ratio
    by the length of its answer, which its authors say the authors of IPO confirmed: ``average``.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: strength of the regularisation [1/nat], above 0; the target margin is 1/(2β) nats.
        average: compare log-ratios per token, not per answer.
        reference_free: take a uniform reference, which is to ignore it.

    Returns:
        Losses (P,), and rewards ``β (log π - log π_ref)``, per token with ``average``, with margins and accuracies,
        detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option is out of range.
    """
    check_positive(beta=beta)
    check_bool(average=average, reference_free=reference_free)
    check_same_length(chosen_logps=chosen_logps, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    chosen, rejected = log_ratios(
        chosen_logps,
        rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        reference_free=reference_free,
    )
    if average:
        chosen, rejected = mean_logps(chosen, chosen_lengths), mean_logps(rejected, rejected_lengths)
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2
    return losses, reward_metrics(beta * chosen, beta * rejected)
