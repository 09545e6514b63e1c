"""The policy as it was some optimizer steps ago, for losses that compare with it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from lit_ift.distributed.shard import is_sharded
from lit_ift.errors import UserError
from lit_ift.modules.stepping import Batch

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule

KEY: Final = "old_policy"
"""Where a checkpoint has it."""


class OldPolicy:
    """The policy before the first of every k optimizer steps.

    A copy of the trained weights is held for the steps after the first; in that one the policy is the old one itself.
    A checkpoint written between holds the copy, so that a resumed run goes on exactly. Outside training the old policy
    is the present one.

    Args:
        steps: k.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._window: int | None = None
        self._weights: dict[str, Tensor] = {}

    def prepare(self, module: "CausalLMModule") -> None:
        """Check that the weights can be copied, once the model is loaded."""
        if self.steps > 1 and is_sharded(module.model):
            raise UserError(
                f"old_policy_steps={self.steps} keeps a copy of the trained weights, which FSDP2 has sharded. Use "
                "trainer.strategy=ddp, or old_policy_steps=1."
            )

    def begin(self, module: "CausalLMModule") -> None:
        """Take a copy where k steps begin; called before each training batch."""
        window = module.trainer.global_step // self.steps
        if self.steps > 1 and window != self._window:
            self._window = window
            self._weights = {name: weight.detach().clone() for name, weight in _trained(module).items()}

    @torch.no_grad()
    def token_logps(self, module: "CausalLMModule", batch: Batch) -> Tensor | None:
        """Log-probabilities of the trained tokens, (B, T-1); None where the old policy is the present one."""
        training = module._trainer is not None and module.trainer.training
        if not training or self.steps == 1 or module.trainer.global_step % self.steps == 0:
            return None
        with self._acting(module):
            hidden = module.hidden_states(module.embed(batch["input_ids"]), batch)
            logps = -module.score(hidden, batch, select=None).nll
        torch.clear_autocast_cache()
        return logps

    def save(self, module: "CausalLMModule", checkpoint: dict[str, Any]) -> None:
        """Put what a resumed run needs into a checkpoint: nothing where k steps have just ended."""
        inside = self.steps > 1 and module.trainer.global_step % self.steps != 0
        weights = {name: weight.cpu() for name, weight in self._weights.items()} if inside else {}
        checkpoint[KEY] = {"steps": self.steps, "window": self._window if inside else None, "weights": weights}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up what `save` has put there.

        Raises:
            UserError: it was of another objective, or of other windows.
        """
        saved = checkpoint.get(KEY)
        if saved is None or (saved["window"] is not None and saved["steps"] != self.steps):
            raise UserError(
                f"The checkpoint has no old policy of old_policy_steps={self.steps} to go on with. Resume with the "
                "loss and options of its run, or begin a new run from its weights."
            )
        self._window, self._weights = saved["window"], dict(saved["weights"])

    @contextmanager
    def _acting(self, module: "CausalLMModule") -> Iterator[None]:
        """The model with the old weights, which must not be in any graph."""
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    def _swap(self, module: "CausalLMModule") -> None:
        for name, weight in _trained(module).items():
            present = weight.detach().clone()
            weight.detach().copy_(self._weights[name])
            self._weights[name] = present


def _trained(module: "CausalLMModule") -> dict[str, Tensor]:
    return {name: weight for name, weight in module.model.named_parameters() if weight.requires_grad}
