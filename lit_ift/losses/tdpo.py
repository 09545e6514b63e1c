"""Token-level direct preference optimization (Zeng et al. 2024, arXiv:2404.11999). Shapes: P pairs, T positions."""

from typing import Literal, get_args

from torch import Tensor

from lit_ift.losses.margins import log_ratios, sigmoid_loss
from lit_ift.losses.rewards import check_between, check_positive, check_same_length, reward_metrics

Variant = Literal["tdpo1", "tdpo2"]


def tdpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_token_kl: Tensor,
    rejected_token_kl: Tensor,
    *,
    beta: float = 0.1,
    variant: Variant = "tdpo2",
    alpha: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO with the forward KL divergence of each answer's tokens held in balance.

    With ``h`` as in DPO and the sequential divergence ``D = Σ_t KL(π_ref(·|y<t) || π(·|y<t))`` of an answer:

    - ``tdpo1``: ``loss = -log σ(h - β (D_rejected - D_chosen))``
    - ``tdpo2``: ``loss = -log σ(h - α β (D_rejected - sg(D_chosen)))``: no gradient flows into D of the chosen answer.

    With α = 0 the second is DPO. In the authors' code the configuration chooses the first.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        chosen_token_kl: KL(reference || policy) at each position of the chosen answers [nats], with gradient, 0 off
            the trained tokens, (P, T); see ``token_kl``.
        rejected_token_kl: of the rejected answers, (P, T').
        beta: pull towards the reference [1/nat], above 0.
        variant: which of the two.
        alpha: α of ``tdpo2``, at least 0; 0.5 if not given.

    Returns:
        Losses (P,); the rewards ``β (log π - log π_ref + D)`` of both answers, as in the authors' code, with margins
        and accuracies; ``kl/chosen`` and ``kl/rejected``, which are D; all detached, (P,) each.

    Raises:
        ValueError: shapes differ, an option is out of range, or ``alpha`` is given to ``tdpo1``.
    """
    chosen_kl, rejected_kl = chosen_token_kl.sum(-1), rejected_token_kl.sum(-1)
    check_same_length(chosen_logps=chosen_logps, chosen_kl=chosen_kl, rejected_kl=rejected_kl)
    check_positive(beta=beta)
    if variant not in get_args(Variant):
        raise ValueError(f"variant={variant!r} is not one of {', '.join(map(repr, get_args(Variant)))}")
    if variant == "tdpo1" and alpha is not None:
        raise ValueError(f"alpha={alpha} has no effect on variant='tdpo1'; leave it out or take 'tdpo2'")
    alpha = 0.5 if alpha is None else alpha
    check_between(0, float("inf"), alpha=alpha)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    penalty = rejected_kl - chosen_kl if variant == "tdpo1" else alpha * (rejected_kl - chosen_kl.detach())
    losses = sigmoid_loss(beta * (chosen - rejected - penalty))
    metrics = reward_metrics(beta * (chosen + chosen_kl), beta * (rejected + rejected_kl))
    return losses, {**metrics, "kl/chosen": chosen_kl.detach(), "kl/rejected": rejected_kl.detach()}
