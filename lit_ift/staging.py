"""Write a file or a folder completely or not at all: under another name, then to the disk, then renamed."""

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO, Any, Final

from filelock import BaseFileLock, FileLock, Timeout

STAGED: Final = ".partial"
"""What the name of a file or folder ends with that is not whole yet; such names also begin with a dot."""

NO_LOCKS: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system answers that cannot lock files."""

_OCCUPIED: Final = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_HOLDER: Final = ".tmp-"
_LOCK: Final = ".lock"
_REPLACED: Final = "old"
_UNLOCKED: Final = 3600.0
"""After this time [s] a folder without lock is taken for one whose process ended before it could lock it."""


@contextmanager
def replaced_file(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Yield an open file that becomes ``path``, instead of what is there, when the block ends without an error.

    Args:
        path: the file to write, in a folder that exists.
        mode: see ``open``, as for the options.
        options: see there.

    Raises:
        OSError: the folder cannot be written to.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{STAGED}")
    try:
        with draft.open(mode, **options) as file:
            yield file
        publish(draft, path)
    finally:
        remove(draft)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a private folder beside ``target``, which is deleted when the block ends.

    So are those that killed processes have left for the same target; one that had put the target aside gives it back.
    The parents of ``target`` are created.

    Raises:
        OSError: the parent cannot be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, target.name)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name}{_HOLDER}", dir=target.parent))
    try:
        with _held(FileLock(holder / _LOCK)):
            yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def _held(lock: BaseFileLock) -> Iterator[None]:
    """Hold a lock, which the system releases with the process, where the file system has any."""
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes have left in a folder for the target of a name, or for any."""
    for left in folder.glob(f".{'*' if name is None else escape(name)}{_HOLDER}*"):
        _remove_if_abandoned(left, folder / left.name[1:].rpartition(_HOLDER)[0])


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
    except OSError as error:
        if error.errno not in NO_LOCKS:  # Else nobody knows whether it is in use.
            raise


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
        publish(stage, target, aside=holder / _REPLACED if replace else None)


def _open_permissions(stage: Path) -> None:
    # safetensors creates its files readable by their owner alone; give all files what a new file would get.
    mode = stage.stat().st_mode & 0o666
    for file in stage.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def publish(staged: Path, target: Path, *, aside: Path | None = None) -> None:
    """Bring a file or folder to the disk and give it its name.

    Args:
        staged: written, on the same file system.
        target: its name. A file takes the place of a file in one go, and a folder that of an empty one.
        aside: where anything else that has the name is put meanwhile, and then deleted; None to refuse.

    Raises:
        FileExistsError: something else has the name, and there is no ``aside``.
        OSError: the disk is full or failed; what has the name is kept.
    """
    for file in [staged, *staged.rglob("*")]:
        _sync(file)
    try:
        os.rename(staged, target)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        if aside is None:
            raise FileExistsError(errno.EEXIST, "the folder exists and is not empty", str(target)) from error
        remove(aside)
        os.rename(target, aside)
        try:
            os.rename(staged, target)
        except OSError:
            os.rename(aside, target)
            raise
        remove(aside)
    _sync(target.parent)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
