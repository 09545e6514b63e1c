"""Rows from files, dataset folders and the Hugging Face hub, each with the place it came from."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

from lit_ift.errors import RowError, UserError

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""File names that can be read, by how they end."""

OTHER_DATA_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".gz", ".zst", ".zip", ".arrow", ".ndjson", ".yaml", ".yml")
"""Endings that mark a string as a file name although the file cannot be read."""

SourceKind = Literal["file", "dataset", "dataset_dict", "hub"]


@dataclass(frozen=True)
class Record:
    """One row as it was read.

    Args:
        data: column name to value.
        origin: ``file:line`` (from 1) for JSON Lines, ``source#index`` (from 0) for everything else.
    """

    data: dict[str, Any]
    origin: str


OnRowError = Callable[[RowError], None]
"""Told about a row that cannot be read, so that reading can go on with the next one."""


def raise_row_error(error: RowError) -> None:
    """The default `OnRowError`: the first bad row ends the reading."""
    raise error


def read_records(
    source: str | Path,
    *,
    split: str | None = None,
    revision: str | None = None,
    on_row_error: OnRowError = raise_row_error,
) -> Iterator[Record]:
    """Yield the rows of `source` in their order.

    Args:
        source: a file ending in one of `SUFFIXES`, a folder written by ``datasets.save_to_disk``, or a hub id.
            Whatever exists on disk wins over a hub id of the same name.
        split: which split of a hub data set or of a saved ``DatasetDict``; a file has none.
        revision: commit, tag or branch of a hub data set.
        on_row_error: receives each row that cannot be read; the default raises it. Damage that hides the rest
            of the file (a truncated archive, say) is always raised.

    Raises:
        RowError: a row is not valid JSON, not UTF-8, holds a null byte, or is not an object.
        UserError: the source is missing, empty, damaged or of an unknown kind, or the options do not fit it.
    """
    kind = source_kind(source)
    if revision is not None and kind != "hub":
        raise UserError(f"{source}: revision={revision!r} was given, but this is local data. Remove revision.")
    if kind == "hub":
        rows = _read_hub(str(source), split, revision)
    elif kind == "file":
        if split is not None:
            raise UserError(f"{source}: split={split!r} was given, but a file has no splits. Remove split.")
        rows = _read_file(_local(source), on_row_error)
    else:
        rows = _read_saved_dataset(_local(source), kind, split)

    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{source}: there is no row in it. Check that the export finished, or use another source.")


def source_kind(source: str | Path) -> SourceKind:
    """What `source` is: a file, a folder with one data set, a folder with several splits, or a hub id.

    Raises:
        UserError: a path that does not exist, a file of unknown suffix, a folder that ``datasets`` did not write,
            or a string that can be neither a path nor a hub id.
    """
    path = _local(source)
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            return "dataset_dict"
        if (path / "dataset_info.json").exists():
            return "dataset"
        raise UserError(
            f"{source}: this folder was not written by datasets.save_to_disk (no dataset_info.json or "
            f"dataset_dict.json in it). Name the files themselves; they may end in {_listed(SUFFIXES)}."
        )
    if path.exists():
        if path.name.lower().endswith(SUFFIXES):
            return "file"
        raise UserError(f"{source}: cannot tell the format from the name. It must end in {_listed(SUFFIXES)}.")
    if _looks_like_path(str(source)):
        raise UserError(f"{source}: no such file or folder (looked in {Path.cwd()}). Check the path.")
    return "hub"


def _local(source: str | Path) -> Path:
    return Path(source).expanduser()


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _looks_like_path(source: str) -> bool:
    """Whether a string that names nothing on disk was still meant as a path rather than as ``owner/name``."""
    if source.lower().endswith(SUFFIXES + OTHER_DATA_SUFFIXES):
        return True
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) is None


def _read_file(path: Path, on_row_error: OnRowError) -> Iterator[Record]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".jsonl"):
        return _read_jsonl(path, on_row_error)
    if name.endswith(".json"):
        return _read_json(path, on_row_error)
    return _read_parquet(path)


def _open(path: Path) -> BinaryIO:
    try:
        # Both readers give bytes: decoding line by line is what lets an error name its line.
        return cast(BinaryIO, gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}). Check its permissions.") from error


def _read_jsonl(path: Path, on_row_error: OnRowError) -> Iterator[Record]:
    number = 0
    with _open(path) as file:
        while True:
            number += 1
            origin = f"{path}:{number}"
            try:
                line = file.readline()
            except (EOFError, OSError, zlib.error) as error:
                raise _damaged(origin, error) from error
            if not line:
                return
            if not line.strip():
                continue
            try:
                row = _parse_object(line, origin)
            except RowError as error:
                on_row_error(error)
                continue
            yield Record(row, origin)


def _damaged(origin: str, error: Exception) -> UserError:
    return UserError(
        f"{origin}: the file is damaged or cut off here ({error}). Everything after it is lost: copy or download "
        "the file again."
    )


def _parse_object(line: bytes, origin: str) -> dict[str, Any]:
    """One JSON Lines row."""
    text = _decode(line, origin)
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(
            origin,
            "",
            f"not valid JSON: {error.msg} at column {error.colno}",
            "Mend the line; each line must be one whole JSON object",
        ) from error
    return _as_object(row, origin)


def _decode(data: bytes, origin: str) -> str:
    if b"\0" in data:
        raise RowError(
            origin,
            "",
            f"null byte at byte {data.index(0) + 1}",
            "The file is damaged or not UTF-8 (UTF-16, perhaps): save it again as UTF-8",
        )
    try:
        # "utf-8-sig" forgives the byte order mark that some editors put before the first line.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(
            origin,
            "",
            f"not UTF-8: byte 0x{data[error.start]:02x} at byte {error.start + 1}",
            "Save the file again as UTF-8",
        ) from error


def _as_object(row: Any, origin: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise RowError(
        origin, "", f"the row is a {type(row).__name__}, not an object", 'Write rows as {"column": value, ...}'
    )


def _read_json(path: Path, on_row_error: OnRowError) -> Iterator[Record]:
    with _open(path) as file:
        try:
            data = file.read()
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(str(path), error) from error
    if not data.strip():
        return
    text = _decode(data, str(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "If it holds one object a line, name it .jsonl" if "Extra data" in error.msg else "Mend the file"
        raise RowError(
            f"{path}:{error.lineno}", "", f"not valid JSON: {error.msg} at column {error.colno}", hint
        ) from error
    if isinstance(rows, dict):
        if "data" not in rows:
            raise UserError(
                f"{path}: the top level is an object with the keys {sorted(rows)}. It must be a list of rows, "
                'or {"data": [rows]}.'
            )
        rows = rows["data"]
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: expected a list of rows, found a {type(rows).__name__}. Write [row, row, ...] or "
            '{"data": [rows]}.'
        )
    for index, row in enumerate(rows):
        origin = f"{path}#{index}"
        try:
            checked = _as_object(row, origin)
        except RowError as error:
            on_row_error(error)
            continue
        yield Record(checked, origin)


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield Record(row, f"{path}#{index}")
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}). Copy or write the file again.") from error


def _read_saved_dataset(path: Path, kind: SourceKind, split: str | None) -> Iterator[Record]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded ({error}). Write it again with datasets.save_to_disk.") from error
    if kind == "dataset":
        if split is not None:
            raise UserError(f"{path}: split={split!r} was given, but this is a single data set. Remove split.")
        return _rows(loaded, str(path))
    name = _pick_split(list(loaded), str(path), split)
    return _rows(loaded[name], f"{path}/{name}")


def _read_hub(source: str, split: str | None, revision: str | None) -> Iterator[Record]:
    import datasets

    try:
        loaded = datasets.load_dataset(source, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{source}: no such file here, and loading it from the Hugging Face hub failed "
            f"({type(error).__name__}: {error}). Check the name, the split, the revision and the network."
        ) from error
    if split is None:
        split = _pick_split(list(loaded), source, None)
        loaded = loaded[split]
    return _rows(loaded, f"{source}/{split}")


def _pick_split(names: list[str], source: str, split: str | None) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split in names:
        return split
    asked = "no split was named" if split is None else f"there is no split {split!r}"
    raise UserError(f"{source}: {asked}. Its splits are {', '.join(sorted(names))}: set one of them.")


def _rows(dataset: Any, source: str) -> Iterator[Record]:
    return (Record(dict(row), f"{source}#{index}") for index, row in enumerate(dataset))
