"""Losses that look at each token of an answer, not at sums alone. Shapes: P pairs, T positions."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.pair.arithmetic import log_ratios, reward_metrics, sigmoid_loss
from lit_ift.options import NonNegative, Positive, checked

Variant = Literal["tdpo1", "tdpo2"]


def tdpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_token_kl: Tensor,
    rejected_token_kl: Tensor,
    *,
    beta: Positive = 0.1,
    variant: Variant = "tdpo2",
    alpha: NonNegative | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO with the forward KL divergence of each answer's tokens held in balance (arXiv:2404.11999).

    With ``h`` as in DPO and the sequential divergence ``D = Σ_t KL(π_ref(·|y<t) || π(·|y<t))`` of an answer:

    - ``tdpo1``: ``loss = -log σ(h - β (D_rejected - D_chosen))``
    - ``tdpo2``: ``loss = -log σ(h - α β (D_rejected - sg(D_chosen)))``: no gradient flows into D of the chosen answer.

    With α = 0 the second is DPO.

    Use:
        Like DPO, but how far the policy moves from the reference is part of the loss, token by token. It needs a second
        model in memory, unless there is LoRA.

    Departures:
        ``tdpo2`` is the default, which the paper finds the better one. The authors' configuration chooses ``tdpo1``.

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
    if variant == "tdpo1" and alpha is not None:
        raise ValueError(f"alpha={alpha} has no effect on variant='tdpo1'; leave it out or take 'tdpo2'")
    alpha = 0.5 if alpha is None else alpha
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    penalty = rejected_kl - chosen_kl if variant == "tdpo1" else alpha * (rejected_kl - chosen_kl.detach())
    losses = sigmoid_loss(beta * (chosen - rejected - penalty))
    metrics = reward_metrics(beta * (chosen + chosen_kl), beta * (rejected + rejected_kl))
    return losses, {**metrics, "kl/chosen": chosen_kl.detach(), "kl/rejected": rejected_kl.detach()}


@checked
def check_weight_options(k: Positive, mu: Positive, low: float, high: float) -> None:
    """Raise ValueError, naming the option and its value, unless all four are usable in ``importance_weights``."""
    if not low <= high:
        raise ValueError(f"low={low} must be at most high={high}")


def importance_weights(
    log_ratio: Tensor,
    mask: Tensor,
    *,
    k: float = 1.0,
    mu: float = 1.0,
    low: float = -0.5,
    high: float = 1.5,
    sign: Literal[1, -1] = 1,
) -> Tensor:
    """How much each token counts, by two contrasting policies that prefer and avoid what is good.

    ``w_t = k exp(μ clamp(sign · log π⁺/π⁻, L, U))``: a chosen answer's tokens count the more the more π⁺ prefers them
    (sign 1), those of a rejected one the less (sign -1).

    Departures:
        The sign stands inside the clamp, so that one interval serves both answers. The paper clamps ``log π⁺/π⁻``
        itself and has a negative μ for rejected answers.
        The authors' code clamps the same signed ratio, but maps it to weights by a straight line ([-1.5, 1.5] to
        [0.7, 1.3], ``threshold_and_scale``), and gives the last token of an answer the weight 0. As configured it
        weights all other tokens by 1 (``binary``, 100 %).

    Args:
        log_ratio: log π⁺ - log π⁻ of each token, any shape.
        mask: true at trained tokens, same shape.
        k: scale, above 0.
        mu: μ, above 0.
        low: L, at most ``high``.
        high: U.
        sign: 1 for chosen answers, -1 for rejected ones.

    Returns:
        Weights, 0 off the mask, same shape; no gradient.

    Raises:
        ValueError: shapes differ.
    """
    if log_ratio.shape != mask.shape:
        raise ValueError(
            f"log_ratio of shape {tuple(log_ratio.shape)} and mask of shape {tuple(mask.shape)} must be of one shape"
        )
    check_weight_options(k, mu, low, high)
    if sign not in (1, -1):
        raise ValueError(f"sign={sign} must be 1 (chosen) or -1 (rejected)")
    weights = k * torch.exp(mu * (sign * log_ratio.detach()).clamp(low, high))
    return weights.masked_fill(~mask.bool(), 0.0)


def tis_dpo_loss(
    chosen_token_logps: Tensor,
    rejected_token_logps: Tensor,
    reference_chosen_token_logps: Tensor,
    reference_rejected_token_logps: Tensor,
    chosen_token_weights: Tensor,
    rejected_token_weights: Tensor,
    chosen_token_reverse_kl: Tensor | None = None,
    rejected_token_reverse_kl: Tensor | None = None,
    *,
    beta: Positive = 0.1,
    eta: NonNegative = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO whose implicit rewards weight each token (arXiv:2410.04350).

    ``loss = -log σ(r_chosen - r_rejected)``, ``r = β Σ_t w_t [(log π - log π_ref)_t - e KL(π || π_ref)_t]``. With
    weights 1 and e = 0 it is DPO. The divergences are the paper's η, with the weight e of the option ``eta``.

    Use:
        Like DPO, where two more models can tell which tokens of an answer matter.

    Departures:
        By default η is left out, as in the authors' configuration (``token_level: false``): it needs the whole
        vocabulary of both models at each token. ``eta`` 1 is the paper's loss, 0.5 the ``alpha`` of the authors' code.
        The weights know which answer was chosen, so r tells the sides apart by itself. The metrics ``rewards/...`` have
        weights 1 and no η, as DPO's, with which they compare; those of r are beside them. The authors' code logs r
        alone.

    Args:
        chosen_token_logps: log-probability of each token of the chosen answers [nats], 0 off the mask, (P, T).
        rejected_token_logps: of the rejected answers, (P, T').
        reference_chosen_token_logps: those of the chosen answers under the reference, no gradient, (P, T).
        reference_rejected_token_logps: of the rejected answers under the reference, (P, T').
        chosen_token_weights: w, see ``importance_weights``, no gradient, 0 off the mask, (P, T).
        rejected_token_weights: of the rejected answers, (P, T').
        chosen_token_reverse_kl: KL(policy || reference) at each position of the chosen answers [nats], with gradient,
            (P, T); see ``token_kl``. Not used where ``eta`` is 0.
        rejected_token_reverse_kl: of the rejected answers, (P, T').
        beta: pull towards the reference [1/nat], above 0.
        eta: e, at least 0.

    Returns:
        Losses (P,); ``rewards/...``, which are ``β Σ_t (log π - log π_ref)_t`` of both answers with margins and
        accuracies; ``tis_dpo/...``, the same of r; detached, (P,) each.

    Raises:
        ValueError: shapes differ, an option is out of range, or ``eta`` is given without divergences.
    """
    chosen_ratios = _log_ratios("chosen", chosen_token_logps, reference_chosen_token_logps, chosen_token_weights)
    rejected_ratios = _log_ratios(
        "rejected", rejected_token_logps, reference_rejected_token_logps, rejected_token_weights
    )
    chosen_values, rejected_values = chosen_ratios, rejected_ratios
    if eta:
        chosen_values = chosen_ratios - eta * _divergences("chosen", chosen_token_reverse_kl, chosen_ratios)
        rejected_values = rejected_ratios - eta * _divergences("rejected", rejected_token_reverse_kl, rejected_ratios)
    chosen = beta * (chosen_token_weights.detach() * chosen_values).sum(-1)
    rejected = beta * (rejected_token_weights.detach() * rejected_values).sum(-1)
    check_same_length(chosen=chosen, rejected=rejected)
    metrics = reward_metrics(beta * chosen_ratios.sum(-1), beta * rejected_ratios.sum(-1))
    return -logsigmoid(chosen - rejected), metrics | reward_metrics(chosen, rejected, group="tis_dpo")


def _log_ratios(side: str, logps: Tensor, reference_logps: Tensor, weights: Tensor) -> Tensor:
    """``log π - log π_ref`` of each token of an answer [nats], (P, T)."""
    if logps.ndim != 2 or not logps.shape == reference_logps.shape == weights.shape:
        raise ValueError(
            f"{side}_token_logps {tuple(logps.shape)}, reference_{side}_token_logps {tuple(reference_logps.shape)} and "
            f"{side}_token_weights {tuple(weights.shape)} must all be (P, T)"
        )
    return logps - reference_logps


def _divergences(side: str, divergences: Tensor | None, ratios: Tensor) -> Tensor:
    """The divergences of each token of an answer, (P, T)."""
    if divergences is None or divergences.shape != ratios.shape:
        given = "none" if divergences is None else str(tuple(divergences.shape))
        raise ValueError(f"eta needs {side}_token_reverse_kl of shape {tuple(ratios.shape)}, (P, T); got {given}")
    return divergences
