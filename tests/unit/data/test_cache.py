"""An entry is whole or not there, and its key changes with everything that the ids depend on."""

import os
import re
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import grimp
import pytest
from tiny import tiny_tokenizer

from lit_ift.chat.example import Example
from lit_ift.data.cache import (
    PACKAGE,
    DamagedEntryError,
    RowCache,
    code_version,
    default_cache_dir,
    row_code,
    tokenizer_digest,
)
from lit_ift.data.read.sources import sha256_of
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError

KEY = {"rows": "abc", "max_length": 8}


def rows(count: int = 3) -> Iterator[EncodedRow]:
    for i in range(count):
        yield EncodedRow("instruction", f"r#{i}", {"answer": Example([i, i + 1], [-100, i + 1], f"r#{i}")})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_come_back_under_their_key_and_no_other(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "cache")
    assert cache.load("train", KEY) is None
    cache.add("train", KEY, rows(), lambda: {"rows_kept": 3})
    found = cache.load("train", KEY)
    assert found is not None
    assert list(found[0]) == list(rows())
    assert found[1] == {"rows_kept": 3}
    assert cache.load("train", {**KEY, "max_length": 9}) is None
    assert cache.load("val", KEY) is None
    assert names(cache.entry("train", KEY)) == ["key.json", "report.json", "rows.arrow", "sums.json"]


def test_nothing_is_left_when_the_rows_break_off(tmp_path: Path) -> None:
    def broken() -> Iterator[EncodedRow]:
        yield from rows(1)
        raise UserError("line 2 is bad")

    cache = RowCache(tmp_path)
    with pytest.raises(UserError, match="line 2 is bad"):
        cache.add("train", KEY, broken(), dict)
    assert names(tmp_path) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    cache = RowCache(tmp_path)

    def while_another_writes() -> Iterator[EncodedRow]:
        cache.add("train", KEY, rows(), lambda: {"by": "other"})
        yield from rows()

    cache.add("train", KEY, while_another_writes(), lambda: {"by": "me"})
    found = cache.load("train", KEY)
    assert found is not None
    assert found[1] == {"by": "other"}
    assert names(tmp_path) == [cache.entry("train", KEY).name]


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    for name, age in ((".val-1.tmp-old", 2 * 3600), (".val-1.tmp-new", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    cache = RowCache(tmp_path)
    cache.add("train", KEY, rows(), dict)
    assert names(tmp_path) == [".val-1.tmp-new", cache.entry("train", KEY).name]


def test_a_full_disk_names_the_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_ift.data.cache.write_rows", full)
    with pytest.raises(UserError, match=r"No space left on device.*data.cache_dir.*data.cache=false"):
        RowCache(tmp_path).add("train", KEY, rows(), dict)
    assert names(tmp_path) == []


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=f"Cannot write tokenized data to {tmp_path}/file"):
        RowCache(tmp_path / "file").add("train", KEY, rows(), dict)


FILES = ("rows.arrow", "report.json", "key.json", "sums.json")


def entry_of(folder: Path) -> Path:
    """An entry that another process has written."""
    RowCache(folder).add("train", KEY, rows(), lambda: {"rows_kept": 3})
    return RowCache(folder).entry("train", KEY)


def is_found(folder: Path) -> bool:
    try:
        RowCache(folder).load("train", KEY)
    except DamagedEntryError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_found(tmp_path: Path, file: str) -> None:
    path = entry_of(tmp_path) / file
    data = path.read_bytes()
    assert not is_found(tmp_path)
    places = range(0, len(data), 1 + len(data) // 700)
    found = 0
    for i in places:
        path.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        found += is_found(tmp_path)
    assert found == len(places)
    path.write_bytes(data)
    assert not is_found(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_files_that_are_cut_longer_or_gone_are_found(tmp_path: Path, file: str) -> None:
    path = entry_of(tmp_path) / file
    data = path.read_bytes()
    for changed in (b"", data[:-1], data[: len(data) // 2], data + b"x", data + data):
        path.write_bytes(changed)
        assert is_found(tmp_path)
    path.unlink()
    assert is_found(tmp_path)


def test_an_entry_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_of(tmp_path)
    hashed: list[str] = []
    monkeypatch.setattr("lit_ift.data.cache.sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    cache = RowCache(tmp_path)
    for _ in range(3):
        assert cache.load("train", KEY) is not None
    assert hashed == ["rows.arrow", "report.json", "key.json"]
    assert RowCache(tmp_path).load("train", KEY, verify=False) is not None
    assert len(hashed) == 3


def test_a_damaged_entry_says_what_to_delete_and_can_be_removed(tmp_path: Path) -> None:
    (entry_of(tmp_path) / "rows.arrow").write_bytes(b"ARROW1 half")
    cache = RowCache(tmp_path)
    for verify in (True, False):
        with pytest.raises(DamagedEntryError, match=r"is damaged .* Delete that folder"):
            cache.load("train", KEY, verify=verify)
    cache.remove("train", KEY)
    cache.remove("train", KEY)
    assert names(tmp_path) == []


def test_the_tokenizer_digest_hears_of_every_change_that_matters() -> None:
    tokenizer = tiny_tokenizer()
    digest = tokenizer_digest(tokenizer)
    assert tokenizer_digest(tiny_tokenizer()) == digest
    tokenizer(["a"], truncation=True, max_length=1, padding=True)
    assert tokenizer_digest(tokenizer) == digest
    tokenizer.chat_template += " "
    template = tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["<new>"])
    vocabulary = tokenizer_digest(tokenizer)
    tokenizer.eos_token = "<unk>"
    assert len({digest, template, vocabulary, tokenizer_digest(tokenizer)}) == 4


def test_the_day_is_in_the_digest_only_where_rows_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(template: str) -> set[str]:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template + tokenizer.chat_template
        found = set()
        for day in (date(2026, 1, 1), date(2026, 1, 2)):
            monkeypatch.setattr("lit_ift.data.cache.date", type("Day", (), {"today": staticmethod(lambda d=day: d)}))
            found.add(tokenizer_digest(tokenizer))
        return found

    assert len(digests("{{ strftime_now('%d %b %Y') }}")) == 1
    assert len(digests("{% set form = '%d %b %Y' %}{{ strftime_now(form) }}")) == 2


def test_the_code_version_is_the_same_within_a_version() -> None:
    assert code_version() == code_version()
    assert len(code_version()) == 64


def test_the_code_version_covers_all_that_makes_rows() -> None:
    makers = [f"lit_ift.data.{name}" for name in ("pipeline", "modules.instruction", "modules.tasks")]
    graph = grimp.build_graph("lit_ift", cache_dir=None)
    imported = set(makers).union(*(graph.find_upstream_modules(module) for module in makers))
    # These count, show and batch rows that are already made.
    others = re.compile(
        r"lit_ift\.data\.(batch|report|cache|requirements)|lit_ift\.data\.modules\."
        r"(batches|conversation|loaders|split_rows|tokenizer_choice|verifiable)"
    )
    wanted = {name for name in imported if name.startswith(("lit_ift.chat.", "lit_ift.data."))}
    wanted = {name for name in wanted if not others.match(name) and graph.find_modules_directly_imported_by(name)}
    covered = {".".join(("lit_ift", *f.relative_to(PACKAGE).with_suffix("").parts)) for f in row_code()}
    assert wanted <= covered
    assert not {name for name in covered if others.match(name)}


def test_each_file_that_makes_rows_changes_the_code_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = row_code()
    monkeypatch.setattr("lit_ift.data.cache.PACKAGE", tmp_path)
    for file in files:
        copy = tmp_path / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (tmp_path / "data" / "batch").mkdir()

    def version() -> str:
        code_version.cache_clear()
        return code_version()

    versions = {version()}
    for count, file in enumerate(row_code(), 2):
        file.write_bytes(file.read_bytes() + b"#")
        versions.add(version())
        assert len(versions) == count, file
    (tmp_path / "data" / "batch" / "sampler.py").write_text("# Which rows come together.")
    assert version() in versions
    code_version.cache_clear()


def test_the_folder_can_be_chosen_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_IFT_DATA_CACHE", raising=False)
    monkeypatch.delenv("LIT_IFT_CHECKPOINTS", raising=False)
    assert default_cache_dir() == Path("checkpoints/data")
    monkeypatch.setenv("LIT_IFT_CHECKPOINTS", "/a")
    assert default_cache_dir() == Path("/a/data")
    monkeypatch.setenv("LIT_IFT_DATA_CACHE", "/b")
    assert default_cache_dir() == Path("/b")
