"""Any token loss as a term on the chosen answers of pairs. Shapes: P pairs, T positions."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Final

from torch import Tensor

from lit_ift.losses.logprobs import Statistic
from lit_ift.losses.pair.objective import PairObjective
from lit_ift.losses.schema import LossFunction, taken
from lit_ift.losses.token_registry import TOKEN_LOSSES, TokenLoss

OF_CHOSEN: Final[dict[str, str]] = {
    "nll": "chosen_token_logps",
    "token_logps": "chosen_token_logps",
    "mask": "chosen_mask",
    "data_weights": "chosen_data_weights",
    "token_entropies": "chosen_token_entropies",
    "token_top_entropies": "chosen_token_top_{top_k}_entropies",
    "token_log_sum_sq_probs": "chosen_token_log_sum_sq_probs",
    "reference_token_logps": "reference_chosen_token_logps",
    "reference_token_kl": "chosen_token_kl",
    "reference_logps": "reference_chosen_logps",
}
"""Inputs of token losses that pairs have, and what they are called there: options of the loss by their names, so that
two losses may differ in them; the nll with the other sign."""


class ChosenTokenLoss(PairObjective):
    """A token loss that judges the chosen answers, and leaves the rejected ones to other terms.

    Args:
        loss: takes no inputs but those in `OF_CHOSEN`.

    Raises:
        ValueError: the loss asks for more.
    """

    def __init__(self, loss: TokenLoss) -> None:
        self.name, self.in_batch, self._loss = loss.name, loss.in_batch, loss
        if lacking := unmet(loss.function):
            fit = [name for name, function in TOKEN_LOSSES.items() if not unmet(function)]
            raise ValueError(
                f"The token loss {loss.name!r} asks for {', '.join(lacking)}, which chosen answers of pairs come "
                f"without. Take one of {', '.join(fit)}."
            )
        self._names = {name: OF_CHOSEN[name].format(**loss.values) for name in loss.inputs if name in OF_CHOSEN}
        self.inputs = list(dict.fromkeys(self._names.values()))

    @property
    def statistics(self) -> dict[str, Statistic]:
        return {self._names[name].removeprefix("chosen_token_"): made for name, made in self._loss.statistics.items()}

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._loss({name: -inputs[own] if name == "nll" else inputs[own] for name, own in self._names.items()})


def unmet(function: LossFunction) -> list[str]:
    """What a token loss cannot do without, and pairs do not have."""
    return [name for name, default in taken(function).items() if default is Parameter.empty and name not in OF_CHOSEN]
