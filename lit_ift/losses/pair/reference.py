"""Losses on the margin of implicit rewards: how far the policy prefers an answer more than the reference does.

Shapes: P pairs.
"""

import math
from functools import cache
from typing import Annotated, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.masking import mean_logps
from lit_ift.losses.pair.arithmetic import (
    LabelSmoothing,
    bounded_expm1,
    implicit_rewards,
    log_ratios,
    reward_metrics,
    sigmoid_loss,
)
from lit_ift.options import Positive, Range

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    label_smoothing: LabelSmoothing = 0.0,
    reference_free: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sigmoid loss on the difference of implicit rewards (arXiv:2305.18290, Eq. 7).

    ``loss = -(1 - ε) log σ(h) - ε log σ(-h)``, ``h = r_chosen - r_rejected``, ``r = β (log π - log π_ref)``.
    With ``ε > 0`` it is conservative DPO (cDPO, Mitchell 2023, Eq. 3), which supposes that a share ε of the labels is
    wrong.

    Use:
        The usual first choice for pairs where a reference policy can be afforded. Most other losses here change one
        thing in it.

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
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps,
        rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
        reference_free=reference_free,
    )
    return sigmoid_loss(chosen - rejected, label_smoothing), reward_metrics(chosen, rejected)


def robust_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    label_smoothing: LabelSmoothing = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO loss made unbiased under flipped labels (arXiv:2403.00409).

    ``loss = [-(1 - ε) log σ(h) + ε log σ(-h)] / (1 - 2ε)``, ``h = r_chosen - r_rejected``,
    ``r = β (log π - log π_ref)``. Its mean over labels flipped with probability ε is the DPO loss on the true ones.
    Unlike cDPO's it always widens the margin, and it has no lower bound: about ``-ε h / (1 - 2ε)`` for large h.

    Use:
        Like DPO, but for pairs of which a known share is labelled the wrong way round. With ``label_smoothing`` 0 it is
        DPO.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.
        label_smoothing: ε, the share of labels that is wrong, in [0, 0.5); 0 is DPO.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    h = chosen - rejected
    losses = (-(1 - label_smoothing) * logsigmoid(h) + label_smoothing * logsigmoid(-h)) / (1 - 2 * label_smoothing)
    return losses, reward_metrics(chosen, rejected)


def ipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Positive = 0.1,
    average: bool = False,
    reference_free: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared distance of the log-ratio margin from a target (arXiv:2310.12036, Eq. 17).

    ``loss = (Δ - 1 / (2β))²``, ``Δ = (log π - log π_ref)(chosen) - (log π - log π_ref)(rejected)``; the paper's τ is
    β.

    Use:
        Like DPO, but the margin has a target, so that pairs that are told apart well enough no longer widen it. The
        paper proposes it against overfitting to labels that are nearly certain.

    Departures:
        Log-probabilities are summed over tokens, as in the paper and the code of the IFT authors. TRL divides each
        log-ratio by the length of its answer, which its authors say the authors of IPO confirmed: ``average``.

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
        ValueError: shapes differ.
    """
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


def hinge_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    reference_free: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hinge loss on the difference of implicit rewards (arXiv:2305.10425, arXiv:2309.06657).

    ``loss = max(0, 1 - h)``, ``h = r_chosen - r_rejected``, ``r = β (log π - log π_ref)``. There is no
    gradient where h > 1.

    Use:
        Like DPO, but a pair whose margin is above 1 has no gradient any more.

    Departures:
        SLiC-HF has no reference in this term, a margin δ = 1/β on log-probabilities, and adds a cross-entropy on a
        target answer. Normalised by the reference it is ``hinge-norm`` of RSO and TRL's ``hinge``.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: inverse of the margin that is asked for [1/nat], above 0.
        reference_free: take a uniform reference, which is to ignore it: SLiC-HF's own term, divided by δ.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps,
        rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
        reference_free=reference_free,
    )
    return (1 - (chosen - rejected)).relu(), reward_metrics(chosen, rejected)


def exo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Range(gt=0, lt=0.5)] = 1e-3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reverse KL from the policy's preference to the smoothed label (arXiv:2402.00856, Eq. 16 with K = 2).

    ``loss = q log(q / (1 - ε)) + (1 - q) log((1 - q) / ε)`` with ``q = σ(h)``, ``h = r_chosen - r_rejected``,
    ``r = β (log π - log π_ref)``. The minimum 0 lies at q = 1 - ε; beyond it the margin shrinks again. Where DPO's
    gradient is largest, far on the wrong side, this one's vanishes (q' → 0).

    Use:
        Like DPO, but by the reverse KL, which seeks the best answers where DPO's forward KL seeks a mean (so the
        paper). Its label is never quite certain: a margin that outgrows it is pulled back.

    Departures:
        The label is smoothed by ε = 1e-3 by default, as in TRL. The authors' code has e^-10 for ε and 1 for 1 - ε.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: β_π of the paper, pull towards the reference [1/nat], above 0.
        label_smoothing: ε in (0, 0.5). Not 0: the divergence from a label that is certain is infinite.

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = implicit_rewards(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=beta
    )
    h = chosen - rejected
    losses = h.sigmoid() * (logsigmoid(h) - math.log1p(-label_smoothing))
    losses = losses + (-h).sigmoid() * (logsigmoid(-h) - math.log(label_smoothing))
    return losses, reward_metrics(chosen, rejected)


def f_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    divergence: Divergence = "js",
    alpha: Annotated[float, Range(gt=0, lt=1)] | None = None,
    label_smoothing: LabelSmoothing = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO under a constraint on an f-divergence instead of the reverse KL (arXiv:2309.16240).

    ``loss = -(1 - ε) log σ(h) - ε log σ(-h)``, ``h = r_chosen - r_rejected``, ``r = β f'(u)``, ``u = π / π_ref``:

    - ``reverse_kl``: ``f'(u) = log u``, which is DPO;
    - ``forward_kl``: ``f'(u) = 1 - 1/u``;
    - ``js``: ``f'(u) = log(2u / (1 + u))``;
    - ``alpha``: ``f'(u) = (1 - u^-α) / α``, between reverse (α → 0) and forward KL (α = 1).

    Constants are such that f'(1) = 0; they cancel in h. TRL's ``f_alpha_divergence_coef`` is 1 - α.

    Use:
        Like DPO, but with another divergence from the reference. The paper finds that the choice trades how well
        answers are liked against how varied they are.

    Departures:
        Where u^-α exceeds e^30, f' goes on along its tangent (``bounded_expm1``). TRL clamps at e^80, which ends the
        gradient.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference, above 0.
        divergence: see above.
        alpha: α in (0, 1), for ``alpha`` only, which needs it.
        label_smoothing: ε in [0, 0.5).

    Returns:
        Losses (P,), and the rewards r of both answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    if divergence == "alpha":
        if alpha is None:
            raise ValueError("divergence='alpha' needs alpha, in (0, 1)")
    elif alpha is not None:
        raise ValueError(f"alpha={alpha} has no effect with divergence={divergence!r}; leave it out")
    ratios = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    chosen, rejected = (beta * _f_prime(ratio, divergence, alpha) for ratio in ratios)
    return sigmoid_loss(chosen - rejected, label_smoothing), reward_metrics(chosen, rejected)


def _f_prime(log_ratio: Tensor, divergence: Divergence, alpha: float | None) -> Tensor:
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "js":
        return math.log(2) + logsigmoid(log_ratio)
    order = 1.0 if alpha is None else alpha  # the forward KL is the end of the family
    return -bounded_expm1(-order * log_ratio) / order


def ada_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    tau_min: Positive = 0.1,
    tau_max: Positive = 5.0,
    rho0: Annotated[float, Range(gt=0, lt=math.log(2))] = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO with a temperature for each pair, small where the preference is unclear and large where it is clear.

    The paper is arXiv:2406.02764. The defaults are those of the authors' code for language models.

    ``loss = min over τ in [τ_min, τ_max] of -τ log σ(h/τ) + ρ τ``, ``ρ = ρ0 - log 2``, ``h`` as in DPO. No gradient
    flows through τ; at the minimum there is none anyway (envelope theorem). With τ_min = τ_max = 1 it is DPO plus ρ.

    The slope of the objective in τ is ``H(σ(h/τ)) - (log 2 - ρ0)`` with H the entropy of a coin in nats. It depends
    on τ through h/τ alone, so the minimum is at ``τ = |h| / u`` with one u for all pairs, cut to the interval.

    Use:
        Like DPO, for data where some preferences are clear and others are not, and nothing says which.

    Departures:
        τ is the exact minimum, which costs one division. The authors take a few projected Newton steps from τ = 1
        (Algorithm 1; five in their code), which may jump from one end of the interval to the other where the objective
        is nearly linear.
        The loss has the term ρτ, as in the paper. The authors' code leaves it out: it has no gradient, as τ is fixed.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: pull towards the reference [1/nat], above 0.
        tau_min: smallest τ, above 0.
        tau_max: largest τ, at least ``tau_min``.
        rho0: how far τ may reshape the loss, a KL divergence [nats] in (0, log 2). Near 0 every τ is ``tau_max``,
            near log 2 every τ is ``tau_min``.

    Returns:
        Losses (P,), and the rewards of both answers with margins and accuracies, and ``tau``, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen_ratios, rejected_ratios = log_ratios(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    if tau_min > tau_max:
        raise ValueError(f"tau_max={tau_max} must be at least tau_min={tau_min}")
    chosen, rejected = beta * chosen_ratios, beta * rejected_ratios
    h = chosen - rejected
    tau = (h.detach().abs() / _stationary_ratio(rho0)).clamp(tau_min, tau_max)
    losses = -tau * logsigmoid(h / tau) + (rho0 - math.log(2)) * tau
    return losses, {**reward_metrics(chosen, rejected), "tau": tau}


@cache
def _stationary_ratio(rho0: float) -> float:
    """The u > 0 at which a coin that lands heads with probability σ(u) has entropy ``log 2 - rho0``, by bisection."""
    low, high = 0.0, 64.0  # The entropy falls from log 2 to 1e-26.
    while low < (middle := (low + high) / 2) < high:
        entropy = math.log1p(math.exp(-middle)) + middle / (1 + math.exp(middle))
        low, high = (middle, high) if entropy > math.log(2) - rho0 else (low, middle)
    return high
