"""Rows from files, folders and the Hugging Face hub, each with the place it came from."""

import glob
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

from lit_ift.data.read.hub import read_hub, read_saved_dataset
from lit_ift.data.read.json_files import read_json, read_jsonl
from lit_ift.data.read.parquet import read_parquet
from lit_ift.data.read.record import FaultListener, OnRowError, ReadRow, Record, raise_row_error
from lit_ift.data.read.tables import read_csv
from lit_ift.data.read.text_files import COMPRESSIONS, did_you_mean
from lit_ift.errors import RowError, UserError, nearest

__all__ = ["OnRowError", "Record", "SourceKind", "data_files", "raise_row_error", "read_records", "source_kind"]

READERS: Final[dict[str, Callable[[Path], Iterator[ReadRow]]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": partial(read_csv, usual=","),
    ".tsv": partial(read_csv, usual="\t"),
    ".parquet": read_parquet,
}
"""How a file is read, by the ending of its name. All but Parquet may also be compressed (`COMPRESSIONS`)."""

SUFFIXES: Final = (
    *READERS,
    *(suffix + packed for suffix in READERS if suffix != ".parquet" for packed in COMPRESSIONS),
)
"""File names that can be read, by how they end."""

ENDINGS: Final = ".jsonl, .ndjson, .json, .csv or .tsv (each also with .gz or .zst behind it), or .parquet"
"""The same for people."""

OTHER_DATA_SUFFIXES: Final = (".txt", ".gz", ".zst", ".zip", ".tar", ".xz", ".bz2", ".arrow", ".xlsx")
"""Endings of data that cannot be read."""

CONFIG_SUFFIXES: Final = (".yaml", ".yml")
"""Endings that, like those of data, tell a path from a hub id."""

NOT_DATA: Final = re.compile(
    r"\..*|(readme|licen[cs]e)(\.(md|rst|txt))?|(dataset_infos?|dataset_dict|state)\.json", re.IGNORECASE
)
"""Names of files that lie beside the data."""

SPLIT_WORDS: Final[dict[str, str]] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words of file names that tell which split a file belongs to."""

SourceKind = Literal["file", "folder", "pattern", "dataset", "dataset_dict", "hub"]
"""A file, a folder of files, a pattern such as ``data/*.jsonl``, a folder of ``datasets.save_to_disk`` with one data
set or with several splits, or a hub id."""


def read_records(
    source: str | Path,
    *,
    split: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    on_row_error: OnRowError = raise_row_error,
) -> Iterator[Record]:
    """Yield the rows of `source` in their order, without holding them all in memory.

    Args:
        source: a file ending in one of `SUFFIXES`, a folder of such files or a pattern with ``*``, ``?`` or ``**`` (the
            files in the order of their names), a folder written by ``datasets.save_to_disk``, or a hub id. Whatever
            exists on disk wins over a hub id of the same name.
        split: which split of a hub data set or of a saved ``DatasetDict``; nothing else has splits.
        name: configuration of a hub data set that has several.
        revision: commit, tag or branch of a hub data set.
        streaming: fetch the rows of a hub data set while they are read instead of all of it first.
        on_row_error: receives each row that cannot be read, always with the reason ``unreadable``; the default raises
            it. Damage that hides the rest of a file (a truncated archive, an unclosed quote) is raised, unless it is a
            `FaultListener`.

    Raises:
        RowError: a row is not valid JSON, CSV or UTF-8, is not an object, or is beyond the limits of length and depth.
        UserError: the source is missing, empty, damaged or of an unknown kind, or the options do not fit it.
    """
    kind = source_kind(source)
    check_options(source, kind, split=split, name=name, revision=revision, streaming=streaming)
    if kind == "hub":
        read = partial(read_hub, str(source), split=split, name=name, revision=revision, streaming=streaming)
        yield from _read_place(source, read, on_row_error)
    elif kind in ("dataset", "dataset_dict"):
        yield from _read_place(source, partial(read_saved_dataset, local_path(source), split), on_row_error)
    else:
        yield from read_files(data_files(source), on_row_error)


def read_files(files: Iterable[Path], on_row_error: OnRowError = raise_row_error) -> Iterator[Record]:
    """The rows of files, as `read_records` gives them."""
    for path in files:
        yield from _read_place(path, partial(READERS[_format(path)], path), on_row_error)


def _read_place(place: str | Path, read: Callable[[], Iterator[ReadRow]], on_row_error: OnRowError) -> Iterator[Record]:
    """The rows of one file or data set; there must be one, if only one that cannot be read."""
    is_empty = True
    try:
        for row in read():
            is_empty = False
            if isinstance(row, RowError):
                on_row_error(row)
            else:
                yield row
        if is_empty:
            raise UserError(f"{place}: there is no row in it. Check that the export finished, or leave it out.")
    except UserError as error:
        if not isinstance(on_row_error, FaultListener):
            raise
        on_row_error.file_fault(error)


def check_options(
    source: str | Path, kind: SourceKind, *, split: str | None, name: str | None, revision: str | None, streaming: bool
) -> None:
    """Do nothing if the options, as `read_records` takes them, fit a source of the kind.

    Raises:
        UserError: one of them would have no effect.
    """
    if kind != "hub":
        for option, value in (("name", name), ("revision", revision), ("streaming", streaming or None)):
            if value is not None:
                raise UserError(f"{source}: {option}={value!r} was given, but this is local data. Remove {option}.")
    if split is not None and kind not in ("hub", "dataset_dict"):
        what = {"file": "a file has no splits", "dataset": "this is a single data set"}
        reason = what.get(kind, "files of a folder are read together; name those of one split by a pattern")
        raise UserError(f"{source}: split={split!r} was given, but {reason}. Remove split.")


def source_kind(source: str | Path) -> SourceKind:
    """What `source` is.

    Raises:
        UserError: a path that does not exist or cannot be looked at, a file of unknown suffix, or a string that can be
            neither a path nor a hub id.
    """
    path = local_path(source)
    try:
        if path.is_dir():
            if (path / "dataset_dict.json").exists():
                return "dataset_dict"
            # Folders of the hub also have a dataset_info.json; only save_to_disk writes both.
            return "dataset" if (path / "state.json").exists() and (path / "dataset_info.json").exists() else "folder"
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{source}: cannot be looked at ({error.strerror}). Check its name and permissions.") from error
    if exists:
        if path.name.lower().endswith(SUFFIXES):
            return "file"
        raise UserError(f"{source}: cannot tell the format from the name. It must end in {ENDINGS}.")
    if glob.has_magic(str(source)):
        return "pattern"
    if _looks_like_path(str(source)):
        raise UserError(
            f"{source}: no such file or folder (looked in {Path.cwd()}). {did_you_mean(path) or 'Check the path.'}"
        )
    return "hub"


def data_files(source: str | Path) -> list[Path]:
    """The files that a source of the kind file, folder or pattern consists of, in the order they are read.

    In a folder, subfolders and files such as README, LICENSE and hidden ones do not count.

    Raises:
        UserError: there are none, they are of several formats or splits, or one is there twice.
    """
    path = local_path(source)
    if path.is_file():
        return [path]
    is_folder = path.is_dir()
    try:
        found = sorted(path.iterdir() if is_folder else map(Path, glob.glob(str(path), recursive=True)))
    except OSError as error:
        raise UserError(f"{source}: cannot be listed ({error.strerror}). Check its permissions.") from error
    data = []
    for file in found:
        name = file.name.lower()
        if NOT_DATA.fullmatch(name) or not name.endswith(SUFFIXES + OTHER_DATA_SUFFIXES) or not file.is_file():
            continue
        if not name.endswith(SUFFIXES):
            raise UserError(f"{source}: {file.name} cannot be read. Move it away, or convert it to {ENDINGS}.")
        data.append(file)
    if not data:
        folders = ", ".join(str(entry) for entry in found if entry.is_dir() and not entry.name.startswith("."))
        hint = f"Its subfolders are not searched; name one of them: {folders}" if folders else "Check the path"
        what = "there is no data file in this folder" if is_folder else "no data file matches this pattern"
        raise UserError(f"{source}: {what} (names must end in {ENDINGS}). {hint}.")
    _check_alike(source, data)
    if is_folder:
        _check_one_split(source, data)
    return data


def _check_alike(source: str | Path, files: list[Path]) -> None:
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(_without_compression(file), []).append(file)
    formats = {READERS[Path(name).suffix]: same[0] for name, same in reversed(by_name.items())}
    if len(formats) > 1:
        named = ", ".join(sorted(file.name for file in formats.values()))
        raise UserError(f"{source}: files of several formats ({named}). Name the files of one, or use a pattern.")
    twice = sorted(file.name for same in by_name.values() if len(same) > 1 for file in same)
    if twice:
        raise UserError(f"{source}: the same file in several compressions ({', '.join(twice)}). Keep one of them.")


def _check_one_split(source: str | Path, files: list[Path]) -> None:
    splits: dict[str, str] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.name.lower())
        splits |= {SPLIT_WORDS[word]: file.name for word in words if word in SPLIT_WORDS}
    if len(splits) > 1:
        named = ", ".join(f"{file} ({split})" for split, file in sorted(splits.items()))
        raise UserError(
            f"{source}: the files seem to be of several splits: {named}. Name those of one split, by a pattern such as "
            f"{source}/*{min(splits)}*."
        )


def _without_compression(path: Path) -> str:
    name = str(path).lower()
    for packed in COMPRESSIONS:
        name = name.removesuffix(packed)
    return name


def _format(path: Path) -> str:
    return Path(_without_compression(path)).suffix


def local_path(source: str | Path) -> Path:
    """The path that `source` would have on disk."""
    return Path(source).expanduser()


def _looks_like_path(source: str) -> bool:
    """Whether a string that names nothing on disk was still meant as a path rather than as ``owner/name``."""
    if source.lower().endswith(SUFFIXES + OTHER_DATA_SUFFIXES + CONFIG_SUFFIXES):
        return True
    if nearest(Path(source).suffix.lower(), SUFFIXES, cutoff=0.8):
        return True  # A misspelt suffix, such as .jsonll.
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) is None
