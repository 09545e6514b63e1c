"""Losses that compare the pairs of a micro-batch with one another. Shapes: P pairs, E embedding size.

The loss of a pair depends on the pairs that it shares a forward pass with, so that sizes of micro-batches matter, which
they do not for other losses. The mark ``in_batch`` says so.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.marks import in_batch
from lit_ift.losses.masking import mean_logps
from lit_ift.losses.pair.arithmetic import LabelSmoothing, log_ratios, reward_metrics, sigmoid_loss
from lit_ift.options import Positive

Reduction = Literal["sum", "mean"]


@in_batch
def aot_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    label_smoothing: LabelSmoothing = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Make the policy's margins dominate the reference's as a distribution (arXiv:2406.05882, paired).

    ``loss_(k) = -(1 - ε) log σ(βδ_(k)) - ε log σ(-βδ_(k))``, ``δ_(k) = u_(k) - v_(k)``: the k-th smallest of
    ``u = log π(chosen) - log π(rejected)`` against the k-th smallest of the same under the reference, v.

    Use:
        Like DPO, but the margins of a micro-batch are compared as a distribution. It needs micro-batches of several
        pairs: with one it is DPO.

    Departures:
        ``label_smoothing`` is TRL's addition. TRL leaves the losses in sorted order; here each stands at its own pair.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: steepness [1/nat], above 0.
        label_smoothing: ε in [0, 0.5).

    Returns:
        Losses (P,), each at the pair whose margin u has that rank, and the rewards ``β (log π - log π_ref)`` of both
        answers with margins and accuracies, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    margins, order = (chosen_logps - rejected_logps).sort(stable=True)
    reference_margins = (reference_chosen_logps - reference_rejected_logps).sort().values
    losses = sigmoid_loss(beta * (margins - reference_margins), label_smoothing)
    return _unsorted(losses, order), reward_metrics(beta * chosen, beta * rejected)


@in_batch
def aot_unpaired_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: Positive = 0.1,
    label_smoothing: LabelSmoothing = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Make chosen rewards dominate rejected ones as a distribution (arXiv:2406.05882, unpaired).

    ``loss_(k) = -(1 - ε) log σ(βδ_(k)) - ε log σ(-βδ_(k))``, ``δ_(k) = c_(k) - d_(k)``: the k-th smallest log-ratio
    ``log π - log π_ref`` of the chosen answers, c, against the k-th smallest of the rejected ones, d, whichever pair
    they are from.

    Use:
        Like ``aot``, but which rejected answer belongs to which chosen one makes no difference.

    Departures:
        As ``aot_loss``.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        beta: steepness [1/nat], above 0.
        label_smoothing: ε in [0, 0.5).

    Returns:
        Losses (P,), each at the pair whose chosen answer has that rank, and rewards as in ``aot_loss``.

    Raises:
        ValueError: shapes differ.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps)
    ranked, order = chosen.sort(stable=True)
    losses = sigmoid_loss(beta * (ranked - rejected.sort().values), label_smoothing)
    return _unsorted(losses, order), reward_metrics(beta * chosen, beta * rejected)


def _unsorted(values: Tensor, order: Tensor) -> Tensor:
    """Undo a sort that returned ``order``."""
    return torch.empty_like(values).scatter(0, order, values)


@in_batch
def rpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    prompt_embeddings: Tensor,
    *,
    beta: Positive = 0.1,
    temperature: Positive = 0.5,
    reduction: Reduction = "sum",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrast every chosen answer with every rejected one, the more the closer their prompts (arXiv:2402.10958).

    ``loss_i = Σ_j -log σ(ω_ij h_ij)``, ``h_ij = r_chosen,i - r_rejected,j``, ``r = β (log π - log π_ref)``, and
    ``ω_ij = softmax over j of -(1 - cos(e_i, e_j)) / temperature``. The weight stands inside σ, with β, as in the
    authors' code: a contrast of weight 0 adds log 2 and no gradient, and the loss of P pairs starts at P log 2.

    Use:
        Like DPO, but answers to related prompts are compared too. It needs micro-batches with several such prompts.

    Departures:
        By default contrasts are summed over j. The authors' code takes their mean (``reduction: mean``). As the weights
        of a row sum to 1, the sum has the gradient scale of DPO whatever the size of the micro-batch.

    The loss of a pair depends on the other pairs of its micro-batch, so a batch split in another way gives another
    loss. A single pair is DPO; prompts that are all far apart, at a low temperature, give DPO plus (P - 1) log 2.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        rejected_logps: of the rejected answers, (P,).
        reference_chosen_logps: of the chosen answers under the reference, no gradient, (P,).
        reference_rejected_logps: of the rejected answers under the reference, (P,).
        prompt_embeddings: e, of any length, no gradient, (P, E).
        beta: pull towards the reference [1/nat], above 0.
        temperature: of the weights, above 0; low values leave the pair itself and pairs of the same prompt.
        reduction: ``sum`` over j, or ``mean``, which is the sum divided by P.

    Returns:
        Losses (P,), and the rewards of both answers with margins and accuracies, and ``rpo/own_weight``, the share
        ω_ii of the pair's own contrast, detached, (P,) each.

    Raises:
        ValueError: shapes differ.
    """
    chosen_ratios, rejected_ratios = log_ratios(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    if prompt_embeddings.ndim != 2 or len(prompt_embeddings) != len(chosen_logps):
        raise ValueError(
            f"prompt_embeddings of shape {tuple(prompt_embeddings.shape)} must be (P, E), P={len(chosen_logps)}"
        )
    chosen, rejected = beta * chosen_ratios, beta * rejected_ratios
    units = normalize(prompt_embeddings.detach().to(chosen.dtype), dim=-1)
    weights = ((units @ units.mT - 1) / temperature).softmax(-1)
    contrasts = -logsigmoid(weights * (chosen.unsqueeze(1) - rejected.unsqueeze(0)))
    losses = contrasts.sum(-1) if reduction == "sum" else contrasts.mean(-1)
    return losses, {**reward_metrics(chosen, rejected), "rpo/own_weight": weights.diagonal()}


@in_batch
def sft_token_mean_loss(chosen_logps: Tensor, chosen_lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """``sft`` as TRL has it: the mean over all chosen tokens of a micro-batch, so that long answers count for more.

    ``loss_i = -log π(chosen)_i P / Σ_j n_j``, n the trained tokens of a chosen answer and P the number of answers that
    have any; the mean of these is ``-Σ_i log π(chosen)_i / Σ_j n_j``.

    Use:
        Like ``sft``, for numbers that compare with TRL's.

    Departures:
        TRL repeats the mean for each pair; here each pair has its share. Both have the same mean.

    Args:
        chosen_logps: summed log-probability of the chosen answers [nats], (P,).
        chosen_lengths: their trained tokens, (P,).

    Returns:
        Losses (P,); no metrics.

    Raises:
        ValueError: shapes differ.
    """
    check_same_length(chosen_logps=chosen_logps, chosen_lengths=chosen_lengths)
    return -mean_logps(chosen_logps, chosen_lengths.sum() / (chosen_lengths > 0).sum().clamp(min=1)), {}
