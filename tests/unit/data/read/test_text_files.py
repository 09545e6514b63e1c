"""Opening and splitting files: compression, damage, encodings and lines of any length."""

import hashlib
import tracemalloc
from pathlib import Path

import pytest
from rowfiles import compress, jsonl, read_all, write

from lit_ift.data.read import text_files as textfiles
from lit_ift.data.read.readers import read_records
from lit_ift.errors import UserError


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_half_written_archive_names_the_last_good_line_and_is_never_passed_over(tmp_path: Path, ending: str) -> None:
    name = f"rows.jsonl.{ending}"
    rows = [{"a": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(5000)]
    path = tmp_path / name
    path.write_bytes(compress(name, jsonl(rows))[:-2000])
    good = []
    records = read_records(path, on_row_error=lambda error: pytest.fail(str(error)))
    with pytest.raises(UserError, match=r"rows\.jsonl\.\w+:\d+: the file is damaged or cut off here") as caught:
        good.extend(record.data for record in records)
    assert 100 < len(good) < 5000
    assert good == rows[: len(good)]
    assert f":{len(good) + 1}: " in str(caught.value)
    assert f"line {len(good)} is the last whole one" in str(caught.value)


def test_several_frames_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    for ending in ("gz", "zst"):
        path = tmp_path / f"rows.jsonl.{ending}"
        path.write_bytes(compress(path.name, b'{"a": 1}\n{"a"') + compress(path.name, b": 2}\n"))
        assert [record.data["a"] for record in read_records(path)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("rows.jsonl.gz", b"plain text", r"1: the file is damaged.*nothing of it can be read.*download"),
        ("rows.jsonl.zst", b"plain text", r"1: the file is damaged.*nothing of it can be read.*download"),
        ("rows.jsonl", compress("x.gz", b"{}\n"), r"1: the file is compressed with gzip\. End its name in \.gz"),
        ("rows.csv", compress("x.zst", b"a\nb\n"), r"1: the file is compressed with zstd\. End its name in \.zst"),
        ("rows.jsonl", b"PAR1\x15\x04", r"1: the file is a Parquet file\. End its name in \.parquet"),
        ("rows.json", b"PK\x03\x04", r"1: the file is a zip archive\. Unpack it"),
        ("rows.csv", b"version https://git-lfs.github.com/spec/v1\noid", r"is a Git LFS pointer.*git lfs pull"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid", r"is a Git LFS pointer.*git lfs pull"),
        ("rows.jsonl", '{"a": "b"}\n'.encode("utf-16"), r"1: the file is UTF-16 or UTF-32\. Save it again as UTF-8"),
        ("rows.json", b"\xfe\xff" + '[{"a": 1}]'.encode("utf-16-be"), r"1: the file is UTF-16\. Save it"),
        ("rows.csv", "a,b\n1,2\n".encode("utf-16-le"), r"1: the file is UTF-16 without a byte order mark"),
        ("rows.jsonl", '{"a": "日本"}\n'.encode("utf-16-be"), r"1: the file is UTF-16 without a byte order mark"),
    ],
)
def test_a_file_that_is_something_else_is_named_as_such(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=problem) as caught:
        list(read_records(path, on_row_error=lambda error: None))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.csv", "rows.parquet"])
def test_a_file_without_read_permission(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / name, b"{}\n")
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("gzip.GzipFile", refuse)
    monkeypatch.setattr("pyarrow.input_stream", refuse)
    with pytest.raises(UserError, match=rf"{name}: cannot be opened \(Permission denied\)\. Check its permissions"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_a_line_that_is_too_long_is_never_held(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "MAX_LINE_BYTES", 2**20)
    path = write(tmp_path / name, b'{"a": 1}\n{"a": "' + b"x" * 30 * 2**20 + b'"}\n{"a": 3}\n')
    tracemalloc.start()
    try:
        records, errors = read_all(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(record.data, record.origin) for record in records] == [({"a": 1}, f"{path}:1"), ({"a": 3}, f"{path}:3")]
    assert [(error.origin, error.reason) for error in errors] == [(f"{path}:2", "unreadable")]
    assert "the line is longer than 1 MiB. Split the row" in str(errors[0])
    assert peak < 6 * 2**20


def test_a_line_at_the_limit_is_read_and_one_without_line_break_ends_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfiles, "MAX_LINE_BYTES", 10)
    path = write(tmp_path / "rows.jsonl", b'{"a": 12}\n{"b": 123}\n{"c": 12345}')
    records, errors = read_all(path)
    assert [record.data for record in records] == [{"a": 12}]
    assert [error.origin for error in errors] == [f"{path}:2", f"{path}:3"]


@pytest.mark.slow
def test_long_files_are_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        for _ in range(20_000):
            file.write(b'{"prompt": "' + b"p" * 1000 + b'"}\n')
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 < path.stat().st_size / 19


def test_did_you_mean_names_what_exists_nearby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "alpaca.jsonl", b"{}\n")
    (tmp_path / "folder").mkdir()
    assert textfiles.did_you_mean(Path("alpacca.jsonl")) == "Did you mean alpaca.jsonl?"
    assert textfiles.did_you_mean(Path("foldr/any/thing.jsonl")) == "Did you mean folder?"
    assert textfiles.did_you_mean(tmp_path / "folder" / "x") == ""


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.json.zst", "a.csv.gz", "a.csv.zst"])
def test_a_small_archive_that_stands_for_much_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfiles, "MIN_EXPANDED_BYTES", 2**16)
    monkeypatch.setattr(textfiles, "MAX_EXPANSION", 10)
    row = b"x,y\n" if ".csv" in name else b'{"a": 1}\n'
    path = write(tmp_path / name, row * 100_000)
    with pytest.raises(UserError, match=r"the file has [\d,]+ bytes, but stands for more than 65,536"):
        list(read_records(path))
