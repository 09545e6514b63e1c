"""Checkpoints, files and folders of shards alike, that are there whole or not at all.

They are written under another name in the same folder, brought to the disk, and renamed. Whatever happens before the
rename leaves the earlier checkpoints as they were.
"""

import contextlib
import os
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy

from lit_ift.errors import UserError

_STAGED: Final = ".partial"
_SHARDS_REST: Final = "meta.pt"
"""The file of a folder of shards in which Lightning keeps all that is not sharded."""

_SHARDS_INDEX: Final = ".metadata"
"""The file that torch.distributed.checkpoint writes last."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a file whole or not at all. Lightning's own goes through memory and the machine's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path if path.name.endswith(_STAGED) else staging_path(path)
        with staged.open("wb") as file:
            torch.save(checkpoint, file)
        if staged != path:
            put_in_place(staged, path)


def staging_path(path: Path) -> Path:
    """Where a checkpoint is written before it is put in its place; no pattern for checkpoints finds it."""
    return path.with_name(f".{path.name}{_STAGED}")


def put_in_place(staged: Path, path: Path) -> None:
    """Bring a written checkpoint to the disk and give it its name, instead of what has that name now.

    Raises:
        OSError: the disk is full or failed; what has the name now is kept.
    """
    for file in [staged, *staged.rglob("*")]:
        _sync(file)
    if path.is_dir() or (path.exists() and staged.is_dir()):
        # Only a file can be replaced in one go.
        aside = staging_path(path.with_name(f"{path.name}.replaced"))
        _remove(aside)
        path.rename(aside)
        staged.rename(path)
        _remove(aside)
    else:
        staged.replace(path)
    _sync(path.parent)


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what writes that never ended have left in a folder; tell what it was."""
    leftovers = sorted(folder.glob(f".*{_STAGED}"))
    for path in leftovers:
        _remove(path)
    return leftovers


def why_not_writable(folder: Path) -> str | None:
    """What the machine says if a file cannot be written into a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        return str(error)
    return None


def writes_shards(strategy: Strategy) -> bool:
    """Whether a strategy's checkpoints are folders, to which every rank adds its part."""
    if isinstance(strategy, ModelParallelStrategy):
        return bool(strategy._save_distributed_checkpoint)
    return isinstance(strategy, FSDPStrategy) and strategy._state_dict_type == "sharded"


def read_header(path: Path) -> dict[str, Any]:
    """All of a checkpoint but the values of its tensors, which stay on the disk.

    Raises:
        UserError: it is not whole, or not one that can be read without running code that it holds.
    """
    if path.is_dir() and not (path / _SHARDS_INDEX).is_file():
        raise UserError(f"{path} is no checkpoint: it has no {_SHARDS_INDEX}.")
    file = path / _SHARDS_REST if path.is_dir() else path
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint: {reason} It is damaged, or holds objects that only code could "
            "restore, which is not run. Use another checkpoint of the run."
        ) from error
    if not isinstance(content, dict) or "loops" not in content:
        raise UserError(f"{path} is no checkpoint of a training run. Give one that this package wrote.")
    return cast(dict[str, Any], content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
