"""Write a folder completely or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


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
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        # The holder is private (mkdtemp); the folder inside it gets the permissions of any new folder.
        stage = holder / "new"
        stage.mkdir()
        yield stage
        _open_permissions(stage)
        _publish(stage, target, spare=holder / "old", replace=replace)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


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
