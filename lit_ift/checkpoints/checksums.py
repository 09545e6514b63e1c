"""Damage to checkpoints, found by the checksums that they hold.

torch writes a file, and each value of a shard, as a zip archive with a checksum of each record, which it does not look
at when it loads. The index of a folder of shards has its digest beside it.
"""

import errno
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo

from lit_ift.checkpoints.shards import SHARDS_INDEX, SHARDS_REST, check_shards, read_index
from lit_ift.errors import UserError

INDEX_DIGEST: Final = ".metadata.sha256"
"""The file of a folder of shards that holds the digest of its index."""

_PIECE: Final = 2**20
_THREADS: Final = 8
_OF_TENSORS: Final = "/data/"
"""In the names of records that hold values of tensors; all others are small."""


def note_digest(folder: Path) -> None:
    """Write the digest of the index into a folder of shards; into one of another kind, nothing."""
    if (folder / SHARDS_INDEX).is_file():
        (folder / INDEX_DIGEST).write_text(_digest(folder / SHARDS_INDEX))


def check_checksums(path: Path) -> None:
    """Read all of a checkpoint, file or folder of shards, and compare it with its checksums.

    What was whole is not read again by this process as long as its files stay the same.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    _check_once(path, tuple((str(file), s.st_size, s.st_mtime_ns) for file, s in zip(files, stats, strict=True)))


def check_small_parts(path: Path) -> None:
    """The same for what says what a checkpoint holds, without the values of its tensors.

    Raises:
        UserError: it is damaged, or cannot be read.
    """

    def check() -> None:
        _check_index(path)
        _check_archive(_rest_of(path), lambda name: _OF_TENSORS not in name)

    _told(path, check)


@cache
def _check_once(path: Path, state: tuple[tuple[str, int, int], ...]) -> None:
    def check() -> None:
        _check_index(path)
        _check_archive(_rest_of(path), lambda name: True)
        if path.is_dir():
            _check_values(path)

    _told(path, check)


def _told(path: Path, check: Callable[[], None]) -> None:
    try:
        check()
    except Exception as error:  # What is damaged can make a reader stumble over anything.
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """What to say of a checkpoint that could not be read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"{path} cannot be read as a checkpoint: {reason} It is damaged, was copied without all of its files, or "
        "holds objects that only code could restore, which is not run. Use another checkpoint of the run."
    )


def _rest_of(path: Path) -> Path:
    return path / SHARDS_REST if path.is_dir() else path


def _check_index(path: Path) -> None:
    """Checkpoints of plain Lightning have no digest of their index; then only its form is checked."""
    if not path.is_dir():
        return
    digest = path / INDEX_DIGEST
    if digest.is_file() and digest.read_bytes() != _digest(path / SHARDS_INDEX).encode():
        raise ValueError(f"{SHARDS_INDEX} is not what was written.")
    check_shards(path, read_index(path))


def _check_archive(file: Path, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(file) as archive:

        def read(record: zipfile.ZipInfo) -> None:
            with archive.open(record) as stream:
                while stream.read(_PIECE):  # The last piece is compared with the checksum.
                    pass

        _all(read, [record for record in archive.infolist() if wanted(record.filename)])


def _check_values(folder: Path) -> None:
    def read(place: _StorageInfo) -> None:
        with (folder / place.relative_path).open("rb") as stream:
            part = _Part(stream, place.offset, place.length)
            with zipfile.ZipFile(part) as archive:
                if (record := archive.testzip()) is not None:
                    raise ValueError(f"{place.relative_path}: the checksum of {record} is wrong.")
            part.seek(0)
            # torch's reader is stricter with the rest of the archive; it reads no values here.
            torch.load(part, map_location="meta", weights_only=True)  # type: ignore[arg-type]

    _all(read, (read_index(folder).storage_data or {}).values())


class _Part(io.RawIOBase):
    """Some bytes of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + (0, self._at, self._length)[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "a place before the first byte")
        self._at = place
        return place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        wanted = min(len(buffer), max(0, self._length - self._at))
        count = self._file.readinto(memoryview(buffer)[:wanted])  # type: ignore[attr-defined]
        self._at += count
        return int(count)


def _all(read: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Several at a time: computing checksums lets other threads run."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(read, items):
            pass


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
