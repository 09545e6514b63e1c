"""What the ranks of a run tell each other besides tensors."""

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def of_every_rank(own: T) -> list[T]:
    """What each rank brings, by rank, on all of them; all ranks call it. A process that is alone has its own.

    Args:
        own: of this rank; it is pickled.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    found = [own] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found
