"""Aligned supervised fine-tuning through absolute likelihood (Wang et al. 2024, arXiv:2409.10571). Shapes: P pairs."""

from torch import Tensor

from lit_ift.losses.margins import log_complement, mean_logps
from lit_ift.losses.rewards import check_positive, check_same_length, reward_metrics


def asft_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood of the chosen answer up, of the rejected one down, each by itself and without a reference.

    ``loss = nll_w + β [-log σ(logit p_w) - log σ(-logit p_l)]``, ``p = exp(a)``, ``a`` the mean log-probability of a
    token, ``nll_w = -a_w``. As ``σ(logit p) = p``, that is ``-(1 + β) a_w - β log(1 - p_l)``, which is what is
    computed: no odds of p near 0 or 1, and no exponential of a long sum.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: weight of the alignment terms, above 0.

    Returns:
        Losses (P,), and ``nll``, the rewards β a of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or ``beta`` is out of range.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_positive(beta=beta)
    chosen = mean_logps(chosen_logps, chosen_lengths)
    rejected = mean_logps(rejected_logps, rejected_lengths)
    losses = -(1 + beta) * chosen - beta * log_complement(rejected)
    return losses, {"nll": -chosen.detach(), **reward_metrics(beta * chosen, beta * rejected)}
