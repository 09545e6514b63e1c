"""Write a folder completely or not at all."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_LOCK: Final = ".lock"
_REPLACED: Final = "old"
_UNLOCKED: Final = 3600.0
"""After this time [s] a folder without lock is taken for one whose process ended before it could lock it."""


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a private folder beside ``target``, which is deleted when the block ends.

    So are those that killed processes have left for the same target; one that had put the target aside gives it back.
    The parents of ``target`` are created.

    Raises:
        OSError: the parent cannot be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.tmp-"
    for left in target.parent.glob(f"{escape(prefix)}*"):
        _remove_if_abandoned(left, target)
    holder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with FileLock(holder / _LOCK):  # The system releases it with the process.
            yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _remove_if_abandoned(holder: Path, target: Path) -> None:
    lock = holder / _LOCK
    try:
        if not lock.exists():
            if time.time() - holder.stat().st_mtime > _UNLOCKED:
                shutil.rmtree(holder, ignore_errors=True)
            return
        with FileLock(lock, timeout=0):
            if (holder / _REPLACED).exists() and not target.exists():
                os.rename(holder / _REPLACED, target)
            shutil.rmtree(holder, ignore_errors=True)
    except (Timeout, FileNotFoundError):  # In use, or gone meanwhile.
        return


@contextmanager
def staged_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that becomes ``target`` when the block ends without an error.

    A reader sees either the old state or the finished folder, never half of it, and an error leaves
    nothing behind. The parents of ``target`` are created.

    Args:
        target: the folder to create; an existing empty one is filled.
        replace: whether an existing folder with content gives way to the new one.

    Yields:
        The folder to write into.

    Raises:
        FileExistsError: ``target`` has content (or is a file) and ``replace`` is False.
        OSError: the parent cannot be written to.
    """
    with scratch_folder(target) as holder:
        # The holder is private (mkdtemp); the folder inside it gets the permissions of any new folder.
        stage = holder / "new"
        stage.mkdir()
        yield stage
        _open_permissions(stage)
        _publish(stage, target, spare=holder / _REPLACED, replace=replace)


def _open_permissions(stage: Path) -> None:
    # safetensors creates its files readable by their owner alone; give all files what a new file would get.
    mode = stage.stat().st_mode & 0o666
    for file in stage.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _publish(stage: Path, target: Path, *, spare: Path, replace: bool) -> None:
    try:
        os.rename(stage, target)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        if not replace:
            raise FileExistsError(errno.EEXIST, "the folder exists and is not empty", str(target)) from error
        os.rename(target, spare)
        try:
            os.rename(stage, target)
        except OSError:
            os.rename(spare, target)
            raise
