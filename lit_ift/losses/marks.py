"""What a loss says of itself beyond its signature."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def in_batch(loss: F) -> F:
    """Mark a loss whose value for an example depends on the others of its micro-batch.

    Such a loss gives other numbers where the same rows are split into other micro-batches.
    """
    loss.in_batch = True  # type: ignore[attr-defined]
    return loss


def is_in_batch(loss: Callable[..., Any]) -> bool:
    """Whether a loss has that mark."""
    return getattr(loss, "in_batch", False)
