"""Losses of each token's probability p, and of how concentrated the distribution is that it comes from.

Shapes: B sequences, T positions. Notation: nll = -log p, sg = stop gradient.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from lit_ift.losses.marks import in_batch
from lit_ift.losses.masking import masked, per_sequence_mean, target_counts, token_mean
from lit_ift.options import NonNegative, Positive, Range, UnitInterval, checked

Result = tuple[Tensor, dict[str, Tensor]]


def weighted_nll(weights: Tensor, nll: Tensor, mask: Tensor, data_weights: Tensor | None) -> Result:
    """Mean of ``sg(weight) nll`` over each row's trained tokens, and ``nll_loss``, the mean without weights, (B,)."""
    nll = masked(nll, mask)
    losses = token_mean(masked(weights.detach(), mask) * nll, mask, data_weights)
    return losses, {"nll_loss": per_sequence_mean(nll, mask).detach()}


def dft_loss(nll: Tensor, mask: Tensor, data_weights: Tensor | None = None) -> Result:
    """Dynamic fine-tuning: a token counts as much as the policy believes in it (arXiv:2508.05629, Eq. 9).

    ``loss = mean over tokens of sg(p) nll``, which has the gradient of -p. With ``reduction: token`` it is TRL's
    ``loss_type="dft"``.

    Use:
        Like ``nll``, but tokens that the policy finds very unlikely hardly move it. The paper finds that it generalises
        better, in mathematics above all; arXiv:2510.00526 finds NLL better where the model knows little of the field.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, detached, (B,).
    """
    nll = masked(nll, mask)
    return weighted_nll((-nll).exp(), nll, mask, data_weights)


def chord_phi_loss(nll: Tensor, mask: Tensor, data_weights: Tensor | None = None) -> Result:
    """CHORD's weight φ: tokens that the policy is neither sure of nor against count most (arXiv:2508.11408).

    ``loss = mean over tokens of sg(p (1 - p)) nll``.

    Use:
        Like ``dft``, but tokens that the policy is sure of count little too. The paper weights expert data by it beside
        reinforcement learning; here it stands alone.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, detached, (B,).
    """
    nll = masked(nll, mask)
    return weighted_nll(-(-nll).exp() * torch.expm1(-nll), nll, mask, data_weights)


@checked
def focal_loss(nll: Tensor, mask: Tensor, data_weights: Tensor | None = None, *, gamma: NonNegative = 2.0) -> Result:
    """Focal loss: tokens that the policy is sure of count less (arXiv:1708.02002, Eq. 4).

    ``loss = mean over tokens of (1 - p)^γ nll``; gradient flows into both factors. γ = 0 is NLL.

    Use:
        The opposite of ``dft``: tokens that the policy finds unlikely count more. For comparison; the paper is about
        detecting objects in images.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        gamma: γ, at least 0.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, detached, (B,).
    """
    nll = masked(nll, mask)
    # The slope of x^γ is infinite at 0 for γ below 1.
    doubt = (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).tiny)
    losses = token_mean(doubt**gamma * nll, mask, data_weights)
    return losses, {"nll_loss": per_sequence_mean(nll, mask).detach()}


@checked
def deformed_log_loss(
    nll: Tensor,
    mask: Tensor,
    data_weights: Tensor | None = None,
    *,
    alpha: NonNegative,
    at_least: UnitInterval = 0.0,
    at_most: UnitInterval = 1.0,
) -> Result:
    """Deformed logarithm, a family with NLL (α = 0) and -p (α = 1) among its members (arXiv:2510.00526).

    ``loss = mean over tokens of (1 - p^α) / α``, whose gradient is p^α times that of NLL: the larger α, the less count
    tokens that the policy finds unlikely. With a threshold, tokens whose p is beyond it count nothing.

    Use:
        A dial from ``nll`` to DFT and beyond. The paper finds objectives that lean on likely tokens (-p, -p^10, tokens
        above a threshold) better where the model knows the field well, as in mathematics, NLL better where it knows
        little of it, and none of them best in between.

    Departures:
        With a threshold the mean is over all trained tokens, as the formula says. The authors' code (OnlyTopP,
        OnlyTopLogP, OnlyBottomP, OnlyBottomLogP) divides by the tokens that are kept.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        alpha: α, at least 0. Above 1 is beyond DFT.
        at_least: least p of a token that counts.
        at_most: greatest p of a token that counts.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, detached, (B,).

    Raises:
        ValueError: no p can be between the thresholds.
    """
    if at_least > at_most:
        raise ValueError(f"at_least={at_least:g} must not be above at_most={at_most:g}: no token would count")
    nll = masked(nll, mask)
    deformed = -torch.expm1(-alpha * nll) / alpha if alpha else nll
    p = (-nll.detach()).exp()
    losses = token_mean(deformed * ((p >= at_least) & (p <= at_most)), mask, data_weights)
    return losses, {"nll_loss": per_sequence_mean(nll, mask).detach()}


def _scheduled(alpha: Tensor, nll: Tensor, mask: Tensor, data_weights: Tensor | None, *, epsilon: float) -> Result:
    """Deformed logarithm with an α of each token, without gradient, divided by α + ε."""
    nll, alpha = masked(nll, mask), masked(alpha.detach(), mask)
    losses = token_mean(-torch.expm1(-alpha * nll) / (alpha + epsilon), mask, data_weights)
    return losses, {
        "nll_loss": per_sequence_mean(nll, mask).detach(),
        "alpha": per_sequence_mean(alpha, mask),
    }


def deft_loss(nll: Tensor, mask: Tensor, token_log_sum_sq_probs: Tensor, data_weights: Tensor | None = None) -> Result:
    """DEFT: a deformed logarithm whose α says how concentrated the policy's distribution is (arXiv:2602.11424).

    ``loss = mean over tokens of (1 - p^α) / (α + 1e-6)``, ``α = sg(Σ_v p_v²)`` over the vocabulary.

    Use:
        Like ``deformed_log``, but without an α to choose: near NLL where the policy is unsure, near DFT where it is
        sure.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        token_log_sum_sq_probs: log Σ_v p_v² at each position [nats], (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``alpha``, the mean α, detached, (B,).
    """
    return _scheduled(masked(token_log_sum_sq_probs, mask).exp(), nll, mask, data_weights, epsilon=1e-6)


def _cayley(nll: Tensor, mask: Tensor, floor: float | Tensor, data_weights: Tensor | None) -> Result:
    doubt = 1 - (-masked(nll, mask).detach()).exp() + 1e-8
    alpha = (1 - doubt) / (1 + doubt + 1e-8)
    return _scheduled((floor + (1 - floor) * alpha).clamp(0.001, 1.0), nll, mask, data_weights, epsilon=1e-8)


@checked
def cayley_loss(nll: Tensor, mask: Tensor, data_weights: Tensor | None = None, *, floor: UnitInterval = 0.0) -> Result:
    """A deformed logarithm whose α follows the token's own probability, by the Cayley transform (arXiv:2602.11424).

    ``loss = mean over tokens of (1 - p^α) / (α + 1e-8)``, ``α = sg(clamp(f + (1 - f) (1 - d)/(1 + d), 0.001, 1))``,
    ``d = 1 - p``.

    Use:
        Like ``deft``, but α comes from the token's probability alone, which costs nothing.

    Departures:
        The floor f is a constant. In the authors' code it is half the mean p of the micro-batch: ``cayley_in_batch``.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        floor: f, the least α, in [0, 1].

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``alpha``, the mean α, detached, (B,).
    """
    return _cayley(nll, mask, floor, data_weights)


@in_batch
def cayley_in_batch_loss(nll: Tensor, mask: Tensor, data_weights: Tensor | None = None) -> Result:
    """``cayley`` with the authors' floor: the surer the policy is of a micro-batch, the larger α (arXiv:2602.11424).

    ``loss`` of ``cayley`` with ``f = mean(p) / 2`` over the trained tokens of the micro-batch.

    Use:
        Like ``cayley``, for numbers that compare with the authors' code.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``alpha``, the mean α, detached, (B,).
    """
    p = masked((-masked(nll, mask).detach()).exp(), mask)
    return _cayley(nll, mask, 0.5 * p.sum() / target_counts(mask).sum().clamp(min=1), data_weights)


@checked
def eaft_loss(
    nll: Tensor,
    mask: Tensor,
    token_top_entropies: Tensor,
    data_weights: Tensor | None = None,
    *,
    alpha: NonNegative = 1.0,
    top_k: Annotated[int, Range(ge=2)] = 20,
    normaliser: Positive | None = None,
) -> Result:
    """EAFT: tokens count less where the policy is sure, of whatever token (arXiv:2601.02151, Eq. 3).

    ``loss = mean over tokens of sg((H/Z)^α) nll``, H the entropy of the softmax over the k largest logits. α = 0 gives
    NLL.

    Use:
        Like ``nll``, but a token that contradicts what the policy is sure of counts little. The paper proposes it
        against forgetting.

    Args:
        nll: -log p of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        token_top_entropies: H at each position [nats], no gradient, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        alpha: α, at least 0.
        top_k: k, how many of the largest logits H takes in.
        normaliser: Z [nats]; ln k if not given, as in the paper. LLaMA-Factory has 3.0, Axolotl 1.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``entropy``, the mean H [nats], detached, (B,).
    """
    highest = math.log(top_k) if normaliser is None else normaliser
    entropies = masked(token_top_entropies, mask)
    losses, metrics = weighted_nll((entropies / highest) ** alpha, nll, mask, data_weights)
    return losses, {**metrics, "entropy": per_sequence_mean(entropies, mask).detach()}
