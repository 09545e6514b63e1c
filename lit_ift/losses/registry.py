"""The pair losses by name, and what each of them asks for.

The signature of a loss is its schema: positional parameters name the tensors that it is given, keyword-only ones are
its hyperparameters, whose annotations say what they may be (`lit_ift.options`). A function from elsewhere, given by its
import path, is used like those listed here.

Shapes: P pairs, T positions, E the size of an embedding. All log-probabilities are natural.
"""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, Final

import torch
from torch import Tensor

from lit_ift.imports import check_is_function, imported
from lit_ift.losses.marks import is_in_batch
from lit_ift.losses.pair import absolute, by_token, in_batch, reference, reference_free, shaped, soft_labels
from lit_ift.losses.pair.objective import PairObjective
from lit_ift.options import check_options

PairLossFunction = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""Gives losses of shape (P,) and detached metrics of shape (P,)."""

PAIR_LOSSES: Final[dict[str, PairLossFunction]] = {
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
    "chosen_mask": "true at trained tokens of the chosen answer",
    "rejected_mask": "the same of the rejected answer",
}
"""Inputs of shape (P, T)."""

PER_PROMPT: Final[dict[str, str]] = {"prompt_embeddings": "embedding of the prompt, no gradient"}
"""Inputs of shape (P, E)."""

INPUTS: Final = {**PER_PAIR, **PER_TOKEN, **PER_PROMPT}


class PairLoss(PairObjective):
    """A pair loss with its hyperparameters set.

    Args:
        loss: a name in `PAIR_LOSSES`, or the import path of a function (``package.module.function``).
        options: its hyperparameters; the others keep their defaults.

    Raises:
        ValueError: there is no such loss, it asks for an unknown input, an option is not one of its own, or has a
            value that it refuses.
    """

    def __init__(self, loss: str, options: Mapping[str, Any] | None = None) -> None:
        self.name = loss
        self.function = _find(loss)
        self.in_batch = is_in_batch(self.function)
        self.options = dict(options or {})
        parameters = signature(self.function).parameters.values()
        positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        takes = [p.name for p in parameters if p.kind in positional]
        accepted = {p.name: p for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
        values = {name: p.default for name, p in accepted.items()} | self.options
        # What an option switches off is not computed: the reference policy, and divergences over the vocabulary.
        self._ignored = {name for name in takes if values.get("reference_free") and "reference_" in name}
        self._ignored |= {name for name in takes if values.get("eta") == 0 and name.endswith("_reverse_kl")}
        self._takes = takes
        self.inputs = [name for name in takes if name not in self._ignored]
        unknown = [name for name in self.inputs if name not in INPUTS]
        if unknown or not self.inputs:
            raise ValueError(
                f"The loss {loss!r} asks for {', '.join(unknown) or 'nothing'}. Its positional parameters must be "
                f"among {', '.join(INPUTS)}; hyperparameters must be keyword-only."
            )
        strange = sorted(set(self.options) - set(accepted))
        if strange:
            offered = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise ValueError(f"The loss {loss!r} has no option {', '.join(map(repr, strange))}; {offered}.")
        missing = [n for n, p in accepted.items() if p.default is Parameter.empty and n not in self.options]
        if missing:
            raise ValueError(f"The loss {loss!r} needs the option {', '.join(map(repr, missing))}.")
        check_options(self.function, self.options)
        self._try_out()

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        shape_of = inputs[self.inputs[0]]
        given = (shape_of.new_zeros(shape_of.shape) if name in self._ignored else inputs[name] for name in self._takes)
        return self.function(*given, **self.options)

    def _try_out(self) -> None:
        """Call it once, so that a bad hyperparameter is refused before a model is loaded."""
        given = {name: torch.full((2,), -2.0) for name in PER_PAIR}
        given |= {name: torch.full((2,), 2.0) for name in PER_PAIR if name.endswith("_lengths")}
        given |= {name: torch.full((2, 2), -1.0) for name in PER_TOKEN}
        given |= {name: torch.full((2, 2), 1.0) for name in PER_TOKEN if name.endswith(("_kl", "_weights"))}
        given |= {name: torch.full((2, 2), True) for name in PER_TOKEN if name.endswith("_mask")}
        given |= {"preference": torch.ones(2), "prompt_embeddings": torch.ones(2, 2)}
        of_policy = [name for name in self.inputs if name.endswith(("_logps", "_kl")) and "reference_" not in name]
        for name in of_policy:
            given[name].requires_grad_()
        with torch.enable_grad():
            try:
                returned = self(given)
            except ValueError:  # It says itself what is wrong, as with a hyperparameter out of range.
                raise
            except Exception as error:  # Of a user's own function.
                raise ValueError(
                    f"The loss {self.name!r} fails on two made-up pairs: {type(error).__name__}: {error}"
                ) from error
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
            raise ValueError(f"The loss {self.name!r} must return losses and a mapping of metrics, not {returned!r}.")
        losses, metrics = returned
        for name, values in {"losses": losses, **metrics}.items():
            shape = tuple(values.shape) if isinstance(values, Tensor) else None
            if shape != (2,):
                seen = repr(values) if shape is None else f"shape {shape}"
                raise ValueError(f"The loss {self.name!r} returned {name} of {seen} for 2 pairs, not a tensor (2,).")
        if not losses.requires_grad:
            inputs = ", ".join(of_policy) or "none of which comes from the policy"
            raise ValueError(
                f"The loss {self.name!r} has no gradient in its inputs ({inputs}), so nothing would train."
            )


def _find(loss: Any) -> PairLossFunction:
    if not isinstance(loss, str):  # Python takes the function itself, which no checkpoint could find again.
        path = f"{getattr(loss, '__module__', 'package.module')}.{getattr(loss, '__qualname__', 'name')}"
        raise ValueError(f"loss={loss!r} must be a name or the import path of a function: loss={path!r}.")
    if loss in PAIR_LOSSES:
        return PAIR_LOSSES[loss]
    if "." not in loss or loss.startswith("."):
        raise ValueError(
            f"loss={loss!r} is none of {', '.join(PAIR_LOSSES)}, nor the import path of a function "
            "(package.module.name)."
        )
    function: PairLossFunction = imported("loss", loss)
    check_is_function(f"loss={loss!r}", function)
    return function
