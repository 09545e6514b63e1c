"""Encoded rows on disk, under a key that names everything they depend on.

Layout of the cache folder::

    <name>-<digest>/rows.arrow    the rows, read through a memory map
    <name>-<digest>/report.json   what became of the rows
    <name>-<digest>/key.json      what the digest was made of, to be read by people

An entry appears by renaming a finished folder, so that it is whole or not there, also if several processes write it.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lit_ift.chat.templates import asks_for_today
from lit_ift.data.rows import EncodedRow
from lit_ift.data.store import StoredRows, write_rows
from lit_ift.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS, REPORT, KEY = "rows.arrow", "report.json", "key.json"

DRAFT_AGE_S: Final = 24 * 3600
"""Age from which on an unfinished entry has no writer any more [s]."""

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
    "data/rows.py",
    "data/pipeline.py",
    "data/store.py",
    "data/truncation.py",
)
"""Folders and files below `PACKAGE` whose code can change an encoded row."""


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

    def entry(self, name: str, key: Mapping[str, Any]) -> Path:
        """The folder of the rows that `key` describes; `name` comes first in its name."""
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def load(self, name: str, key: Mapping[str, Any]) -> tuple[StoredRows, dict[str, Any]] | None:
        """The rows and their report, or None if they are not there.

        Raises:
            UserError: the entry is damaged.
        """
        entry = self.entry(name, key)
        if not entry.exists():
            return None
        try:
            report = json.loads((entry / REPORT).read_text(encoding="utf-8"))
            return StoredRows(entry / ROWS), report
        except (OSError, ValueError) as error:  # Arrow's errors are both.
            raise damaged(entry, error) from error

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
        draft: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_old_drafts()
            draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
            write_rows(rows, draft / ROWS)
            (draft / REPORT).write_text(json.dumps(report()), encoding="utf-8")
            (draft / KEY).write_text(json.dumps(key, indent=2, sort_keys=True), encoding="utf-8")
            draft.chmod(0o755)  # mkdtemp's folders are for their owner alone.
            draft.rename(entry)
        except OSError as error:
            if not entry.exists():
                raise _cannot_write(self.folder, error) from error
        finally:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)  # Gone already if it was renamed.

    def _remove_old_drafts(self) -> None:
        """Delete what writers left behind that were killed more than a day ago."""
        for draft in self.folder.glob(".*-*"):
            # A writer at work keeps changing its file.
            changed = max(path.stat().st_mtime for path in (draft, *draft.glob("*")))
            if time.time() - changed > DRAFT_AGE_S:
                shutil.rmtree(draft, ignore_errors=True)


def damaged(entry: Path, error: Exception) -> UserError:
    """The error of an entry that cannot be read as what was written."""
    return UserError(f"The cached data in {entry} is damaged ({error}). Delete that folder.")


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write tokenized data to {folder} ({error.strerror or error}). Free space, choose another folder with "
        "data.cache_dir, or do without with data.cache=false."
    )
