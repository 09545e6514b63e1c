"""Checks of the arguments that losses are called with."""

from torch import Tensor


def check_same_length(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors are vectors of one length, such as (P,)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"These must have the same shape, of one dimension; got {listed}")


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
