"""Switch dropout off in a model without touching the configuration that is exported with it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lit_ift.errors import UserError


def set_dropout_off(model: nn.Module) -> None:
    """Set every dropout probability inside the modules of ``model`` to zero, in place.

    Covers dropout modules and the numbers that attention code reads from its own module
    (``attention_dropout``, ``dropout``, ``layerdrop`` and the like). ``model.config`` stays as it is, so
    the exported configuration equals the original one.

    Args:
        model: any module; adapters' dropout inside it is switched off too.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
            continue
        for name in _float_names(module):
            setattr(module, name, 0.0)


def check_dropout_is_off(model: Any) -> None:
    """Check on a few tokens that two forwards in training mode agree.

    A few architectures read their dropout from the configuration during the forward pass, where
    ``set_dropout_off`` does not reach. Costs nothing where the configuration asks for no dropout.

    Args:
        model: a causal language model with materialised weights, in training mode.

    Raises:
        UserError: the two forwards differ.
    """
    active = dict(_config_dropout(model.config.to_dict()))
    if not active:
        return
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device).remainder(model.config.get_text_config().vocab_size)[None]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        first = model(input_ids=ids, use_cache=False).logits
        second = model(input_ids=ids, use_cache=False).logits
    if not torch.equal(first, second):
        raise UserError(
            f"{type(model).__name__} reads its dropout from the configuration while it runs, so it cannot be "
            f"switched off without changing the exported configuration. Set {', '.join(active)} to 0 in the "
            "model's config.json, or train with disable_dropout=False."
        )


def _float_names(module: nn.Module) -> list[str]:
    return [name for name, value in vars(module).items() if ("drop" in name) and isinstance(value, float) and value > 0]


def _config_dropout(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _config_dropout(value, f"{prefix}{name}.")
        elif "drop" in str(name) and isinstance(value, float) and value > 0:
            yield f"{prefix}{name}", value
