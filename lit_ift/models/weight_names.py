"""Whether stored weights are those of a model, by name and shape."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

MAX_NAMED: Final = 5
"""Names in a message."""


def weight_faults(model: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, list[str]]:
    """What keeps stored weights from being those of a model, by kind; empty if nothing does.

    Args:
        model: its state dict. Of tied weights, which are one object under several names, one is enough.
        stored: the shape of each stored weight.
    """
    there = {id(value) for name, value in model.items() if name in stored}
    faults = {
        "missing": [name for name, value in model.items() if id(value) not in there],
        "not part of the model": [name for name in stored if name not in model],
        "of another shape": [
            f"{name} {tuple(shape)} instead of {tuple(model[name].shape)}"
            for name, shape in stored.items()
            if name in model and shape != getattr(model[name], "shape", shape)
        ],
    }
    return {kind: names for kind, names in faults.items() if names}


def in_words(faults: Mapping[str, Iterable[str]]) -> str:
    """The faults with their first names: ``1 missing: lm_head.weight; 2 not part of the model: ...``."""
    named = {kind: list(names) for kind, names in faults.items()}
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in named.items() if names)


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    first = list(names)
    more = f" and {len(first) - MAX_NAMED} more" if len(first) > MAX_NAMED else ""
    return ", ".join(first[:MAX_NAMED]) + more
