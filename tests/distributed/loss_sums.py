"""Sums of all losses of a registry, so that one run has every one of them; each is a metric, ``of/<name>``.

A sum asks for what any of its losses asks for.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from typing import Any, Final

import torch
from torch import Tensor

from lit_ift.losses import INPUTS, PAIR_LOSSES, TOKEN_INPUTS, TOKEN_LOSSES
from lit_ift.losses.marks import is_in_batch

Sum = Callable[..., tuple[Tensor, dict[str, Tensor]]]

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "sppo_hard": {"beta": 0.1},  # By default it would drown all the others.
    "deformed_log": {"alpha": 0.5},
}


def sum_of(
    losses: Mapping[str, Callable[..., Any]],
    known: Sequence[str],
    names: Sequence[str],
    *,
    optional: Sequence[str] = (),
    **options: Any,
) -> Sum:
    """The sum of some losses.

    Args:
        losses: the registry.
        known: inputs of its losses.
        names: losses that are summed.
        optional: inputs that are given where a batch has them.
        options: of the sum, by which inputs are made.
    """
    parameters = {name: signature(losses[name]).parameters.values() for name in names}
    # What else has a default is for an option that is off.
    asked = {
        name: [p.name for p in found if p.kind is not p.KEYWORD_ONLY and (p.default is p.empty or p.name in optional)]
        for name, found in parameters.items()
    }
    inputs = [name for name in known if any(name in of_loss for of_loss in asked.values())]
    inputs.sort(key=lambda name: name in optional)
    own = {name: {k: v for k, v in options.items() if k in {p.name for p in parameters[name]}} for name in names}

    def total(*tensors: Tensor | None, **_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        given = dict(zip(inputs, tensors, strict=True))
        found = {}
        for name in names:
            loss, _metrics = losses[name](*map(given.__getitem__, asked[name]), **own[name], **OPTIONS.get(name, {}))
            found[f"of/{name}"] = loss
        return torch.stack([*found.values()]).sum(0), {name: values.detach() for name, values in found.items()}

    total.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            *(
                Parameter(name, Parameter.POSITIONAL_ONLY, default=None if name in optional else Parameter.empty)
                for name in inputs
            ),
            *(Parameter(name, Parameter.KEYWORD_ONLY, default=value) for name, value in options.items()),
        ]
    )
    return total


def split(losses: Mapping[str, Callable[..., Any]]) -> tuple[list[str], list[str]]:
    """Names of the losses that judge each example by itself, and of those that compare it with others."""
    by_itself = [name for name, loss in losses.items() if not is_in_batch(loss)]
    return by_itself, [name for name in losses if name not in by_itself]


_by_itself, _comparing = split(PAIR_LOSSES)
of_pairs: Final = sum_of(PAIR_LOSSES, [*INPUTS], _by_itself)
comparing_pairs: Final = sum_of(PAIR_LOSSES, [*INPUTS], _comparing)

_by_itself, _comparing = split(TOKEN_LOSSES)
_TOKENS: Final[dict[str, Any]] = {
    "optional": ["data_weights"],
    "top_k": signature(TOKEN_LOSSES["eaft"]).parameters["top_k"].default,
}
# FSDP2 allows for no older policy.
of_tokens: Final = sum_of(TOKEN_LOSSES, [*TOKEN_INPUTS], _by_itself, old_policy_steps=1, **_TOKENS)
nll_and_psft: Final = sum_of(TOKEN_LOSSES, [*TOKEN_INPUTS], ["nll", "psft"], old_policy_steps=2, **_TOKENS)
"""PSFT's own loss is -1 in each first step of the old policy."""
comparing_tokens: Final = sum_of(TOKEN_LOSSES, [*TOKEN_INPUTS], _comparing, **_TOKENS)
