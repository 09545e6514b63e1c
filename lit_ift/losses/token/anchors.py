"""Losses that compare the policy with another one: the reference, or itself some steps ago.

Shapes: B sequences, T positions. Notation: nll = -log π, sg = stop gradient.
"""

from typing import Literal

import torch
from torch import Tensor

from lit_ift.losses.masking import masked, mean_logps, per_sequence_mean, target_counts, token_mean
from lit_ift.losses.token.likelihood import Result
from lit_ift.options import NonNegative, Positive, PositiveInt, checked

Base = Literal["dft", "nll"]
MOST_LOG_RATIO = 20.0
"""Beyond it a log-ratio is clamped before its exponential [nats]."""


def _anchored(
    divergence: Tensor, nll: Tensor, mask: Tensor, kappa: float, base: Base, data_weights: Tensor | None
) -> Result:
    nll, divergence = masked(nll, mask), masked(divergence, mask)
    own = nll if base == "nll" else (-nll).exp().detach() * nll
    losses = token_mean(own + kappa * divergence, mask, data_weights)
    kl = per_sequence_mean(divergence, mask).detach()
    return losses, {"nll_loss": per_sequence_mean(nll, mask).detach(), "kl": kl}


@checked
def anchored_loss(
    nll: Tensor,
    mask: Tensor,
    reference_token_kl: Tensor,
    data_weights: Tensor | None = None,
    *,
    kappa: NonNegative = 0.1,
    base: Base = "dft",
) -> Result:
    """Anchored SFT: DFT or NLL, held near the reference by the KL over the vocabulary (arXiv:2509.23753).

    ``loss = mean over tokens of sg(π) nll + κ KL(π_ref || π)``. κ = 0 is DFT, or NLL. Other code calls it ASFT, which
    is the name of a pair loss here.

    Use:
        Like ``dft``, but held near the reference, from which DFT alone drifts (so the paper). It needs the reference's
        distribution over the vocabulary.

    Args:
        nll: -log π of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        reference_token_kl: KL(π_ref || π) of the next token at each position [nats], with gradient, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        kappa: κ, at least 0; the authors' examples have 0.05.
        base: what is anchored: ``dft``, or ``nll``.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``kl``, the mean KL [nats a token], detached, (B,).
    """
    return _anchored(reference_token_kl, nll, mask, kappa, base, data_weights)


@checked
def anchored_k3_loss(
    nll: Tensor,
    mask: Tensor,
    reference_token_logps: Tensor,
    data_weights: Tensor | None = None,
    *,
    kappa: NonNegative = 0.1,
    base: Base = "dft",
) -> Result:
    """Anchored SFT with the estimate k3 of the KL, which looks at the true tokens alone (arXiv:2509.23753).

    ``loss = mean over tokens of sg(π) nll + κ (e^d - d - 1)``, ``d = log π_ref - log π``. A κ of ``anchored`` does not
    carry over.

    Use:
        Like ``anchored``, at less cost: of the reference only the log-probabilities of the true tokens are needed.

    Departures:
        The paper and the authors' code have the KL over the vocabulary. k3 is that of NeMo RL. It estimates
        KL(π || π_ref) of the policy's own samples, which the true tokens are not.

    Args:
        nll: -log π of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        reference_token_logps: log π_ref of each token [nats], no gradient, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        kappa: κ, at least 0.
        base: what is anchored: ``dft``, or ``nll``.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``kl``, the mean k3 [nats a token], detached, (B,).
    """
    d = masked(reference_token_logps, mask) + masked(nll, mask)
    return _anchored(torch.expm1(d) - d, nll, mask, kappa, base, data_weights)


@checked
def iw_loss(
    nll: Tensor,
    mask: Tensor,
    reference_logps: Tensor,
    data_weights: Tensor | None = None,
    *,
    tau: NonNegative = 1.0,
    max_weight: Positive = 16.0,
) -> Result:
    """Importance-weighted SFT: a row counts by how much likelier the policy finds it by now (arXiv:2507.12856).

    ``loss = w mean over tokens of nll``, ``w = sg(min(e^(τ (m - m_ref)), w_max))``, m the mean log-probability of the
    row's trained tokens.

    Use:
        Like ``nll``, for data that were picked as good answers: rows that the policy has come to like count more. The
        paper derives it as a tighter bound on the reward of such data.

    Args:
        nll: -log π of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        reference_logps: log π_ref of the trained tokens, summed, no gradient, (B,).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        tau: τ, at least 0.
        max_weight: w_max, above 0.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``weight``, w, detached, (B,).
    """
    nll = masked(nll, mask)
    mean = per_sequence_mean(nll, mask)
    ratio = -mean - mean_logps(reference_logps.to(nll.dtype), target_counts(mask))
    weights = (tau * ratio).detach().exp().clamp(max=max_weight)
    return weights * token_mean(nll, mask, data_weights), {"nll_loss": mean.detach(), "weight": weights}


@checked
def psft_loss(
    nll: Tensor,
    mask: Tensor,
    old_token_logps: Tensor,
    data_weights: Tensor | None = None,
    *,
    low: NonNegative = 0.2,
    high: NonNegative = 0.28,
    old_policy_steps: PositiveInt = 8,
) -> Result:
    """Proximal SFT: a token stops pulling once its probability has risen enough (arXiv:2508.17784).

    ``loss = mean over tokens of -min(r, clip(r, 1 - ε_low, 1 + ε_high))``, ``r = π / π_old``, log r in [-20, 20].
    π_old is the policy before the first of every k optimizer steps. With k = 1 the gradient is that of NLL.

    Use:
        Like ``nll``, but with a limit to how far a token moves within a few steps, as in PPO. With ``old_policy_steps``
        1 it is NLL. The paper finds that it generalises better to other fields, does not lose entropy in long training,
        and leaves a better start for what follows.

    Args:
        nll: -log π of each token [nats], (B, T).
        mask: true where a token is trained on, (B, T).
        old_token_logps: log π_old of each token [nats], no gradient, (B, T).
        data_weights: factor of each token's loss, (B, T); 1 if None.
        low: ε_low, at least 0. As every token is wanted, it never acts.
        high: ε_high, at least 0.
        old_policy_steps: k, after how many optimizer steps π_old becomes the present policy.

    Returns:
        Losses (B,), and ``nll_loss``, the mean nll, and ``clipped``, the share of tokens without gradient, detached,
        (B,).
    """
    nll = masked(nll, mask)
    log_ratio = (-nll - masked(old_token_logps, mask)).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)
    ratio = log_ratio.exp()
    terms = -torch.minimum(ratio, ratio.clamp(1 - low, 1 + high))
    clipped = per_sequence_mean((ratio > 1 + high).to(nll.dtype), mask).detach()
    return token_mean(terms, mask, data_weights), {
        "nll_loss": per_sequence_mean(nll, mask).detach(),
        "clipped": clipped,
    }
