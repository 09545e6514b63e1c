"""The pair losses by name, and what each of them asks for.

The signature of a loss is its schema: positional parameters name the tensors that it is given, keyword-only ones are
its hyperparameters, whose annotations say what they may be (`lit_ift.options`). A function from elsewhere, given by its
import path, is used like those listed here.

Shapes: P pairs, T positions, E the size of an embedding. All log-probabilities are natural.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from lit_ift.losses.checks import check_same_length
from lit_ift.losses.pair import absolute, by_token, in_batch, reference, reference_free, shaped, soft_labels
from lit_ift.losses.pair.objective import PairObjective
from lit_ift.losses.schema import LossFunction, NamedLoss

PAIR_LOSSES: Final[dict[str, LossFunction]] = {
    "dpo": reference.dpo_loss,
    "robust_dpo": reference.robust_dpo_loss,
    "ipo": reference.ipo_loss,
    "hinge": reference.hinge_loss,
    "exo": reference.exo_loss,
    "nca": absolute.nca_loss,
    "sppo_hard": absolute.sppo_hard_loss,
    "aot": in_batch.aot_loss,
    "aot_unpaired": in_batch.aot_unpaired_loss,
    "apo_zero": absolute.apo_zero_loss,
    "apo_down": absolute.apo_down_loss,
    "f_dpo": reference.f_dpo_loss,
    "bco_pair": absolute.bco_pair_loss,
    "bco": absolute.bco_loss,
    "sigmoid_norm": shaped.sigmoid_norm_loss,
    "discopop": shaped.discopop_loss,
    "sft": reference_free.chosen_sft_loss,
    "sft_token_mean": in_batch.sft_token_mean_loss,
    "simpo": reference_free.simpo_loss,
    "cpo": reference_free.cpo_loss,
    "orpo": reference_free.orpo_loss,
    "tpo": reference_free.tpo_loss,
    "tpo_l": reference_free.tpo_l_loss,
    "gdpo": soft_labels.gdpo_loss,
    "gipo": soft_labels.gipo_loss,
    "ada_dpo": reference.ada_dpo_loss,
    "rpo": in_batch.rpo_loss,
    "asft": reference_free.asft_loss,
    "tdpo": by_token.tdpo_loss,
    "tis_dpo": by_token.tis_dpo_loss,
}
"""What ``loss`` of `PreferenceModule` may name."""

PER_PAIR: Final[dict[str, str]] = {
    "chosen_logps": "log-probability of the chosen answer, summed over its trained tokens",
    "rejected_logps": "the same of the rejected answer",
    "reference_chosen_logps": "that of the chosen answer under the frozen reference policy",
    "reference_rejected_logps": "that of the rejected answer",
    "chosen_lengths": "trained tokens of the chosen answer, float",
    "rejected_lengths": "the same of the rejected answer",
    "gold_logps": "log-probability of the third, best answer of a row",
    "gold_lengths": "its trained tokens, float",
    "log_ratio_mean": "mean of log π - log π_ref over the answers of the steps before, each step counting the same",
    "preference": "how likely the chosen answer is the better one, in [0.5, 1]; 1 where a row does not say",
}
"""Inputs of shape (P,), float32 or better."""

PER_TOKEN: Final[dict[str, str]] = {
    "chosen_token_logps": "log-probability of each token of the chosen answer, 0 off the mask",
    "rejected_token_logps": "the same of the rejected answer",
    "reference_chosen_token_logps": "that under the reference policy",
    "reference_rejected_token_logps": "that of the rejected answer",
    "chosen_token_kl": "KL(reference || policy) of the next token at each position of the chosen answer, with gradient",
    "rejected_token_kl": "the same of the rejected answer",
    "chosen_token_reverse_kl": "KL(policy || reference) at each position of the chosen answer, with gradient",
    "rejected_token_reverse_kl": "the same of the rejected answer",
    "chosen_token_log_sum_sq_probs": "log Σ_v π(v)² at each position of the chosen answer, no gradient",
    "rejected_token_log_sum_sq_probs": "the same of the rejected answer",
    "chosen_token_weights": "weight of each token of the chosen answer, no gradient, 0 off the mask",
    "rejected_token_weights": "the same of the rejected answer",
    "chosen_data_weights": "factor that the data gives to each token of the chosen answer; 1 where it gives none",
    "rejected_data_weights": "the same of the rejected answer",
    "chosen_mask": "true at trained tokens of the chosen answer",
    "rejected_mask": "the same of the rejected answer",
}
"""Inputs of shape (P, T)."""

PER_PROMPT: Final[dict[str, str]] = {"prompt_embeddings": "embedding of the prompt, no gradient"}
"""Inputs of shape (P, E)."""

INPUTS: Final = {**PER_PAIR, **PER_TOKEN, **PER_PROMPT}


class PairLoss(NamedLoss, PairObjective):
    """A pair loss with its hyperparameters set; see `NamedLoss`."""

    KNOWN = PAIR_LOSSES
    INPUTS = INPUTS
    EXAMPLES = "pairs"

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        sums = {name: inputs[name] for name in self.inputs if name in PER_PAIR}
        if sums:  # Else torch would pair each answer of one input with each of another.
            check_same_length(**sums)
        return super().__call__(inputs)

    def _switched_off(self) -> set[str]:
        """The reference policy, and divergences over the vocabulary."""
        of_reference = {name for name in self._takes if "reference_" in name}
        divergences = {name for name in self._takes if name.endswith("_reverse_kl")}
        return (of_reference if self.values.get("reference_free") else set()) | (
            divergences if self.values.get("eta") == 0 else set()
        )

    def _made_up(self) -> dict[str, Tensor]:
        given = {name: torch.full((2,), -2.0) for name in PER_PAIR}
        given |= {name: torch.full((2,), 2.0) for name in PER_PAIR if name.endswith("_lengths")}
        given |= {name: torch.full((2, 2), -1.0) for name in PER_TOKEN}
        given |= {name: torch.full((2, 2), 1.0) for name in PER_TOKEN if name.endswith(("_kl", "_weights"))}
        given |= {name: torch.full((2, 2), True) for name in PER_TOKEN if name.endswith("_mask")}
        given |= {"preference": torch.ones(2), "prompt_embeddings": torch.ones(2, 2)}
        for name in given:
            if name.endswith(("_logps", "_kl")) and "reference_" not in name:
                given[name].requires_grad_()
        return given
