"""Every pair loss with every choice that its signature offers, and inputs for all of them or for one pair by hand."""

from collections.abc import Mapping
from inspect import Parameter, signature
from math import log
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from lit_ift.losses import PAIR_LOSSES

FURTHER: dict[str, list[dict[str, Any]]] = {
    "f_dpo": [{"divergence": "alpha", "alpha": 0.5}],
    "simpo": [{"sft_weight": 0.1, "label_smoothing": 0.2}, {"alpha": 0.25}, {"alpha": -0.25}],
    "tis_dpo": [{"eta": 0.5}],
}
"""What no signature says: options that need one another, and numbers that switch on a term."""
REPLACED: dict[str, dict[str, Any]] = {"sppo_hard": {"beta": 0.1}}
"""Options in the place of defaults that would drown rounding: SPPO's squares of 1/(2β) = 500."""


def _choices(function: Any) -> list[dict[str, Any]]:
    """No option, then each single choice, switch and label smoothing that a loss has."""
    found: list[dict[str, Any]] = [{}]
    for name, parameter in signature(function).parameters.items():
        if parameter.kind is not Parameter.KEYWORD_ONLY:
            continue
        others: list[Any] = []
        if get_origin(parameter.annotation) is Literal:
            others = [choice for choice in get_args(parameter.annotation) if choice != parameter.default]
        elif isinstance(parameter.default, bool):
            others = [not parameter.default]
        elif name == "label_smoothing":
            others = [0.2]
        # One that needs another option besides is in FURTHER.
        found += [{name: other} for other in others if (name, other) != ("divergence", "alpha")]
    return found


def _variants() -> dict[str, tuple[str, dict[str, Any]]]:
    variants = {}
    for loss, function in PAIR_LOSSES.items():
        for options in [*_choices(function), *FURTHER.get(loss, [])]:
            said = ", ".join(f"{name}={value}" for name, value in options.items())
            variants[f"{loss}, {said}" if said else loss] = (loss, {**REPLACED.get(loss, {}), **options})
    return variants


VARIANTS = _variants()


def some_inputs(pairs: int = 5, seed: int = 0, *, longest: int = 6) -> dict[str, Tensor]:
    """Every input of pair losses in float64: sums of up to 20 nats, answers of up to ``longest`` tokens."""
    draw = torch.Generator().manual_seed(seed)

    def below_zero(*shape: int) -> Tensor:
        return -torch.rand(*shape, generator=draw, dtype=torch.float64)

    names = ("chosen_logps", "rejected_logps", "gold_logps", "reference_chosen_logps", "reference_rejected_logps")
    inputs = {name: 20 * below_zero(pairs) - 0.1 for name in names}
    for side in ("chosen", "rejected"):
        lengths = torch.randint(1, longest + 1, (pairs,), generator=draw)
        mask = torch.arange(longest) < lengths[:, None]
        inputs |= {f"{side}_lengths": lengths.double(), f"{side}_mask": mask}
        for name in (f"{side}_token_logps", f"reference_{side}_token_logps", f"{side}_token_log_sum_sq_probs"):
            inputs[name] = (4 * below_zero(pairs, longest) - 0.01) * mask
        for name in (f"{side}_token_kl", f"{side}_token_reverse_kl", f"{side}_token_weights", f"{side}_data_weights"):
            inputs[name] = -below_zero(pairs, longest) * mask
    inputs["gold_lengths"] = torch.randint(1, longest + 1, (pairs,), generator=draw).double()
    inputs["preference"] = 1 + 0.5 * below_zero(pairs)
    inputs["log_ratio_mean"] = below_zero(1).expand(pairs).clone()
    inputs["prompt_embeddings"] = below_zero(pairs, 4)
    return inputs


def differentiable(names: list[str]) -> list[str]:
    """Of these inputs those that gradient flows into."""
    return [name for name in names if name.endswith(("_logps", "_kl"))]


def agreeing(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs at the start of training: the reference gives what the policy gives."""
    own = {name.removeprefix("reference_"): name for name in inputs if name.startswith("reference_")}
    return {**inputs, **{reference: inputs[name].detach().clone() for name, reference in own.items()}}


def ratios(chosen: float, rejected: float, beta: float = 0.5) -> dict[str, Tensor]:
    """One pair with rewards ``log(chosen)`` and ``log(rejected)``, so that sigmoids are fractions."""
    inputs = {
        "chosen_logps": log(chosen) / beta - 7,
        "rejected_logps": log(rejected) / beta - 11,
        "reference_chosen_logps": -7.0,
        "reference_rejected_logps": -11.0,
    }
    return {name: torch.tensor([value], dtype=torch.float64, requires_grad=True) for name, value in inputs.items()}
