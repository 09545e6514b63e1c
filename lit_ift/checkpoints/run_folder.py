"""The folder of a run, which one process at a time may write to."""

import contextlib
import os
import shutil
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lit_ift.errors import UserError, told_as
from lit_ift.staging import NO_LOCKS

RUNS: Final = "runs"
"""Folder of all runs, in the root of outputs."""

LOCK: Final = ".lock"
HOLDER: Final = ".holder"
"""File that says in words which process has the lock."""

OF_A_START: Final = ("config", "events.out.", "hparams.yaml", LOCK, HOLDER)
"""What the names of files begin with that a run leaves which failed before it trained."""


def holds_results(folder: Path) -> bool:
    """Whether a folder has more than what a run leaves that failed before it trained."""
    return any(path.is_file() and not path.name.startswith(OF_A_START) for path in folder.rglob("*"))


def unwritable_runs(runs: Path, problem: str) -> UserError:
    """What to say where runs cannot be written to their folder."""
    return UserError(
        f"Runs cannot be written to {runs}: {problem}. Set trainer.default_root_dir to a folder that can be written to."
    )


class FolderLock:
    """The right to write to a folder, which ends with `release` or with this process.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made_folder = False
        self._lock = FileLock(folder / LOCK)

    def take(self) -> bool:
        """Whether this process has the folder now. It never waits for another one.

        Raises:
            OSError: the folder cannot be written to.
        """
        while True:
            try:
                self.folder.mkdir(parents=True)
                self.made_folder = True
            except FileExistsError:
                self.folder.mkdir(parents=True, exist_ok=True)  # Raises where it is a file.
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                return False
            except FileNotFoundError:
                continue  # Another process has just removed the folder of its failed start.
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                rank_zero_warn(
                    f"The file system of {self.folder} cannot lock files ({error.strerror}). See to it that no second "
                    "process writes to this run."
                )
                return True
            if (self.folder / LOCK).exists():
                break
            self._lock.release()  # The lock of a file that was removed meanwhile keeps nobody out.
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        (self.folder / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        return True

    @property
    def is_held(self) -> bool:
        """Whether it keeps others out; false where the file system cannot lock files."""
        return bool(self._lock.is_locked)

    def holder(self) -> str:
        """Who has the lock, in words."""
        try:
            return (self.folder / HOLDER).read_text(encoding="utf-8").strip() or "another process"
        except (OSError, UnicodeDecodeError):
            return "another process"

    def release(self) -> None:
        """Let others have the folder; remove it if this process made it and has left no results."""
        with contextlib.suppress(OSError):
            if self.made_folder and not holds_results(self.folder):
                shutil.rmtree(self.folder)
            else:
                # Removed while it is locked: whoever opened it sees afterwards that it is gone.
                (self.folder / HOLDER).unlink(missing_ok=True)
                (self.folder / LOCK).unlink(missing_ok=True)
        self._lock.release()


class Claims:
    """The folders that this process has for its run, as a context. Ranks other than 0 claim none: rank 0 does."""

    def __init__(self) -> None:
        self._held: dict[Path, FolderLock] = {}

    def claim(self, folder: Path) -> None:
        """Keep other processes from writing to a folder.

        Raises:
            UserError: another one has it, or it cannot be written to.
        """
        if rank_zero_only.rank != 0 or folder.absolute() in self._held:  # type: ignore[attr-defined]
            return
        lock = FolderLock(folder)
        if not self._take(lock):
            raise UserError(
                f"{folder} is in use by {lock.holder()}. Two processes would spoil each other's run: wait until that "
                "one has ended, stop it, or begin a run of another name (--run_name) or without --resume."
            )

    def claim_new(self, runs: Path, kind: str = "version") -> str | None:
        """Claim a folder ``<kind>_<n>`` in `runs` that no other process has and that holds no results.

        Returns:
            Its name; None on ranks other than 0.

        Raises:
            UserError: it cannot be made.
        """
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return None
        number = 1 + max((n for n, folder in numbered(runs, kind) if holds_results(folder)), default=-1)
        while True:
            lock = FolderLock(runs / f"{kind}_{number}")
            if self._take(lock):
                if lock.made_folder or (lock.is_held and not holds_results(lock.folder)):
                    return lock.folder.name
                self.drop(lock.folder)
            number += 1

    def drop(self, folder: Path) -> None:
        """Let others have a folder that was claimed."""
        if lock := self._held.pop(folder.absolute(), None):
            lock.release()

    def _take(self, lock: FolderLock) -> bool:
        with told_as(OSError, lambda error: unwritable_runs(lock.folder.parent, str(error))):
            taken = lock.take()
        if taken:
            self._held[lock.folder.absolute()] = lock
        return taken

    def __enter__(self) -> "Claims":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._held:
            self._held.popitem()[1].release()


def numbered(runs: Path, kind: str = "version") -> list[tuple[int, Path]]:
    """Number and path of all folders ``<kind>_<n>``, by rising number."""
    found = [(path.name.removeprefix(f"{kind}_"), path) for path in runs.glob(f"{kind}_*")]
    return sorted((int(number), path) for number, path in found if number.isdecimal())
