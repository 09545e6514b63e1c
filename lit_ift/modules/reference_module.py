"""A module whose objective may compare the policy with a frozen reference."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.reference import ReferenceKind, ReferencePolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReferenceModule(CausalLMModule):
    """An objective that says by ``needs_reference`` whether it asks ``self.reference`` for the initial policy.

    Args:
        model: see ``CausalLMModule``.
        reference: where log-probabilities under the initial policy come from: ``cached``, computed once before
            training and kept on disk; ``adapter``, the model with its adapter switched off; ``model``, a second
            model in memory. By default ``adapter`` for a model with one, else ``cached`` where sums are enough.
        reference_model: hub id or folder of another reference than the initial policy; only with ``model``.
        reference_cache: folder for what is computed once; by default one next to the tokenized rows.
        **kwargs: see ``CausalLMModule``.

    Raises:
        ValueError: an option has an unknown value, or none is made use of.
    """

    caches_reference: bool = True
    """Whether log-probabilities that can be cached are, where nothing is said of it."""

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        reference: ReferenceKind = "auto",
        reference_model: str | None = None,
        reference_cache: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        never_cached = reference == "auto" and not self.caches_reference
        self.reference = ReferencePolicy(
            reference,
            cache_dir=reference_cache,
            model=reference_model,
            needs_tokens=self.needs_reference_tokens or never_cached,
        )
        given = {
            "reference": reference != "auto",
            "reference_model": reference_model,
            "reference_cache": reference_cache,
        }
        unused = [name for name, value in given.items() if value]
        if unused and not self.needs_reference:
            raise ValueError(f"{unused[0]} has no effect: this objective has no reference policy. Leave it out.")

    @property
    def needs_reference(self) -> bool:
        """Whether the objective asks for the reference policy."""
        return True

    @property
    def needs_reference_tokens(self) -> bool:
        """Whether it asks for more than sums over answers."""
        return False

    def prepare(self) -> None:
        super().prepare()
        if self.needs_reference:
            self.reference.prepare(self)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        # Under a Trainer it is its run that goes on, whose reference `prepare` has from before.
        self.reference.weights_restored |= self._trainer is None
