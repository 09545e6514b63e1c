"""What a model can take: token ids and positions; and whether its weights are numbers at all."""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_ift.models.head import base_model
from lit_ift.models.weight_names import listed

_OFFSETS: Final = (0, 2)
"""Rows that tables of positions have beyond the positions; OPT's has two."""


class Limits(NamedTuple):
    """Bounds of a model's inputs.

    Attributes:
        vocabulary: rows of the input embedding; ids are smaller.
        positions: most tokens of a sequence by the configuration; None if it names no bound.
        has_table: whether positions are looked up in a table of that size, beyond which there is nothing.
    """

    vocabulary: int
    positions: int | None
    has_table: bool


def limits_of(model: Any) -> Limits:
    """The bounds of a causal language model, sharded or with an adapter too."""
    inner = base_model(model)
    embedding = inner.get_input_embeddings()
    positions = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return Limits(embedding.weight.shape[0], None, False)
    sizes = {positions + offset for offset in _OFFSETS}
    has_table = any(_table_size(module) in sizes for module in inner.modules() if module is not embedding)
    return Limits(embedding.weight.shape[0], positions, has_table)


def _table_size(module: nn.Module) -> int | None:
    """Rows of a table of positions, learned (GPT-2, OPT) or computed (GPT-J); None for any other module."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings
    table = getattr(module, "embed_positions", None)
    return table.shape[0] if isinstance(table, Tensor) else None


def damage_of(model: nn.Module, origin: str) -> str | None:
    """What to tell of a model some of whose weights are no numbers; None if all are.

    Of sharded weights, those of this rank are looked at.

    Args:
        model: with materialised weights; quantized ones are passed over.
        origin: what to call it.
    """
    bad = [name for name, parameter in model.named_parameters() if not _is_finite(parameter)]
    if not bad:
        return None
    return (
        f"{origin}: {len(bad)} of its weights hold NaN or infinite values: {listed(bad)}. The "
        "checkpoint is damaged, or was written by a run that diverged. Use another one."
    )


@torch.no_grad()
def _is_finite(parameter: Tensor) -> bool:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    if not local.is_floating_point() or local.is_meta:
        return True
    # One pass without a copy: a sum is finite only if every value is, float32's range being far from reach.
    dtype = torch.float64 if local.dtype == torch.float64 else torch.float32
    return bool(torch.isfinite(local.detach().sum(dtype=dtype)))
