"""Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691). Shapes: P pairs."""

from torch import Tensor

from lit_ift.losses.margins import log_odds, mean_logps, sigmoid_loss
from lit_ift.losses.rewards import check_positive, check_same_length, reward_metrics


def orpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood of the chosen answer and the odds ratio of both (arXiv:2403.07691, Eq. 6 and 7).

    ``loss = nll_chosen - β log σ(log odds_chosen - log odds_rejected)``, ``odds = p / (1 - p)``, with p the geometric
    mean of the probabilities of an answer's tokens (Eq. 3 and 4) and ``nll = -log p``. The paper's λ is β. The nll of
    TRL, and by default of the authors' code, is over prompt and answer and averages over the tokens of the batch.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: weight of the odds ratio term, above 0.

    Returns:
        Losses (P,), rewards ``β log p`` of both answers with margins and accuracies, the ``nll_loss`` and the
        ``log_odds_ratio``, detached, (P,) each.

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
    chosen, rejected = mean_logps(chosen_logps, chosen_lengths), mean_logps(rejected_logps, rejected_lengths)
    ratio = log_odds(chosen) - log_odds(rejected)
    metrics = reward_metrics(beta * chosen, beta * rejected)
    metrics |= {"nll_loss": -chosen.detach(), "log_odds_ratio": ratio.detach()}
    return beta * sigmoid_loss(ratio) - chosen, metrics
