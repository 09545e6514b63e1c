"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306), and its relatives. Shapes: B answers."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_ift.losses.checks import check_same_length, check_shapes
from lit_ift.options import NonNegative, Positive, checked

Variant = Literal["kto", "apo_zero", "bco"]


def kl_baseline(mismatched_logps: Tensor, reference_mismatched_logps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Estimate KL(policy || reference), the point of reference z0 (arXiv:2402.01306, section 4.1).

    The mean log-ratio of answers under prompts that they do not belong to, at least 0.

    Departures:
        The mean is of this micro-batch alone. The authors' code and TRL take it over all processes.

    Args:
        mismatched_logps: summed log-probability of answers after other rows' prompts [nats], (B,).
        reference_mismatched_logps: under the reference, (B,).
        weights: how much each counts, at least 0, (B,); a row of weight 0 may hold anything. All count alike if None.

    Returns:
        z0 [nats], a scalar, no gradient; 0 where all weights are 0.

    Raises:
        ValueError: the shapes differ.
    """
    weights = torch.ones_like(mismatched_logps) if weights is None else weights.to(mismatched_logps.dtype)
    check_same_length(
        mismatched_logps=mismatched_logps, reference_mismatched_logps=reference_mismatched_logps, weights=weights
    )
    log_ratios = (mismatched_logps - reference_mismatched_logps).detach().masked_fill(weights == 0, 0.0)
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return ((weights * log_ratios).sum() / total).clamp(min=0)


@checked
def kto_loss(
    logps: Tensor,
    reference_logps: Tensor,
    is_desirable: Tensor,
    kl: Tensor,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
    variant: Variant = "kto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the value of desirable answers above a baseline, and push that of undesirable ones below it.

    With ``r = β (log π - log π_ref)``:

    - ``kto`` (arXiv:2402.01306, Eq. 7): desirable ``λ_D (1 - σ(r - β z0))``, undesirable ``λ_U (1 - σ(β z0 - r))``.
    - ``apo_zero`` (arXiv:2408.06266, Eq. 7 taken apart): the same with z0 = 0; ``kl`` is not used.
    - ``bco`` (arXiv:2404.04656): desirable ``-λ_D log σ(r - δ)``, undesirable ``-λ_U log σ(δ - r)``, with ``kl`` for
      δ / β, the mean log-ratio of all answers so far.

    Departures:
        In ``bco``, δ is of the steps before, each counting the same. TRL's BCOTrainer (gone in 1.16) takes a
        micro-batch's rewards into it before their loss, and each answer counts the same. The paper's weights of
        undesirable answers to prompts of another distribution are not here.

    Args:
        logps: summed log-probability of the answers [nats], (B,).
        reference_logps: under the reference, no gradient, (B,).
        is_desirable: true for desirable answers, bool, (B,).
        kl: z0 >= 0 [nats], see ``kl_baseline``, or δ / β of any sign, a scalar; no gradient flows into it.
        beta: pull towards the reference [1/nat], above 0.
        desirable_weight: λ_D, at least 0.
        undesirable_weight: λ_U, at least 0; λ_D n_D / (λ_U n_U) should lie in [1, 4/3] for n_D and n_U such answers
            (Eq. 8).
        variant: what answers are compared with.

    Returns:
        Losses (B,), and ``rewards``, which is r, detached, (B,).

    Raises:
        ValueError: shapes differ, ``is_desirable`` is not bool, or an option is out of range.
    """
    check_same_length(logps=logps, reference_logps=reference_logps, is_desirable=is_desirable)
    check_shapes("", kl=kl)
    if is_desirable.dtype != torch.bool:
        raise ValueError(f"is_desirable is {is_desirable.dtype}, not bool")
    rewards = beta * (logps - reference_logps)
    gain = rewards if variant == "apo_zero" else rewards - beta * kl.detach()
    signed = torch.where(is_desirable, gain, -gain)
    # 1 - σ(x) = σ(-x), which loses no digits where σ(x) is close to 1.
    losses = -logsigmoid(signed) if variant == "bco" else torch.sigmoid(-signed)
    losses = torch.where(is_desirable, desirable_weight * losses, undesirable_weight * losses)
    return losses, {"rewards": rewards.detach()}
