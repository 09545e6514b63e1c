"""Checkpoints, files and folders of shards alike, that are there whole or not at all.

Whatever happens before one has its name leaves the earlier checkpoints as they were. All ranks write under one other
name, which they know of each other; so what a killed run has left is known by its name.
"""

import contextlib
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException

from lit_ift.checkpoints.damage import check_checksums, check_small_parts, note_digest, unreadable
from lit_ift.checkpoints.shards import SHARDS_INDEX, SHARDS_REST, read_whole, reason_of
from lit_ift.errors import UserError
from lit_ift.staging import STAGED, publish, remove, replaced_file

_REPLACED: Final = ".replaced"
_APPEARS: Final = 10.0
"""How long a file that another node has made may take to be seen [s]."""

CANNOT_WRITE: Final = (OSError, RuntimeError, CheckpointException)
"""What writing raises on a full disk, say: torch makes the second of the first, and wraps what other ranks raised."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a file whole or not at all. Lightning's own goes through memory and the machine's temporary folder.

    Reads folders of shards too, into one process or each one that holds the whole model.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") if is_staged(path) else replaced_file(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        check_checksums(Path(path))
        if Path(path).is_dir():
            return read_whole(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        path = Path(path)
        if path.is_dir():  # Half of a folder must not look like a checkpoint.
            aside = staging_path(path)
            remove(aside)
            path = path.rename(aside)
        remove(path)


def write_together(write: Callable[[Path], None], path: Path) -> None:
    """Write a checkpoint under another name and then rename it, on all ranks that there are.

    Args:
        write: writes this rank's part of it to the path that it is given.
        path: where it belongs; the same on all ranks.

    Raises:
        UserError: it failed on some rank; raised on all of them. What has the name now is kept.
    """
    staged, problem = staging_path(path), None
    try:
        write(staged)
    except CANNOT_WRITE as error:
        problem = cannot_write(path, error)
    raise_together(problem)
    try:
        if not distributed.is_initialized() or distributed.get_rank() == 0:
            put_in_place(staged, path)
    except OSError as error:
        problem = cannot_write(path, error)
    raise_together(problem)


def raise_together(problem: str | None) -> None:
    """Raise on every rank what went wrong on any, so that none waits for another."""
    problems: list[str | None] = [problem]
    if distributed.is_initialized():
        problems = [None] * distributed.get_world_size()
        distributed.all_gather_object(problems, problem)
    for rank, seen in enumerate(problems):
        if seen is not None:
            raise UserError(seen if len(problems) == 1 else f"Rank {rank}: {seen}")


def cannot_write(path: Path, error: BaseException) -> str:
    """A message for the user."""
    kept = ", ".join(sorted(str(p) for p in path.parent.glob("*.ckpt")))
    return (
        f"The checkpoint {path} could not be written: {reason_of(error)}. Earlier checkpoints are as they were: "
        f"{kept or 'there is none'}. Make room or mend the folder, then start again with --resume auto."
    )


def is_staged(path: Path) -> bool:
    """Whether it is one of `staging_path`, for others to rename."""
    return path.name.endswith(STAGED)


def staging_path(path: Path) -> Path:
    """Where a checkpoint is written before it is put in its place; no pattern for checkpoints finds it."""
    return path.with_name(f".{path.name}{STAGED}")


def put_in_place(staged: Path, path: Path) -> None:
    """Bring a written checkpoint to the disk and give it its name, instead of what has that name now.

    Raises:
        OSError: the disk is full or failed; what has the name now is kept.
    """
    note_digest(staged)
    publish(staged, path, aside=staging_path(path.with_name(f"{path.name}{_REPLACED}")))


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what writes that never ended have left in a folder; tell what it was.

    A checkpoint that was put aside for a new one that never came gets its name back.
    """
    for aside in folder.glob(f".*{_REPLACED}{STAGED}"):
        path = folder / aside.name[1 : -len(_REPLACED + STAGED)]
        if not path.exists():
            aside.rename(path)
    leftovers = sorted(folder.glob(f".*{STAGED}"))
    for path in leftovers:
        remove(path)
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


def check_shared(folder: Path) -> None:
    """Check that all ranks see one and the same folder, such as a folder of shards that each adds its part to.

    Raises:
        UserError: some rank does not; raised on all of them.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    first = distributed.get_rank() == 0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".shared-") if first else contextlib.nullcontext() as mark:
        name = [Path(mark.name).name if mark is not None else ""]
        distributed.broadcast_object_list(name)
        give_up = time.monotonic() + _APPEARS  # Network file systems may take a moment.
        while not (seen := (folder / name[0]).exists()) and time.monotonic() < give_up:
            time.sleep(0.1)
        raise_together(
            None
            if seen
            else f"{folder} on {socket.gethostname()} is another folder than that of rank 0. Ranks write checkpoints "
            "together: set checkpoint.dirpath or trainer.default_root_dir to a folder that all nodes share, or set "
            "save_distributed_checkpoint of the strategy to false, which lets rank 0 write alone."
        )


def read_header(path: Path) -> dict[str, Any]:
    """All of a checkpoint but the values of its tensors, which stay on the disk.

    Raises:
        UserError: it is not whole, or not one that can be read without running code that it holds.
    """
    if path.is_dir() and not (path / SHARDS_INDEX).is_file():
        raise UserError(f"{path} is no checkpoint: it has no {SHARDS_INDEX}.")
    check_small_parts(path)
    file = path / SHARDS_REST if path.is_dir() else path
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # What is damaged beside its checksums can raise anything.
        raise unreadable(path, error) from error
    if not isinstance(content, dict) or "loops" not in content:
        raise UserError(f"{path} is no checkpoint of a training run. Give one that this package wrote.")
    return cast(dict[str, Any], content)
