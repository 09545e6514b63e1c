"""Losses without a reference policy. Shapes: P pairs."""

from typing import Literal

from torch import Tensor

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.masking import mean_logps
from lit_ift.losses.pair.arithmetic import (
    LabelSmoothing,
    MaxOdds,
    bounded_expm1,
    log_complement,
    log_odds,
    odds_exceed,
    reward_metrics,
    sigmoid_loss,
)
from lit_ift.options import NonNegative, Positive

CPOLossType = Literal["sigmoid", "hinge", "ipo"]
TPOLossType = Literal["sigmoid", "hinge"]


def chosen_sft_loss(chosen_logps: Tensor, chosen_lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """``sft_loss`` of the chosen answers of pairs; the rejected ones take no part.

    ``loss = -m_chosen``, with m the mean log-probability of an answer's tokens.

    Use:
        As one term of a sum, beside a loss that compares answers; or to train on chosen answers alone.

    Departures:
        Every answer counts the same, as in ``sft_loss``. TRL's ``sft`` is the mean over all chosen tokens of a batch,
        so that a long answer counts for more.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        chosen_lengths: their trained tokens, (P,).

    Returns:
        Losses (P,); no metrics.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(chosen_logps=chosen_logps, chosen_lengths=chosen_lengths)
    return -mean_logps(chosen_logps, chosen_lengths), {}


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Positive = 2.0,
    gamma_over_beta: NonNegative = 0.5,
    label_smoothing: LabelSmoothing = 0.0,
    sft_weight: NonNegative = 0.0,
    alpha: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sigmoid loss on mean log-probabilities, with a target margin and no reference (arXiv:2405.14734, Eq. 6).

    ``loss = -(1 - ε) log σ(h) - ε log σ(-h) + w nll_chosen``, ``h = r_chosen - r_rejected - γ``, ``r = β m``, with m
    the mean log-probability of an answer's tokens, and ``nll = -m``. ε and w are options of the authors' code.

    With ``alpha`` the reward is AlphaPO's (arXiv:2501.03884): ``r = β (1 - e^(-α m)) / α``, which is SimPO's
    for α → 0.

    Use:
        Like DPO, but without a reference policy, and with a margin that a pair must reach. A long answer counts no more
        than a short one.

    Departures:
        Where -α m exceeds 30, AlphaPO's reward goes on along its tangent, so that it does not overflow.
        The nll is that of each answer. TRL (``cpo_alpha``) takes the mean over all chosen tokens of the batch.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: scale of the rewards [1/nat], above 0.
        gamma_over_beta: target margin γ divided by β, at least 0; the authors' ``gamma_beta_ratio``, which they advise
            to search from 0.5 on (their code's default is 0.25). TRL's ``simpo_gamma`` is γ itself.
        label_smoothing: ε in [0, 0.5).
        sft_weight: w, at least 0; TRL's ``cpo_alpha``.
        alpha: shape of the reward; 0 for SimPO.

    Returns:
        Losses (P,), the rewards r of both answers with margins and accuracies, and ``nll_loss`` of the chosen
        answers, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    chosen_mean = mean_logps(chosen_logps, chosen_lengths)
    chosen, rejected = chosen_mean, mean_logps(rejected_logps, rejected_lengths)
    if alpha:
        chosen, rejected = (-bounded_expm1(-alpha * mean) / alpha for mean in (chosen, rejected))
    losses = sigmoid_loss(beta * (chosen - rejected - gamma_over_beta), label_smoothing) - sft_weight * chosen_mean
    return losses, reward_metrics(beta * chosen, beta * rejected) | {"nll_loss": -chosen_mean.detach()}


def cpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Positive = 0.1,
    loss_type: CPOLossType = "sigmoid",
    label_smoothing: LabelSmoothing = 0.0,
    sft_weight: NonNegative = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO with a uniform reference, and the likelihood of the chosen answer (arXiv:2401.08417, Eq. 3).

    ``loss = contrast + w nll_chosen``. With ``Δ = log π(chosen) - log π(rejected)`` the contrast is

    - ``sigmoid``: ``-(1 - ε) log σ(βΔ) - ε log σ(-βΔ)``, the paper's for ε = 0;
    - ``hinge``: ``max(0, 1 - βΔ)``;
    - ``ipo``: ``(Δ - 1/(2β))²`` with log-probabilities per token, as in TRL.

    Use:
        Like DPO, but without a reference policy; the likelihood of the chosen answer takes its place. The paper uses it
        for translation.

    Departures:
        The nll is per token of each answer. The paper writes a sum over tokens. TRL takes the mean over all chosen
        tokens of the batch, which weights long answers more.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: steepness [1/nat], above 0.
        loss_type: see above.
        label_smoothing: ε in [0, 0.5), for ``sigmoid`` only.
        sft_weight: w, at least 0; TRL's ``cpo_alpha``.

    Returns:
        Losses (P,), rewards ``β log π`` of both answers (per token for ``ipo``) with margins and accuracies, and
        ``nll_loss`` of the chosen answers, detached, (P,) each.

    Raises:
        ValueError: shapes differ, or an option has no effect.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    if label_smoothing and loss_type != "sigmoid":
        raise ValueError(f"label_smoothing={label_smoothing} has no effect with loss_type={loss_type!r}; leave it out")
    chosen_mean = mean_logps(chosen_logps, chosen_lengths)
    chosen, rejected = chosen_logps, rejected_logps
    if loss_type == "ipo":
        chosen, rejected = chosen_mean, mean_logps(rejected_logps, rejected_lengths)
    delta = chosen - rejected
    if loss_type == "sigmoid":
        contrast = sigmoid_loss(beta * delta, label_smoothing)
    elif loss_type == "hinge":
        contrast = (1 - beta * delta).relu()
    else:
        contrast = (delta - 1 / (2 * beta)) ** 2
    metrics = reward_metrics(beta * chosen, beta * rejected) | {"nll_loss": -chosen_mean.detach()}
    return contrast - sft_weight * chosen_mean, metrics


def orpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Positive = 0.1,
    max_odds: MaxOdds = 100.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood of the chosen answer and the odds ratio of both (arXiv:2403.07691, Eq. 6 and 7).

    ``loss = nll_chosen - β log σ(log odds_chosen - log odds_rejected)``, ``odds = p / (1 - p)``, with p the geometric
    mean of the probabilities of an answer's tokens (Eq. 3 and 4) and ``nll = -log p``. The paper's λ is β.

    Use:
        Pairs in one stage, without a reference and without SFT before: the likelihood of the chosen answer and a mild
        contrast.

    Departures:
        The nll is of each chosen answer. That of TRL, and by default of the authors' code, is over prompt and answer,
        and averages over the tokens of the batch.
        The slope of ``log odds_rejected`` grows without bound as p_rejected tends to 1. From ``max_odds`` on,
        ``log(1 - p_rejected)`` goes on along its tangent. A ``max_odds`` of 8e6 leaves it as it is in the paper.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: weight of the odds ratio term, above 0.
        max_odds: largest slope of ``log(1 - p_rejected)`` in ``log p_rejected``, in [1, 2^23).

    Returns:
        Losses (P,), rewards ``β log p`` of both answers with margins and accuracies, the ``nll_loss``, the
        ``log_odds_ratio``, and ``odds_bounded``, which is 1 where ``max_odds`` takes effect; detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    chosen, rejected = mean_logps(chosen_logps, chosen_lengths), mean_logps(rejected_logps, rejected_lengths)
    # The chosen answer needs no bound: its slope is at most that of the rejected one, as σ falls with its odds.
    ratio = log_odds(chosen) - log_odds(rejected, max_odds=max_odds)
    metrics = reward_metrics(beta * chosen, beta * rejected)
    metrics |= {"nll_loss": -chosen.detach(), "log_odds_ratio": ratio.detach()}
    metrics["odds_bounded"] = odds_exceed(rejected, max_odds)
    return beta * sigmoid_loss(ratio) - chosen, metrics


def asft_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: Positive = 0.1,
    max_odds: MaxOdds = 100.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood of the chosen answer up, of the rejected one down, each by itself (arXiv:2409.10571).

    ``loss = nll_w + β [-log σ(logit p_w) - log σ(-logit p_l)]``, ``p = exp(a)``, ``a`` the mean log-probability of a
    token, ``nll_w = -a_w``. As ``σ(logit p) = p``, that is ``-(1 + β) a_w - β log(1 - p_l)``, which is what is
    computed: no odds of p near 0 or 1, and no exponential of a long sum.

    Use:
        Like ORPO, but chosen and rejected answers are not compared: each has a term of its own.

    Departures:
        The slope of ``log(1 - p_l)`` grows without bound as p_l tends to 1. From odds ``p_l / (1 - p_l)`` of
        ``max_odds`` on, it goes on along its tangent. A ``max_odds`` of 8e6 leaves it as it is in the paper.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        beta: weight of the alignment terms, above 0.
        max_odds: largest slope of ``log(1 - p_l)`` in ``log p_l``, in [1, 2^23).

    Returns:
        Losses (P,), and ``nll``, the rewards β a of both answers with margins and accuracies, and ``odds_bounded``,
        which is 1 where ``max_odds`` takes effect; detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    chosen = mean_logps(chosen_logps, chosen_lengths)
    rejected = mean_logps(rejected_logps, rejected_lengths)
    losses = -(1 + beta) * chosen - beta * log_complement(rejected, max_odds=max_odds)
    metrics = {"nll": -chosen.detach(), "odds_bounded": odds_exceed(rejected, max_odds)}
    return losses, metrics | reward_metrics(beta * chosen, beta * rejected)


def tpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    gold_logps: Tensor,
    gold_lengths: Tensor,
    *,
    beta: Positive = 0.01,
    alpha: NonNegative = 1.0,
    loss_type: TPOLossType = "sigmoid",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Preference without a reference, and the likelihood of a gold answer (arXiv:2405.16681).

    ``loss = -log σ(h) + α nll_gold``, ``h = r_chosen - r_rejected``, ``r = β log π``; ``hinge`` takes
    ``max(0, 1 - h)`` instead. The defaults are those of the authors' recipes for base models. For instruction-tuned
    ones they set α to 0.05, which is their code's default.

    Use:
        Rows with three answers: likelihood of the best one and a contrast of the other two in one stage.

    Departures:
        The nll is per token of each gold answer. The paper writes a sum over tokens. The authors' code and TRL take the
        mean over all gold tokens of the batch.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        gold_logps: of the gold answers, (P,).
        gold_lengths: trained tokens of the gold answers, (P,).
        beta: steepness [1/nat], above 0.
        alpha: weight of the gold answer, at least 0.
        loss_type: see above.

    Returns:
        Losses (P,), the rewards r of both answers with margins and accuracies, and ``nll_loss`` of the gold answers,
        detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(
        chosen_logps=chosen_logps, rejected_logps=rejected_logps, gold_logps=gold_logps, gold_lengths=gold_lengths
    )
    chosen, rejected, gold = beta * chosen_logps, beta * rejected_logps, mean_logps(gold_logps, gold_lengths)
    h = chosen - rejected
    contrast = sigmoid_loss(h) if loss_type == "sigmoid" else (1 - h).relu()
    return contrast - alpha * gold, reward_metrics(chosen, rejected) | {"nll_loss": -gold.detach()}


def tpo_l_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    gold_logps: Tensor,
    gold_lengths: Tensor,
    *,
    beta: Positive = 2.0,
    gamma: NonNegative = 0.5,
    alpha: NonNegative = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """TPO with rewards per token and a target margin (arXiv:2405.16681, TPO-L).

    ``loss = -log σ(r_chosen - r_rejected - γ) + α nll_gold``, ``r = β m``, with m the mean log-probability of an
    answer's tokens; without the gold answer it is SimPO.

    Use:
        Like ``tpo``, but a long answer counts no more than a short one.

    Departures:
        The nll is per token of each gold answer, as in ``tpo_loss``.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        chosen_lengths: trained tokens of the chosen answers, (P,).
        rejected_lengths: of the rejected answers, (P,).
        gold_logps: summed log-probability of the gold answers, (P,).
        gold_lengths: trained tokens of the gold answers, (P,).
        beta: scale of the rewards [1/nat], above 0.
        gamma: γ, at least 0; the authors' and TRL's ``tpo_l_gamma``. The authors search it with β, model by model
            (Mistral 7B: 1.6 with β = 2).
        alpha: weight of the gold answer, at least 0.

    Returns:
        As ``tpo_loss``, with rewards per token.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        gold_logps=gold_logps,
        gold_lengths=gold_lengths,
    )
    chosen = beta * mean_logps(chosen_logps, chosen_lengths)
    rejected = beta * mean_logps(rejected_logps, rejected_lengths)
    gold = mean_logps(gold_logps, gold_lengths)
    metrics = reward_metrics(chosen, rejected) | {"nll_loss": -gold.detach()}
    return sigmoid_loss(chosen - rejected - gamma) - alpha * gold, metrics
