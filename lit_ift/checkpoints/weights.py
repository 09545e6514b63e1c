"""The weights of a training checkpoint, a file or a folder of shards, without its optimizer state."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from lit_ift.checkpoints.damage import check_checksums
from lit_ift.checkpoints.shards import read_index
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
    reader = _IndexedReader(path)
    begin = _IN_SHARDS + _OF_MODEL
    kinds = {
        name.removeprefix(begin): (entry.properties.dtype, entry.size)
        for name, entry in reader.index.state_dict_metadata.items()
        if name.startswith(begin) and isinstance(entry, TensorStorageMetadata)
    }

    def read(name: str) -> Tensor:
        dtype, shape = kinds[name]
        tensor = torch.empty(shape, dtype=dtype)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # As it should be.
                load({begin + name: tensor}, storage_reader=reader, no_dist=True)
        except (CheckpointException, OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{path}: {name} cannot be read: {lines[-1]} The folder is damaged, or was copied without all of its "
                "files. Use another checkpoint of the run."
            ) from error
        return tensor

    return CheckpointWeights(path, header, kinds, read)


class _IndexedReader(FileSystemReader):
    """Reads the index once instead of for each tensor, and runs no code that it holds."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.index = read_index(path)  # Known to be sound since the header was read.

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.index
