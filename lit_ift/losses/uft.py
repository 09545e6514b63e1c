"""Unified fine-tuning (Wang et al. 2024, arXiv:2410.21438), which fits implicit rewards to scores. Shapes: B answers.

The implicit reward of an answer is ``r = β Σ_t (log π - log π_ref)_t`` (Eq. 5), π_ref the policy at the start.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from lit_ift.losses.checks import check_same_length, check_shapes
from lit_ift.losses.pair.arithmetic import reward_metrics
from lit_ift.options import checked

Discrepancy = Literal["mse", "bce"]


@checked
def uft_loss(rewards: Tensor, scores: Tensor, *, discrepancy: Discrepancy = "mse") -> tuple[Tensor, dict[str, Tensor]]:
    """Distance of the implicit reward, squashed into [0, 1], from the score (arXiv:2410.21438, Eqs. 6 and 7).

    ``mse``: ``(σ(r) - s)²``. ``bce``: ``-s log σ(r) - (1 - s) log(1 - σ(r))``. An instruction's answer has score 1.

    Args:
        rewards: r, (B,).
        scores: s in [0, 1], no gradient, (B,).
        discrepancy: which distance. The gradient of ``mse`` vanishes where r is far off, that of ``bce`` does not.

    Returns:
        Losses (B,), and ``rewards`` and ``score_error``, which is ``|σ(r) - s|``, detached, (B,) each.

    Raises:
        ValueError: shapes differ, or ``discrepancy`` is unknown.
    """
    check_shapes("B, B", rewards=rewards, scores=scores)
    errors = torch.sigmoid(rewards) - scores
    if discrepancy == "mse":
        losses = errors.square()
    else:
        losses = binary_cross_entropy_with_logits(rewards, scores.to(rewards.dtype), reduction="none")
    return losses, {"rewards": rewards.detach(), "score_error": errors.detach().abs()}


def uft_pair_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, preference: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy between p̂ and ``σ(r_chosen - r_rejected)``; ``-log σ(r_chosen - r_rejected)`` where p̂ = 1.

    Args:
        chosen_rewards: r of the chosen answers of P pairs, (P,).
        rejected_rewards: of the rejected ones, (P,).
        preference: p̂ in [0.5, 1], how likely the chosen answer is the better one, (P,).

    Returns:
        Losses (P,), and the rewards of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, preference=preference)
    margin = chosen_rewards - rejected_rewards
    losses = -preference * logsigmoid(margin) - (1 - preference) * logsigmoid(-margin)
    return losses, reward_metrics(chosen_rewards, rejected_rewards)
