"""Checks of the arguments that losses are called with."""

import math
from collections.abc import Collection

from torch import Tensor


def check_same_length(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors are vectors of one length, such as (P,)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"These must have the same shape, of one dimension; got {listed}")


def check_number(**options: float) -> None:
    """Raise ValueError unless all options are finite numbers."""
    for name, value in options.items():
        # A bool is an int for Python, and a YAML 1.1 reader takes 1e-2 for text.
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be a finite number")


def check_positive(**options: float) -> None:
    """Raise ValueError unless all options are numbers above 0."""
    check_number(**options)
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0")


def check_between(low: float, high: float, **options: float) -> None:
    """Raise ValueError unless all options are numbers in [low, high)."""
    check_number(**options)
    for name, value in options.items():
        if not low <= value < high:
            raise ValueError(f"{name}={value} must be at least {low} and below {high}")


def check_at_least(low: float, **options: float) -> None:
    """Raise ValueError unless all options are finite numbers of at least ``low``."""
    check_number(**options)
    for name, value in options.items():
        if not value >= low:
            raise ValueError(f"{name}={value} must be at least {low}")


def check_bool(**options: bool) -> None:
    """Raise ValueError unless all options are true or false, rather than text such as "no"."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")


def check_choice(choices: Collection[str], **options: str) -> None:
    """Raise ValueError unless all options are among ``choices``."""
    for name, value in options.items():
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def check_shapes(shapes: str, **tensors: Tensor) -> None:
    """Raise ValueError unless tensors have the shapes that letters give them, where a letter is always one size.

    ``check_shapes("B T, B T D", labels=labels, hidden=hidden)``.
    """
    letters = [shape.split() for shape in shapes.split(",")]
    sizes: dict[str, int] = {}
    for names, tensor in zip(letters, tensors.values(), strict=True):
        fits = len(names) == tensor.ndim
        if not fits or any(sizes.setdefault(*pair) != pair[1] for pair in zip(names, tensor.shape, strict=True)):
            found = ", ".join(f"{name} of shape {tuple(tensor.shape)}" for name, tensor in tensors.items())
            wanted = ", ".join(f"({', '.join(names)}{',' * (len(names) == 1)})" for names in letters)
            raise ValueError(f"{found} must be {wanted}")
