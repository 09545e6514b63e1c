"""Rows of data sets of the Hugging Face hub and of folders that ``datasets.save_to_disk`` wrote."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lit_ift.data.read.record import ReadRow, Record, check_values
from lit_ift.data.read.text_files import did_you_mean
from lit_ift.errors import RowError, UserError

HUB_TIMEOUT_S: Final = 10.0

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_COMMIT_IN_URL: Final = re.compile(r"^hf://datasets/[^@]+@([0-9a-f]{40})/")


def read_saved_dataset(path: Path, split: str | None) -> Iterator[ReadRow]:
    """The rows of a folder with one data set, or of one split of a folder with several.

    Raises:
        UserError: the folder cannot be loaded, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded ({error}). Write it again with datasets.save_to_disk.") from error
    if isinstance(loaded, datasets.DatasetDict):
        name = pick_split(list(loaded), str(path), split)
        return _rows(loaded[name], f"{path}/{name}")
    return _rows(loaded, str(path))


def read_hub(
    source: str, *, split: str | None, name: str | None, revision: str | None, streaming: bool
) -> Iterator[ReadRow]:
    """The rows of one split of a hub data set; with `streaming` they are fetched as they are read.

    Raises:
        UserError: it cannot be loaded, or the fetching fails on the way.
    """
    loaded = _load(source, split=split, name=name, revision=revision, streaming=streaming)
    if split is None:
        split = pick_split(list(loaded), source, None)
        loaded = loaded[split]
    configured = f"{source}/{name}" if name else source
    return _rows(loaded, f"{configured}/{split}")


def hub_identity(source: str, *, split: str | None, name: str | None, revision: str | None) -> dict[str, str]:
    """What pins the rows of a hub data set: its commit, or, where the hub does not answer, what the cache tells of it.

    Raises:
        UserError: the hub does not answer, and the data set is not in the local cache.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return {"commit": revision}
    from huggingface_hub import HfApi

    try:
        return {"commit": str(HfApi().dataset_info(source, revision=revision, timeout=HUB_TIMEOUT_S).sha)}
    except Exception:  # The hub client raises errors of several HTTP libraries; loading below tells what is the matter.
        loaded = _load(source, split=split, name=name, revision=revision, streaming=False)
    if split is None:
        loaded = loaded[pick_split(list(loaded), source, None)]
    urls = loaded.info.download_checksums or {}
    commits = {match[1] for url in urls if (match := _COMMIT_IN_URL.match(url))}
    # The commit is also known of a cached data set that came from the files of its repository.
    return {"commit": commits.pop()} if len(commits) == 1 else {"dataset_fingerprint": str(loaded._fingerprint)}


def pick_split(names: list[str], source: str, split: str | None) -> str:
    """`split` if there is such a one, or else the only one there is.

    Raises:
        UserError: it is not among `names`, or is None while there are several.
    """
    if split is None and len(names) == 1:
        return names[0]
    if split in names:
        return split
    asked = "no split was named" if split is None else f"there is no split {split!r}"
    raise UserError(f"{source}: {asked}. Its splits are {', '.join(sorted(names))}: set one of them.")


def _load(source: str, *, split: str | None, name: str | None, revision: str | None, streaming: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source, name=name, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # The hub client raises errors of several HTTP and storage libraries.
        near = did_you_mean(Path(source))
        raise UserError(
            f"{source}: no such file here, and loading it from the Hugging Face hub failed "
            f"({type(error).__name__}: {error}). Check the name, the configuration (name: ...), the split, the "
            f"revision and the network.{' ' + near if near else ''}"
        ) from error


def _rows(dataset: Any, source: str) -> Iterator[ReadRow]:
    index = -1
    rows = iter(dataset)
    while True:
        index += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # As in `_load`: while streaming, this is where the network is used.
            raise UserError(
                f"{source}#{index}: cannot be read ({type(error).__name__}: {error}). Check the network, or load the "
                "data set again."
            ) from error
        record = Record(dict(row), f"{source}#{index}", has_gaps=True)
        try:
            check_values(record.data, record.origin)
            yield record
        except RowError as error:
            yield error
