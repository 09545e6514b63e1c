"""Folders of shards, as torch.distributed.checkpoint and Lightning write them, read without running code they hold."""

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load

from lit_ift.errors import UserError, told_as

SHARDS_REST: Final = "meta.pt"
"""The file of a folder of shards in which Lightning keeps all that is not sharded."""

SHARDS_INDEX: Final = ".metadata"
"""The file that torch.distributed.checkpoint writes last."""

_OF_AN_INDEX: Final = frozenset(
    {
        *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
                *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
            )
        ),
    }
)
"""All that the index is made of, besides dtypes. It is a pickle, which could name any function to be called."""


READ_ERRORS: Final = (pickle.UnpicklingError, EOFError, ValueError, OSError)
"""What reading a damaged folder may raise."""


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in _OF_AN_INDEX and not is_dtype:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of shards holds.")
        return super().find_class(module, name)


class ShardsReader(FileSystemReader):
    """Reads the index once, not for each tensor, and runs no code that it holds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.index = read_index(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.index


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # Raises, where the call below would run code.
        value.seek(0)
        super().load_bytes(read_item, value)


def read_index(folder: Path) -> Metadata:
    """What shards there are.

    Raises:
        UnpicklingError: the index is damaged, holds what only code could restore, or names files elsewhere.
        OSError: it cannot be read.
    """
    with (folder / SHARDS_INDEX).open("rb") as file:
        try:
            index = _IndexUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError, OSError):
            raise
        except Exception as error:  # A damaged pickle can raise anything.
            raise pickle.UnpicklingError(f"its index is damaged ({type(error).__name__}: {error}).") from error
    if not isinstance(index, Metadata):
        raise pickle.UnpicklingError(f"its index is a {type(index).__name__}.")
    for place in (index.storage_data or {}).values():
        if Path(place.relative_path).name != place.relative_path:
            raise pickle.UnpicklingError(f"its index names {place.relative_path!r}, which is not in its folder.")
    return index


def check_shards(folder: Path, index: Metadata) -> None:
    """Check that the files are there of which an index says what they hold; what it is, is not read.

    Raises:
        ValueError: one is missing or too short.
    """
    sizes: dict[str, int] = {}
    for place in (index.storage_data or {}).values():
        sizes[place.relative_path] = max(sizes.get(place.relative_path, 0), place.offset + place.length)
    for name, size in sorted(sizes.items()):
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found is None or found < size:
            seen = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ValueError(f"{name} {seen}.")


def tensors_in(index: Metadata) -> dict[str, TensorStorageMetadata]:
    """The tensors among what an index lists, by name."""
    return {n: kind for n, kind in index.state_dict_metadata.items() if isinstance(kind, TensorStorageMetadata)}


def read_shards(state: dict[str, Any], folder: Path, *, strict: bool = True) -> None:
    """Fill a nested state dict, each rank its own part.

    Args:
        state: tensors, of which shards are filled in place, and other values, which are replaced.
        folder: of the shards; they may have been written by another number of ranks.
        strict: whether all of `state` must be there.

    Raises:
        UserError: something is missing or damaged.
    """
    with told_as(READ_ERRORS, lambda error: _unloadable(folder, error)):
        reader = ShardsReader(folder)
    read_tensors(state, reader, _Planner(allow_partial_load=not strict))


def read_tensors(
    state: dict[str, Any], reader: FileSystemReader, planner: LoadPlanner | None = None, *, alone: bool = False
) -> None:
    """Fill a state dict in place by a reader of torch.distributed.checkpoint.

    Args:
        state: values by name; each rank reads its own shards of them.
        reader: of files in any form.
        planner: torch's own, which runs no code, by default.
        alone: for this process; all ranks must call it otherwise.

    Raises:
        UserError: something is missing or damaged; raised on all ranks that read together.
    """
    with told_as(CheckpointException, lambda error: _unloadable(reader.path, error)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # As it should be.
        load(state, storage_reader=reader, planner=planner or _Planner(), no_dist=alone)


def read_tensor(name: str, reader: "ShardsReader | Any") -> Tensor:
    """A whole tensor, in main memory, of what a reader with an ``index`` has.

    Raises:
        UserError: it is damaged.
    """
    kind = tensors_in(reader.index)[name]
    tensor = torch.empty(kind.size, dtype=kind.properties.dtype)
    read_tensors({name: tensor}, reader, alone=True)
    return tensor


def _unloadable(path: object, error: BaseException) -> UserError:
    return UserError(
        f"{path} cannot be loaded: {reason_of(error)}. If it is damaged, or was copied without all of its files, copy "
        "it again or use another checkpoint of the run."
    )


def read_whole(folder: Path) -> dict[str, Any]:
    """A checkpoint out of shards as a single process would have written it, in main memory.

    Raises:
        UserError: it is damaged, or needs code to be restored.
    """
    with told_as(READ_ERRORS, lambda error: _unloadable(folder, error)):
        reader = ShardsReader(folder)
        flat: dict[str, Any] = dict.fromkeys(reader.index.state_dict_metadata)
        flat |= {n: torch.empty(kind.size, dtype=kind.properties.dtype) for n, kind in tensors_in(reader.index).items()}
        planner = _Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
        read_tensors(flat, reader, planner, alone=True)
        checkpoint = cast(dict[str, Any], torch.load(folder / SHARDS_REST, map_location="cpu", weights_only=True))
    nested: dict[str, Any] = {"state_dict": {}}
    for name, value in flat.items():
        *path, last = reader.index.planner_data[name]
        inner = nested
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    checkpoint["state_dict"] = nested.pop("state_dict")
    if nested:
        checkpoint["optimizer_states"] = [_by_number(nested[f"optimizer_{i}"]) for i in range(len(nested))]
    return checkpoint


def _by_number(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state under names of parameters, as ``torch.optim`` keeps it: under numbers in its groups."""
    groups = [state["param_groups"][i] for i in range(len(state["param_groups"]))]
    numbers = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {numbers[name]: values for name, values in state.get("state", {}).items()},
        "param_groups": [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups],
    }


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line; of several ranks', the first one's."""
    if isinstance(error, CheckpointException):
        rank, (inner, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {reason_of(inner)}"
    # On a full disk torch raises an error of its own, in which the system's is lost.
    known: BaseException | None = error
    while known is not None and not isinstance(known, OSError):
        known = known.__cause__ or known.__context__
    told = known or error
    lines = str(told).strip().splitlines()
    return f"{type(told).__name__}: {lines[0]}" if lines else type(told).__name__
