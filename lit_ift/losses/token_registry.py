"""The token losses by name, and what each of them asks for; their signatures are their schemas.

Shapes: B sequences, T positions, each of which scores the token after it. All log-probabilities are natural.
"""

from functools import partial
from typing import Final

import torch
from torch import Tensor

from lit_ift.losses.ift import ift_loss
from lit_ift.losses.logprobs import Statistic, entropy, log_sum_sq_probs, top_entropy
from lit_ift.losses.schema import LossFunction, NamedLoss
from lit_ift.losses.sft import sft_loss
from lit_ift.losses.token import anchors, likelihood

TOKEN_LOSSES: Final[dict[str, LossFunction]] = {
    "nll": sft_loss,
    "propagation": ift_loss,
    "dft": likelihood.dft_loss,
    "deformed_log": likelihood.deformed_log_loss,
    "deft": likelihood.deft_loss,
    "cayley": likelihood.cayley_loss,
    "cayley_in_batch": likelihood.cayley_in_batch_loss,
    "eaft": likelihood.eaft_loss,
    "anchored": anchors.anchored_loss,
    "anchored_k3": anchors.anchored_k3_loss,
    "psft": anchors.psft_loss,
    "iw": anchors.iw_loss,
    "chord_phi": likelihood.chord_phi_loss,
    "focal": likelihood.focal_loss,
}
"""What ``loss`` of `SFTModule` and `IFTModule` may name."""

OF_TOKEN_LOGPS: Final[dict[str, str]] = {
    "nll": "-log-probability of each token, with gradient, 0 off the mask",
    "token_logps": "its log-probability, with gradient, 0 off the mask",
    "mask": "true at trained tokens",
    "data_weights": "factor that the data gives to a token's loss; 1 where it gives none",
}
"""Inputs that are the token log-probabilities, and what belongs to the tokens, (B, T)."""

TOKEN_INPUTS: Final[dict[str, str]] = {
    **OF_TOKEN_LOGPS,
    "token_entropies": "entropy of the next token's distribution, no gradient, 0 off the mask",
    "token_top_entropies": "that of the softmax over the largest logits, as many as the loss's option ``top_k`` says",
    "token_log_sum_sq_probs": "log Σ_v π(v)², no gradient, 0 off the mask",
    "reference_token_logps": "log-probability of each token under the frozen reference policy",
    "reference_token_kl": "KL(reference || policy) of the next token, with gradient, 0 off the mask",
    "reference_logps": "log-probability of all trained tokens under the reference policy, summed, (B,)",
    "old_token_logps": "log-probability of each token under the policy of some steps ago, as the loss's option "
    "``old_policy_steps`` says, no gradient",
}
"""What a token loss may ask for: float32 or better, (B, T) where not said otherwise."""

PER_SEQUENCE: Final = ("reference_logps",)
WITH_GRADIENT: Final = ("nll", "token_logps", "reference_token_kl")


class TokenLoss(NamedLoss):
    """A token loss with its options set; see `NamedLoss`."""

    KNOWN = TOKEN_LOSSES
    INPUTS = TOKEN_INPUTS
    EXAMPLES = "rows"

    @property
    def row_wise(self) -> bool:
        """Whether the gradient of a row's loss is known once the log-probabilities of its own tokens are."""
        return not self.in_batch and not set(self.inputs) & set(WITH_GRADIENT) - set(OF_TOKEN_LOGPS)

    @property
    def takes_data_weights(self) -> bool:
        """Whether it makes use of weights that the data gives to tokens."""
        return "data_weights" in self.inputs

    @property
    def needs_reference(self) -> bool:
        """Whether it asks for the reference policy."""
        return any(name.startswith("reference_") for name in self.inputs)

    @property
    def needs_reference_tokens(self) -> bool:
        """Whether it asks for more of the reference policy than sums over rows, which is all that can be cached."""
        return any(name.startswith("reference_token_") for name in self.inputs)

    @property
    def old_policy_steps(self) -> int | None:
        """Optimizer steps after which the old policy is made anew; None if none is asked for."""
        return int(self.values["old_policy_steps"]) if "old_token_logps" in self.inputs else None

    @property
    def statistics(self) -> dict[str, Statistic]:
        """What it asks for of the policy's distributions, by name, for `score_tokens`."""
        makers: dict[str, Statistic] = {
            "token_entropies": entropy,
            "token_top_entropies": partial(top_entropy, k=self.values.get("top_k", 0)),
            "token_log_sum_sq_probs": log_sum_sq_probs,
        }
        return {name: maker for name, maker in makers.items() if name in self.inputs}

    def _made_up(self) -> dict[str, Tensor]:
        for name, option in (("token_top_entropies", "top_k"), ("old_token_logps", "old_policy_steps")):
            if name in self.inputs and option not in self.values:
                raise ValueError(f"The loss {self.name!r} asks for {name}, which needs its option {option}.")
        given = {name: torch.full((2,) if name in PER_SEQUENCE else (2, 2), -1.0) for name in TOKEN_INPUTS}
        given |= {name: torch.ones(2, 2) for name in ("nll", "token_entropies", "token_top_entropies", "data_weights")}
        given |= {"reference_token_kl": torch.ones(2, 2), "mask": torch.full((2, 2), True)}
        for name in WITH_GRADIENT:
            given[name].requires_grad_()
        return given
