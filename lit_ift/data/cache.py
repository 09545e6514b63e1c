"""Encoded rows on disk, under a key that names everything they depend on.

Layout of the cache folder::

    <name>-<digest>/rows.arrow    the rows, read through a memory map
    <name>-<digest>/report.json   what became of the rows
    <name>-<digest>/key.json      what the digest was made of, to be read by people
    <name>-<digest>/sums.json     SHA-256 of the other files

An entry is whole or not there, also if several processes write it.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lit_ift.chat.templates import asks_for_today
from lit_ift.data.read.sources import sha256_of
from lit_ift.data.rows import EncodedRow
from lit_ift.data.store import StoredRows, write_rows
from lit_ift.errors import UserError, told_as
from lit_ift.staging import remove_abandoned, scratch_folder, staged_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS, REPORT, KEY, SUMS = "rows.arrow", "report.json", "key.json", "sums.json"

PACKAGES: Final = ("transformers", "tokenizers", "jinja2")
"""Packages that take part in turning a row into token ids."""


def default_cache_dir() -> Path:
    """``$LIT_IFT_DATA_CACHE``, else ``$LIT_IFT_CHECKPOINTS/data``, else ``./checkpoints/data``."""
    if chosen := os.environ.get("LIT_IFT_DATA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("LIT_IFT_CHECKPOINTS") or "checkpoints").expanduser() / "data"


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of all that decides which ids a conversation becomes: vocabulary, rules, template, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [
        # Truncation and padding may have been left switched on by whoever used the tokenizer last.
        _without_state(backend.to_str()) if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True),
        str(tokenizer.chat_template),
        repr(sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())),
    ]
    if asks_for_today(str(tokenizer.chat_template)):
        parts.append(date.today().isoformat())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@lru_cache(maxsize=2)  # A vocabulary takes half a second, and each split asks.
def _without_state(tokenizer_json: str) -> str:
    rules = json.loads(tokenizer_json)
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return json.dumps(rules, sort_keys=True)


PACKAGE: Final = Path(__file__).parents[1]

ROW_CODE: Final = (
    "chat",
    "data/read",
    "data/parse",
    "data/encode_sides.py",
    "data/modules/instruction.py",
    "data/modules/tasks.py",
    "data/pipeline.py",
    "data/rows.py",
    "data/store.py",
    "data/train_on.py",
    "data/truncation.py",
)
"""Folders and files below `PACKAGE` whose code makes rows, or says which rows a split has."""


def row_code() -> list[Path]:
    """The files of `ROW_CODE`, templates included, in the order of their paths below `PACKAGE`."""
    places = [PACKAGE / place for place in ROW_CODE]
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place])]
    return sorted(file for file in files if file.suffix in (".py", ".jinja"))


@cache
def code_version() -> str:
    """A hash of the code that makes rows and of the versions of `PACKAGES`: another encoder makes other ids."""
    digest = hashlib.sha256()
    for file in row_code():
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    for package in PACKAGES:
        digest.update(f"{package}={importlib.metadata.version(package)}".encode())
    return digest.hexdigest()


class RowCache:
    """A folder of encoded rows.

    Args:
        folder: made when the first entry is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sound: set[Path] = set()

    def entry(self, name: str, key: Mapping[str, Any]) -> Path:
        """The folder of the rows that `key` describes; `name` comes first in its name."""
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def load(
        self, name: str, key: Mapping[str, Any], *, verify: bool = True
    ) -> tuple[StoredRows, dict[str, Any]] | None:
        """The rows and their report, or None if they are not there.

        Args:
            name: of the entry.
            key: what the rows depend on.
            verify: read all of an entry that this object has neither written nor verified, and compare it with its
                checksums. Arrow itself takes most flipped bits for rows, and dies of others.

        Raises:
            DamagedEntryError: the entry is not what was written.
        """
        entry = self.entry(name, key)
        if not entry.exists():
            return None
        try:
            if verify and entry not in self._sound:
                _compare_sums(entry)
                self._sound.add(entry)
            report = json.loads((entry / REPORT).read_text(encoding="utf-8"))
            return StoredRows(entry / ROWS), report
        except (OSError, ValueError) as error:  # Arrow's errors are both.
            raise DamagedEntryError(entry, error) from error

    def remove(self, name: str, key: Mapping[str, Any]) -> None:
        """Take away a damaged entry, which other processes may still have open.

        Raises:
            UserError: the folder cannot be written to.
        """
        entry = self.entry(name, key)
        self._sound.discard(entry)
        failed = told_as(OSError, lambda error: _cannot_write(self.folder, error))
        with failed, scratch_folder(entry) as grave, suppress(FileNotFoundError):  # Another process was faster.
            entry.rename(grave / "removed")

    def add(
        self,
        name: str,
        key: Mapping[str, Any],
        rows: Iterable[EncodedRow],
        report: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Write rows as they come, and then their report, as plain values.

        Where another process has made the same entry meanwhile, that one stays.

        Raises:
            UserError: the folder cannot be written to, or the disk is full.
        """
        entry = self.entry(name, key)
        try:
            remove_abandoned(self.folder)
            with staged_folder(entry) as draft:
                write_rows(rows, draft / ROWS)
                (draft / REPORT).write_text(json.dumps(report()), encoding="utf-8")
                (draft / KEY).write_text(json.dumps(key, indent=2, sort_keys=True), encoding="utf-8")
                (draft / SUMS).write_text(json.dumps(_sums(draft)), encoding="utf-8")
            self._sound.add(entry)
        except OSError as error:
            if not entry.exists():
                raise _cannot_write(self.folder, error) from error


def _sums(entry: Path) -> dict[str, str]:
    return {name: sha256_of(entry / name) for name in (ROWS, REPORT, KEY)}


def _compare_sums(entry: Path) -> None:
    written = json.loads((entry / SUMS).read_text(encoding="utf-8"))
    now = _sums(entry)
    if written != now:
        differing = [
            name for name, digest in now.items() if not isinstance(written, dict) or written.get(name) != digest
        ]
        raise ValueError(f"the checksum of {differing[0] if differing else SUMS} is another one")


class DamagedEntryError(UserError):
    """An entry of the cache is not what was written."""

    def __init__(self, entry: Path, error: Exception) -> None:
        super().__init__(f"The cached data in {entry} is damaged ({error}). Delete that folder.")


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write tokenized data to {folder} ({error.strerror or error}). Free space, choose another folder with "
        "data.cache_dir, or do without with data.cache=false."
    )
