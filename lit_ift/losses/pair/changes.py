"""What can be done to any pair loss: other log-probabilities for it, or a weight on its value.

Shapes: P pairs, T positions.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from lit_ift.losses.logprobs import Statistic
from lit_ift.losses.masking import per_sequence_mean
from lit_ift.losses.pair.objective import PairObjective
from lit_ift.options import CheckedOptions, UnitInterval

SIDES: Final = ("chosen", "rejected")


def desensitised_logps(token_logps: Tensor, mask: Tensor, shared: Tensor, *, alpha: float) -> Tensor:
    """Log-probability of each answer whose tokens beyond the shared length count by ``alpha`` (arXiv:2409.06411).

    ``Σ_{t ≤ s} log π_t + α Σ_{t > s} log π_t``, t counts the trained tokens of an answer.

    Args:
        token_logps: log-probability of each token [nats], 0 off the mask, (P, T).
        mask: true at trained tokens, (P, T).
        shared: s, trained tokens of the shorter answer of each pair, (P,).
        alpha: α in [0, 1]; 1 gives the plain sum.

    Returns:
        (P,), with gradient.
    """
    beyond = mask.cumsum(-1) > shared[:, None]
    return torch.where(beyond, alpha * token_logps, token_logps).sum(-1)


def policy_weights(token_logps: Tensor, token_log_sum_sq_probs: Tensor, mask: Tensor) -> Tensor:
    """Log of the weight of each answer in WPO (arXiv:2406.11827): how likely the policy would have given it.

    ``mean_t [log π(y_t) - log Σ_v π(v)²]``, 0 where the policy is as sure of the answer as it is on average of what it
    samples itself.

    Args:
        token_logps: log-probability of each token [nats], (P, T).
        token_log_sum_sq_probs: of the distribution that each token is from [nats], (P, T).
        mask: true at trained tokens, (P, T).

    Returns:
        (P,), no gradient.
    """
    return per_sequence_mean(token_logps.detach() - token_log_sum_sq_probs, mask)


class ChangedLoss(CheckedOptions, PairObjective):
    """A pair loss that is told something else, or whose value counts otherwise."""

    def __init__(self, loss: PairObjective) -> None:
        self.name, self.in_batch, self._loss = loss.name, loss.in_batch, loss

    @property
    def statistics(self) -> dict[str, Statistic]:
        return {**self._loss.statistics, **super().statistics}


class LengthDesensitised(ChangedLoss):
    """A pair loss on log-probabilities of which the longer answer's surplus counts less (LD-DPO, arXiv:2409.06411).

    Those of the reference, where the loss takes any, are changed alike, so that they are needed token by token.

    Args:
        loss: takes sums over the tokens of both answers.
        alpha: weight of the tokens beyond the length of the shorter answer, in [0, 1]; the authors advise to begin at
            0.5. 1 changes nothing.

    Raises:
        ValueError: ``alpha`` is out of range, or the loss takes no sums.
    """

    def __init__(self, loss: PairObjective, *, alpha: UnitInterval) -> None:
        super().__init__(loss)
        self._alpha = alpha
        sums = [f"{prefix}{side}_logps" for prefix in ("", "reference_") for side in SIDES]
        self._tokens = {name: name.replace("_logps", "_token_logps") for name in sums if name in loss.inputs}
        if not self._tokens:
            raise ValueError(f"ld_dpo has no effect: the loss {loss.name!r} takes no sums over tokens. Leave it out.")
        kept = [name for name in loss.inputs if name not in self._tokens]
        self.inputs = list(dict.fromkeys([*kept, *self._tokens.values(), "chosen_mask", "rejected_mask"]))

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        masks = {side: inputs[f"{side}_mask"] for side in SIDES}
        shared = torch.minimum(*(mask.sum(-1) for mask in masks.values()))

        def changed(name: str) -> Tensor:
            side = "chosen" if "chosen" in name else "rejected"
            return desensitised_logps(inputs[self._tokens[name]], masks[side], shared, alpha=self._alpha)

        return self._loss({**inputs, **{name: changed(name) for name in self._tokens}})


class PolicyWeighted(ChangedLoss):
    """A pair loss times how likely the policy itself would have given both answers (WPO, arXiv:2406.11827).

    ``loss · w_chosen · w_rejected``, ``w = exp(mean_t [log π(y_t) - log Σ_v π(v)²])``; no gradient flows into the
    weights. Further metric: ``wpo/weight``, the product.

    Args:
        loss: any.
        clamp: let no pair count more than once, as in the authors' code. TRL (``use_weighting``) does not.

    Raises:
        ValueError: ``clamp`` is neither true nor false.
    """

    _asked = ("token_logps", "token_log_sum_sq_probs", "mask")

    def __init__(self, loss: PairObjective, *, clamp: bool = True) -> None:
        super().__init__(loss)
        self._clamp = clamp
        self.inputs = list(dict.fromkeys([*loss.inputs, *(f"{side}_{what}" for side in SIDES for what in self._asked)]))

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = (policy_weights(*(inputs[f"{side}_{what}"] for what in self._asked)) for side in SIDES)
        weights = (chosen + rejected).exp()
        weights = weights.clamp(max=1) if self._clamp else weights
        losses, metrics = self._loss(inputs)
        return losses * weights, {**metrics, "wpo/weight": weights}


CHANGES: Final[dict[str, type[LengthDesensitised] | type[PolicyWeighted]]] = {
    "ld_dpo": LengthDesensitised,
    "wpo": PolicyWeighted,
}
"""Options that every pair loss takes besides its own, each a mapping of the change's own options."""
