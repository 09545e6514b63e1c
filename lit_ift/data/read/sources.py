"""Sources of rows as the configuration names them, and what identifies their rows in a cache."""

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Final

from tqdm import tqdm

from lit_ift.data.read.hub import hub_identity, pick_split
from lit_ift.data.read.readers import (
    SourceKind,
    check_options,
    data_files,
    local_path,
    read_files,
    read_records,
    source_kind,
)
from lit_ift.data.read.record import OnRowError, Record, raise_row_error
from lit_ift.data.read.text_files import cannot_open
from lit_ift.errors import UserError, printable, told_as
from lit_ift.options import Positive, PositiveInt, Range
from lit_ift.options import check_options as check_annotated

KINDS_OF_FILES: Final[tuple[SourceKind, ...]] = ("file", "folder", "pattern")

KINDS_WITH_SPLITS: Final[tuple[SourceKind, ...]] = ("hub", "dataset_dict")

MAX_WEIGHT: Final = 1000
"""Largest weight of a source; an epoch lists each of its rows so many times."""

PROGRESS_BYTES: Final = 256 * 2**20
"""Files from this size on get a progress bar while they are hashed."""

HASH_BYTES: Final = 2**20


@dataclass(frozen=True)
class Source:
    """Rows to use, and how.

    Args:
        path: a file, a folder of files, a pattern such as ``data/*.jsonl.gz``, a folder of ``datasets.save_to_disk``,
            or a hub id.
        weight: how often each row comes in an epoch on average: 0.5 for another half of the rows in each epoch, 2 for
            each row twice.
        max_rows: use the first so many rows only.
        split: split of a source that has several; None for the one that fits the use.
        name: configuration of a hub data set that has several.
        revision: commit, tag or branch of a hub data set.
        layout: how rows are laid out; None recognises it by the columns.
        columns: what columns are, where their names do not say it: a column that is read to the one that it is here, as
            in ``{prompt: Question}``, or a column to None, which says that it means nothing.
        score_range: lowest and highest score that the rows may have, such as (1, 10).
        preference_scale: of pairs with ``score_chosen`` and ``score_rejected``: take from them how likely the chosen
            answer is the better one, by the Bradley-Terry model: ``σ((score_chosen - score_rejected) / scale)``.
        streaming: fetch the rows of a hub data set while they are read, rather than all of it first.
        part: name of the part of a mixed objective that these rows go to; by default the kind of the row.

    Raises:
        UserError: a value is out of range, an option does not fit the kind of source, or nothing is at the path.
    """

    path: str
    weight: Annotated[float, Range(gt=0, le=MAX_WEIGHT)] = 1.0
    max_rows: PositiveInt | None = None
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    layout: str | None = None
    columns: dict[str, str | None] | None = None
    score_range: tuple[float, float] | None = None
    preference_scale: Positive | None = None
    streaming: bool = False
    part: str | None = None

    def __post_init__(self) -> None:
        """Check the values, and look up what is at the path."""
        try:
            check_annotated(Source, vars(self), prefix=f"{self.path}: ")
        except ValueError as error:
            raise UserError(f"{error}.") from None
        if not isinstance(self.path, str) or not self.path.strip():
            raise UserError("A source has no text, or an empty path. Name a file, a folder, a pattern or a hub id.")
        if self.path.lstrip().startswith("{"):
            # The command line takes a mapping that it does not understand for a string.
            raise UserError(
                f"{self.path}: this mapping is no source. Its keys may be {', '.join(OPTIONS)}, and path must be there."
            )
        if self.score_range is not None and not _is_rising_pair(self.score_range):
            raise UserError(
                f"{self.path}: score_range={self.score_range!r} must be two numbers, the lower one first: [1, 10]."
            )
        if not isinstance(self.columns, Mapping | None):
            raise UserError(f"{self.path}: columns={self.columns!r} must be a mapping, as in {{prompt: Question}}.")
        check_options(
            self.path, self.kind, split=self.split, name=self.name, revision=self.revision, streaming=self.streaming
        )
        if self.kind in ("folder", "pattern"):
            _ = self.files  # Refuses what cannot be read together.

    @functools.cached_property
    def kind(self) -> SourceKind:
        """What the path names; looked up once."""
        return source_kind(self.path)

    @functools.cached_property
    def files(self) -> list[Path]:
        """The files of a source of the kind file, folder or pattern; listed once."""
        return data_files(self.path)

    def split_in(self, default_split: str | None) -> str | None:
        """The split that is read: `default_split` if none was named, None where there are no splits."""
        return self.split or (default_split if self.kind in KINDS_WITH_SPLITS else None)

    def records(self, default_split: str | None = None, on_row_error: OnRowError = raise_row_error) -> Iterator[Record]:
        """The rows in their order, `max_rows` at most; see `read_records`.

        Args:
            default_split: split of a source that has several where `split` names none.
            on_row_error: receives each row that cannot be read; such rows do not count for `max_rows`.
        """
        if self.kind in KINDS_OF_FILES:
            rows = read_files(self.files, on_row_error)
        else:
            rows = read_records(
                self.path,
                split=self.split_in(default_split),
                name=self.name,
                revision=self.revision,
                streaming=self.streaming,
                on_row_error=on_row_error,
            )
        return islice(rows, self.max_rows)

    def fingerprint(self, default_split: str | None = None, **read_as: Any) -> dict[str, Any]:
        """Plain values that change whenever the rows, or the reading of them, could.

        Files count by name and content, hub data sets by commit. The path is there as it was written, since it is
        part of the row ids; what else there is does not change if data and configuration move together.

        Args:
            default_split: split of a source that has several where `split` names none.
            **read_as: plain values by which the rows are read instead of those of this source.

        Raises:
            UserError: a file cannot be read, or neither the hub nor the local cache knows the data set.
        """
        kind = self.kind
        split = self.split_in(default_split)
        if kind == "hub":
            content: dict[str, Any] = dict(hub_identity(self.path, split=split, name=self.name, revision=self.revision))
        else:
            folder, files = self._files(kind, split)
            content = {"files": [_file_identity(file, folder) for file in files]}
        return {
            "path": self.path,
            "kind": kind,
            "split": split,
            "name": self.name,
            "max_rows": self.max_rows,
            "layout": self.layout,
            "columns": None if self.columns is None else dict(self.columns),
            "score_range": None if self.score_range is None else list(self.score_range),
            "preference_scale": self.preference_scale,
            **read_as,
            **content,
        }

    def _files(self, kind: SourceKind, split: str | None) -> tuple[Path, list[Path]]:
        """All files that decide the rows, and the folder that their names are relative to."""
        path = local_path(self.path)
        if kind == "pattern":
            fixed = re.split(r"[*?\[]", str(path), maxsplit=1)[0]
            return Path(os.path.dirname(fixed)), self.files
        if kind in ("file", "folder"):
            return (path.parent if kind == "file" else path), self.files
        if kind == "dataset_dict":
            splits = [entry.name for entry in path.iterdir() if (entry / "state.json").exists()]
            path = path / pick_split(splits, self.path, split)
        # datasets writes the results of map and filter next to the data, as cache-*.arrow.
        own = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(("cache-", "tmp", "."))]
        return path, sorted(own)


Sources = str | Source | Sequence[str | Source]
"""What a configuration may name as data."""


OPTIONS: Final = tuple(field.name for field in dataclasses.fields(Source))
"""Keys of a mapping that describes a source."""


def _is_rising_pair(value: Any) -> bool:
    """Whether it is two finite numbers, the lower one first."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    are_numbers = all(not isinstance(end, bool) and isinstance(end, Real) and math.isfinite(end) for end in value)
    return are_numbers and value[0] < value[1]


def as_sources(value: Sources | None, option: str = "data") -> list[Source]:
    """What a configuration names as data, as a list; mappings, as hyperparameters hold them, are sources too.

    Args:
        value: from the configuration.
        option: where it stands there, for messages.

    Raises:
        UserError: a source is listed twice; the same path may come again with another split or name.
    """
    if value is None:
        return []
    listed = [value] if isinstance(value, str | Source | Mapping) else value
    if not isinstance(listed, Iterable):
        raise _no_source(listed, option)
    sources = [_as_source(item, option) for item in listed]
    seen: dict[tuple[str, str | None, str | None], str] = {}
    for source in sources:
        for part in _parts(source):
            key = (part, source.split, source.name)
            if key in seen:
                again = "is listed twice" if seen[key] == source.path else f"has files that {seen[key]} has, too"
                raise UserError(
                    f"The source {source.path} {again}. Name each source once; to use its rows more often, set its "
                    "weight."
                )
            seen[key] = source.path
    return sources


def _as_source(item: Any, option: str) -> Source:
    if isinstance(item, Mapping):
        if "path" not in item or not set(OPTIONS).issuperset(item):
            raise _no_source(dict(item), option)
        return Source(**item)
    if not isinstance(item, str | Source):
        raise _no_source(item, option)
    return Source(item) if isinstance(item, str) else item


def _no_source(item: Any, option: str) -> UserError:
    return UserError(
        f"{option}: {item!r} is no source. Name a file, a folder, a pattern or a hub id, or give a mapping with path "
        f"and any of its other keys ({', '.join(OPTIONS)})."
    )


def as_plain(value: Sources | None) -> Any:
    """The same in plain values, which a checkpoint can hold."""
    if isinstance(value, Source):
        return asdict(value)
    return [as_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _parts(source: Source) -> list[str]:
    """What a source consists of: its files, or a data set as a whole."""
    kind = source.kind
    if kind == "hub":
        return [source.path]
    if kind in ("dataset", "dataset_dict"):
        return [str(local_path(source.path).resolve())]
    return [str(file.resolve()) for file in source.files]


def _file_identity(path: Path, folder: Path) -> dict[str, Any]:
    with told_as(OSError, lambda error: cannot_open(path, error)):
        stat = path.stat()
        digest = _sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return {"name": path.relative_to(folder).as_posix(), "size": stat.st_size, "sha256": digest}


@functools.cache
def _sha256(path: str, size: int, *changed: int) -> str:
    """Hash of a file's content; its size and what else tells that it was changed are there for the cache.

    A copy that keeps the time of modification (rsync, tar, ``cp -p``) still has another time of status change.
    """
    return sha256_of(Path(path))


def sha256_of(path: Path) -> str:
    """Hash of a file's content; a large one shows its progress."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    shown = f"hash {printable(path.name)}" if size >= PROGRESS_BYTES else None
    with (
        path.open("rb") as file,
        tqdm(total=size, desc=shown, unit="B", unit_scale=True, disable=shown is None) as bar,
    ):
        while chunk := file.read(HASH_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
