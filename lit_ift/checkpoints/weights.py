"""The weights of a training checkpoint, a file or a folder of shards, without its optimizer state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lit_ift.checkpoints.checksums import check_checksums
from lit_ift.checkpoints.shards import ShardsReader, read_tensor, tensors_in
from lit_ift.checkpoints.writing import read_header
from lit_ift.errors import UserError

_OF_MODEL: Final = "model."
"""What the names of the language model's weights begin with in a module of this package."""

_IN_SHARDS: Final = "state_dict."


@dataclass(frozen=True)
class CheckpointWeights:
    """The language model's weights in a checkpoint, which stay on the disk until they are read.

    Attributes:
        path: the checkpoint.
        header: all of the checkpoint but the optimizer's state; of a folder, but the weights too.
        kinds: dtype and shape of each weight, by its name in the language model.
        read: gives a weight by its name. Of a file it is mapped into memory, of a folder read from it.
    """

    path: Path
    header: Mapping[str, Any]
    kinds: Mapping[str, tuple[torch.dtype, torch.Size]]
    read: Callable[[str], Tensor]

    @property
    def is_mapped(self) -> bool:
        """Whether ``read`` takes no memory."""
        return not self.path.is_dir()


def open_checkpoint(path: Path) -> CheckpointWeights:
    """Look at a checkpoint. No process group or GPU is needed, whatever it was written with.

    Raises:
        UserError: it is not there, not a checkpoint, not whole, or has no weights of a language model.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder. Name a checkpoint, such as checkpoints/last.ckpt.")
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        raise UserError(f"{path} is a Hugging Face folder already, not a checkpoint: there is nothing to export.")
    header = read_header(path)
    check_checksums(path)
    found = _shards(path, header) if path.is_dir() else _single(path, header)
    if not found.kinds:
        raise UserError(
            f"{path} has no weights whose names begin with '{_OF_MODEL}': it is no checkpoint of a language model that "
            "this package trained."
        )
    return found


def _single(path: Path, header: dict[str, Any]) -> CheckpointWeights:
    weights = {
        name.removeprefix(_OF_MODEL): tensor
        for name, tensor in header.pop("state_dict", {}).items()
        if name.startswith(_OF_MODEL) and isinstance(tensor, Tensor)
    }
    header.pop("optimizer_states", None)
    return CheckpointWeights(path, header, {n: (t.dtype, t.shape) for n, t in weights.items()}, weights.__getitem__)


def _shards(path: Path, header: dict[str, Any]) -> CheckpointWeights:
    reader = ShardsReader(path)  # The index is known to be sound since the header was read.
    begin = _IN_SHARDS + _OF_MODEL
    kinds = {
        name.removeprefix(begin): (entry.properties.dtype, entry.size)
        for name, entry in tensors_in(reader.index).items()
        if name.startswith(begin)
    }
    return CheckpointWeights(path, header, kinds, lambda name: read_tensor(begin + name, reader))
