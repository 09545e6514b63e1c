"""Files as bytes, lines and text: plain or compressed, with errors that name the place."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lit_ift.data.read.record import unreadable
from lit_ift.errors import UserError, nearest, told_as

COMPRESSIONS: Final = (".gz", ".zst")
"""Endings that may follow the ending of a text format."""

MAX_LINE_BYTES: Final = 64 * 2**20
"""Longest line that is read. It holds `MAX_TEXT_CHARS` however they are escaped."""

SKIP_BYTES: Final = 2**20
"""How much of a line that is too long is read at once to get past it."""

DAMAGE: Final = (EOFError, OSError, zlib.error)
"""What reading from a damaged or cut off file raises."""

BUFFER_BYTES: Final = 2**17

HEAD_BYTES: Final = 4096
"""Bytes at the start of a file that tell its encoding."""

MAX_EXPANSION: Final = 1000
"""How many bytes of rows a byte of a compressed file may stand for. Text and rows that repeat much reach 100."""

MIN_EXPANDED_BYTES: Final = 64 * 2**20
"""What any compressed file may hold, however small it is."""

FOREIGN_HEADS: Final[dict[bytes, tuple[str, str]]] = {
    b"\x1f\x8b": ("is compressed with gzip", "End its name in .gz"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "End its name in .zst"),
    b"PK\x03\x04": ("is a zip archive", "Unpack it"),
    b"PAR1": ("is a Parquet file", "End its name in .parquet"),
    b"version https://git-lfs.github.com": ("is a Git LFS pointer, not the data", "Run git lfs pull"),
    b"\xff\xfe": ("is UTF-16 or UTF-32", "Save it again as UTF-8"),
    b"\xfe\xff": ("is UTF-16", "Save it again as UTF-8"),
}
"""How files begin that are not UTF-8 text: what they are, and the remedy."""

ByteFile = io.BufferedReader


class ExpandedSize:
    """Bytes that have come out of a compressed file so far. A few bytes may stand for more than a machine holds.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._most = max(MIN_EXPANDED_BYTES, MAX_EXPANSION * self._size)
        self._total = 0

    def add(self, num_bytes: int) -> None:
        """Count some more.

        Raises:
            UserError: that makes more than a file of data of this size holds.
        """
        self._total += num_bytes
        if self._total > self._most:
            raise UserError(
                f"{self._path}: the file has {self._size:,} bytes, but stands for more than {self._most:,}: it repeats "
                "itself as no training data does, or is made to fill the memory. Remove the repetitions, or write the "
                "rows uncompressed as JSON Lines."
            )


class _Decompressed(io.RawIOBase):
    """A decompressed stream whose length is bounded."""

    def __init__(self, stream: Any, size: ExpandedSize) -> None:
        self._stream = stream
        self._expanded = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._expanded.add(len(data))
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_bytes(path: Path) -> ByteFile:
    """Open a file for reading, decompressed if its name ends so.

    The readers get bytes and decode line by line: that is what lets an error name its line.

    Raises:
        UserError: it cannot be opened, or begins like something that is not UTF-8 text.
    """
    name = path.name.lower()
    file: ByteFile
    with told_as(OSError, lambda error: cannot_open(path, error)):
        if name.endswith(".gz"):
            file = io.BufferedReader(_Decompressed(gzip.GzipFile(path, "rb"), ExpandedSize(path)), BUFFER_BYTES)
        elif name.endswith(".zst"):
            import pyarrow  # type: ignore[import-untyped]

            # Unlike the stream reader of the package zstandard, this one notices a file that was cut off.
            stream = pyarrow.input_stream(str(path), compression="zstd")
            file = io.BufferedReader(_Decompressed(stream, ExpandedSize(path)), BUFFER_BYTES)
        else:
            file = path.open("rb")
    try:
        _check_head(file, path)
    except BaseException:
        file.close()
        raise
    return file


def cannot_open(path: Path, error: OSError) -> UserError:
    """The error of a file that exists but cannot be opened."""
    return UserError(f"{path}: cannot be opened ({error.strerror or error}). Check its permissions.")


def did_you_mean(path: Path) -> str:
    """A question that names what exists near a path that does not; empty if nothing is alike."""
    missing = next((part for part in (path, *path.parents) if part.parent.is_dir()), path)
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return ""  # A folder that cannot be listed has no suggestions to make.
    close = nearest(missing.name, names)
    return f"Did you mean {missing.parent / close}?" if close else ""


def damaged(origin: str, error: Exception, last_good: str) -> UserError:
    """The error of a file whose rest is lost."""
    return UserError(
        f"{origin}: the file is damaged or cut off here ({error}); {last_good}. Everything after it is lost: copy or "
        "download the file again."
    )


def _check_head(file: ByteFile, path: Path) -> None:
    with told_as(DAMAGE, lambda error: damaged(f"{path}:1", error, "nothing of it can be read")):
        head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    for start, (problem, remedy) in FOREIGN_HEADS.items():
        if head.startswith(start):
            raise UserError(f"{path}:1: the file {problem}. {remedy}.")
    # ASCII in UTF-16 has a null in every second byte.
    nulls = (head[::2].count(0), head[1::2].count(0))
    if min(nulls) == 0 and max(nulls) * 4 > len(head):
        raise UserError(f"{path}:1: the file is UTF-16 without a byte order mark. Save it again as UTF-8.")


def read_lines(file: ByteFile, path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number of each line, from 1, and its bytes with the line break; None if it is too long to be read.

    Raises:
        UserError: the file is damaged or cut off.
    """
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_LINE_BYTES + 1)
            is_too_long = len(line) > MAX_LINE_BYTES
            rest = line
            while is_too_long and rest and not rest.endswith(b"\n"):
                line = b""
                rest = file.readline(SKIP_BYTES)
        except DAMAGE as error:
            last_good = f"line {number - 1} is the last whole one" if number > 1 else "nothing of it can be read"
            raise damaged(f"{path}:{number}", error, last_good) from error
        if is_too_long:
            yield number, None
        elif line:
            yield number, line
        else:
            return


def decode(data: bytes, path: Path, first_line: int) -> str:
    """UTF-8 text without a byte order mark.

    Args:
        data: what to decode.
        path: where it was read.
        first_line: number of its first line.

    Raises:
        RowError: there is a null byte, or it is not UTF-8.
    """
    if b"\0" in data:
        raise _bad_byte(
            data, data.index(0), path, first_line, "null byte", "The file is damaged or not text: write it again"
        )
    try:
        # "utf-8-sig" forgives the byte order mark that some editors put before the first line.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = error.start
        if len(error.object) < len(data):  # The codec counts from behind the byte order mark.
            position += len(data) - len(error.object)
        problem = f"not UTF-8: byte 0x{data[position]:02x}"
        remedy = "Save the file again as UTF-8 (it may be Latin-1 or Windows-1252, or cut inside a character)"
        raise _bad_byte(data, position, path, first_line, problem, remedy) from error


def _bad_byte(data: bytes, position: int, path: Path, first_line: int, problem: str, remedy: str) -> Exception:
    line = first_line + data.count(b"\n", 0, position)
    column = position - (data.rfind(b"\n", 0, position) + 1) + 1
    return unreadable(f"{path}:{line}", f"{problem} at byte {column}", remedy)


def too_long(path: Path, number: int) -> Exception:
    """The error of a line that was not read."""
    return unreadable(
        f"{path}:{number}",
        f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB",
        "Split the row into several, one a line",
    )
