"""Tensors that lie in a file instead of in memory, for models that are written but not trained."""

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_ALIGNMENT: Final = 64


def memory_mapped(entries: Iterable[tuple[str, Tensor]], file: Path) -> dict[str, Tensor]:
    """Write tensors to a file, one at a time, and map it into memory, from where the system may drop it again.

    Args:
        entries: names and tensors on the host. Each may be freed once the next one is asked for. One object under
            several names, such as tied weights, is written once.
        file: to create; it must stay until the tensors are gone, which may be after it has been deleted.

    Returns:
        The tensors. They can be written to, which changes the memory and not the file.

    Raises:
        OSError: the file cannot be written.
    """
    names: dict[str, int] = {}
    places: list[tuple[int, torch.dtype, torch.Size]] = []
    known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
    with file.open("wb") as out:
        for name, tensor in entries:
            if tensor not in known:
                out.write(b"\0" * (-out.tell() % _ALIGNMENT))
                known[tensor] = len(places)
                places.append((out.tell(), tensor.dtype, tensor.shape))
                out.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            names[name] = known[tensor]
        size = out.tell()
    if size == 0:
        content = None
    else:
        with file.open("rb") as source:
            content = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)

    def view(offset: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        if content is None or shape.numel() == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(content, dtype=dtype, count=shape.numel(), offset=offset).view(shape)

    views = [view(*place) for place in places]
    return {name: views[number] for name, number in names.items()}
