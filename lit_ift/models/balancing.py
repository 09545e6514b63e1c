"""The loss that keeps the router of a mixture of experts from sending all tokens to the same ones."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor

from lit_ift.errors import UserError
from lit_ift.models.head import base_model

_ARGUMENTS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


@dataclass(frozen=True)
class Balancing:
    """The balancing loss of a model as transformers computes it (Switch Transformer, arXiv:2101.03961, eq. 4).

    Attributes:
        function: of transformers, for this architecture.
        num_experts: of a layer.
        top_k: experts that a token goes to.
        coefficient: weight of the loss, ``router_aux_loss_coef`` of the model's configuration.
    """

    function: Callable[..., Tensor]
    num_experts: int
    top_k: int
    coefficient: float

    def loss(self, router_logits: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        """Balancing loss of one forward pass, without the coefficient; a scalar with gradient, float32.

        Args:
            router_logits: of each layer, (B*T, experts).
            mask: true where there is a token and no padding, (B, T); None for everywhere.
        """
        return self.function(router_logits, self.num_experts, self.top_k, mask)


def asks_for_router_logits(model: Any) -> bool:
    """Whether a model's configuration has its forward pass return router logits, and the loss made of them."""
    config = base_model(model).config
    return any(getattr(part, "output_router_logits", False) for part in (config, config.get_text_config()))


def balancing_of(model: Any) -> Balancing | None:
    """The balancing loss that a model's configuration asks for by ``output_router_logits``; None if it asks for none.

    Raises:
        UserError: it asks for one that is computed in another way than those known here.
    """
    if not asks_for_router_logits(model):
        return None
    inner = base_model(model)
    text = inner.config.get_text_config()
    function = getattr(sys.modules[type(inner).__module__], "load_balancing_loss_func", None)

    def value(*names: str) -> Any:
        found = (getattr(place, name, None) for name in names for place in (inner, inner.config, text))
        return next((one for one in found if one is not None), None)

    num_experts, top_k = value("num_experts", "num_local_experts"), value("num_experts_per_tok")
    coefficient = value("router_aux_loss_coef", "aux_loss_coef")
    if not coefficient:
        return None
    if function is None or list(signature(function).parameters) != _ARGUMENTS or None in (num_experts, top_k):
        raise UserError(
            f"The configuration of {type(inner).__name__} asks for a balancing loss of its experts "
            "(output_router_logits), and it is not known how this architecture computes it. Set output_router_logits "
            "in the model's config.json to false to train without."
        )
    return Balancing(function, int(num_experts), int(top_k), float(coefficient))
