"""What a module asks of anything that judges pairs: one loss, a changed one, or a sum of several. Shapes: P pairs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from lit_ift.losses.logprobs import Statistic, log_sum_sq_probs


class PairObjective(ABC):
    """Losses of pairs from the inputs that it names.

    Attributes:
        name: for messages.
        inputs: names in ``lit_ift.losses.registry.INPUTS``.
        in_batch: whether the loss of a pair depends on the other pairs of its micro-batch.
    """

    name: str
    inputs: list[str]
    in_batch: bool

    @abstractmethod
    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of shape (P,) and detached metrics of shape (P,) from the inputs that it asks for."""

    @property
    def losses_without_weights(self) -> list[str]:
        """Names of the losses that make no use of the weights that the data gives to tokens of an answer."""
        sides = [side for side in ("chosen", "rejected", "gold") if any(side in name for name in self.inputs)]
        return [] if all(f"{side}_data_weights" in self.inputs for side in sides) else [self.name]

    @property
    def statistics(self) -> dict[str, Statistic]:
        """What it asks for of the policy's distributions, by name without ``<side>_token_``, for `score_tokens`."""
        is_asked = any(name.endswith("_token_log_sum_sq_probs") for name in self.inputs)
        return {"log_sum_sq_probs": log_sum_sq_probs} if is_asked else {}

    @property
    def needs_reference(self) -> bool:
        """Whether it asks for the reference policy, tokens or sums."""
        return any(name.startswith("reference_") or name.endswith("_kl") for name in self.inputs)

    @property
    def needs_reference_tokens(self) -> bool:
        """Whether it asks for more of the reference policy than sums over answers, which is all that can be cached."""
        return any(
            (name.startswith("reference_") and "_token_" in name) or name.endswith("_kl") for name in self.inputs
        )

    @property
    def row_wise(self) -> bool:
        """Whether the gradient of a pair's loss is known once the log-probabilities of its own tokens are."""
        of_whole_batch = ("_kl", "_token_weights", "prompt_embeddings")
        return not self.in_batch and not any(name.endswith(of_whole_batch) for name in self.inputs)

    @property
    def needs_gold(self) -> bool:
        """Whether rows must have a third answer."""
        return any(name.startswith("gold_") for name in self.inputs)

    @property
    def needs_log_ratio_mean(self) -> bool:
        """Whether it asks for the mean of the log-ratios of all steps so far."""
        return "log_ratio_mean" in self.inputs
