"""Whether input embedding and output head are one matrix, where configuration, files and adapters disagree."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_ift.models.head import base_model, is_tied
from lit_ift.models.lora import is_adapted


def holds_apart(entries: Mapping[str, Any], names: Collection[str], read: Callable[[str], Tensor]) -> bool:
    """Whether there are several values for what a model ties together.

    Args:
        entries: state dict of the model, as it keeps it: what is tied is one object under several names.
        names: of the values that there are.
        read: gives a value by its name.
    """
    together: dict[int, list[str]] = {}
    for name, entry in entries.items():
        if name in names:
            together.setdefault(id(entry), []).append(name)
    return any(not torch.equal(read(first), read(other)) for first, *others in together.values() for other in others)


def say_untied(config: Any) -> None:
    """Have a configuration, in place, keep input embedding and output head apart."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = False


def tell_ties(model: Any) -> None:
    """Correct a configuration, in place, that ties what the model has apart, as where its files hold another head.

    Other programs would drop one of the two matrices of such a model.
    """
    inner = base_model(model)
    says_tied = bool(getattr(inner.config, "tie_word_embeddings", False))
    if says_tied and inner.get_output_embeddings() is not None and not is_tied(model):
        say_untied(inner.config)


def untie_adapted(model: Any) -> None:
    """Let an adapter of the input embedding or of the output head be merged into that one alone, in place."""
    inner = base_model(model)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if not is_tied(model) or not (is_adapted(embedding) or is_adapted(head)):
        return
    layer = getattr(head, "base_layer", head)
    if "weight" not in layer._parameters:  # Another one is trained in its place (modules_to_save), for both.
        return
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    say_untied(inner.config)
