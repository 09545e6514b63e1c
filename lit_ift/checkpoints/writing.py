"""Checkpoints, files and folders of shards alike, that are there whole or not at all.

Whatever happens before one has its name leaves the earlier checkpoints as they were. All ranks write under one other
name, which they know of each other; so what a killed run has left is known by its name.
"""

import contextlib
import io
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils._pytree import tree_map_only

from lit_ift.checkpoints.checksums import check_checksums, check_small_parts, note_digest, unreadable
from lit_ift.checkpoints.shards import SHARDS_INDEX, SHARDS_REST, read_whole, reason_of
from lit_ift.errors import UserError, told_as
from lit_ift.lightning_private import writes_shards
from lit_ift.ranks import of_every_rank
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


class CheckpointWriter:
    """Does what it is asked to in that order, on all ranks.

    Args:
        in_background: write from a copy in main memory, while training goes on.
    """

    def __init__(self, in_background: bool) -> None:
        self.in_background = in_background
        self._thread: ThreadPoolExecutor | None = None
        self._last_job: Future[None] | None = None
        self._side_group: Any = None

    def write(self, trainer: L.Trainer, checkpoint: dict[str, Any], path: Path) -> None:
        """Write under another name, then rename.

        Raises:
            UserError: this or the one before could not be written on some rank; raised on all of them.
        """
        self.finish_together()
        if not self.in_background:
            write_together(lambda staged: trainer.strategy.save_checkpoint(checkpoint, str(staged)), path)
            return
        staged = staging_path(path)
        write_copy = self._copied(trainer, checkpoint, staged)

        def job() -> None:
            with told_as(CANNOT_WRITE, lambda error: UserError(cannot_write(path, error))):
                write_copy()
                if trainer.is_global_zero:
                    put_in_place(staged, path)

        self._start(job)

    def remove(self, trainer: L.Trainer, path: str) -> None:
        """Remove a checkpoint, not before the one that takes its place is there."""
        before = self._last_job
        if before is None:
            trainer.strategy.remove_checkpoint(path)
        else:

            def job() -> None:
                before.result()
                trainer.strategy.remove_checkpoint(path)

            self._start(job)

    def finish(self) -> None:
        """Wait for what is being done.

        Raises:
            UserError: a checkpoint could not be written.
        """
        job, self._last_job = self._last_job, None
        if job is not None:
            job.result()

    def finish_together(self) -> None:
        """The same, with the error of any rank raised on all of them."""
        problem = None
        try:
            self.finish()
        except UserError as error:
            problem = str(error)
        if self.in_background:
            raise_together(problem)

    def close(self) -> None:
        """Finish, and give the thread back."""
        self.finish()
        if self._thread is not None:
            self._thread.shutdown()
        if self._side_group is not None and distributed.is_initialized():
            distributed.destroy_process_group(self._side_group)
        self._thread = self._side_group = None

    def _start(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._last_job = self._thread.submit(job)

    def _copied(self, trainer: L.Trainer, checkpoint: dict[str, Any], staged: Path) -> Callable[[], None]:
        """Copy the checkpoint to main memory, and return what is left to do by the thread."""
        if not writes_shards(trainer.strategy):
            if not trainer.is_global_zero:
                return lambda: None
            copy = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), checkpoint)
            return lambda: trainer.strategy.checkpoint_io.save_checkpoint(copy, str(staged))
        from torch.distributed.checkpoint.state_dict_saver import async_save

        if self._side_group is None:  # Training's own messages must not get between those of the writing threads.
            limit = getattr(trainer.strategy, "_timeout", None)
            self._side_group = distributed.new_group(backend="gloo", timeout=limit)
        shards = {"state_dict": checkpoint.pop("state_dict")}
        shards |= {f"optimizer_{i}": state for i, state in enumerate(checkpoint.pop("optimizer_states", []))}
        rest = io.BytesIO()
        torch.save(checkpoint, rest)
        written = async_save(shards, checkpoint_id=staged, process_group=self._side_group)
        assert isinstance(written, Future)

        def finish() -> None:
            written.result()
            if trainer.is_global_zero:
                (staged / SHARDS_REST).write_bytes(rest.getvalue())

        return finish


def raise_together(problem: str | None) -> None:
    """Raise on every rank what went wrong on any, so that none waits for another."""
    problems = of_every_rank(problem)
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
