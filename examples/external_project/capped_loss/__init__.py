"""An objective of one's own."""

from typing import Any

from torch import Tensor

from lit_ift import CausalLMModule
from lit_ift.options import Positive


class CappedModule(CausalLMModule):
    """Supervised fine-tuning in which no token counts more than a cap, for answers that are sometimes wrong.

    A token above the cap gives no gradient: what the model finds as unlikely as that is not learned.

    Args:
        model: see ``CausalLMModule``, as for every argument not listed here.
        cap: of a token's negative log-likelihood [nats].
        **kwargs: see ``CausalLMModule``.
    """

    def __init__(self, model: Any, *, cap: Positive = 4.0, **kwargs: Any) -> None:
        if not cap > 0:
            raise ValueError(f"cap={cap} must be above 0")
        super().__init__(model, **kwargs)
        self.cap = cap

    def per_example_loss(self, nll: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``CausalLMModule``: the loss of each example, shape (B,), and figures to log."""
        tokens = mask.sum(-1).clamp(min=1)
        losses = nll.clamp(max=self.cap).sum(-1) / tokens
        return losses, {"capped_share": ((nll > self.cap) & mask).sum(-1) / tokens}
