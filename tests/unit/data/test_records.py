"""Readers: every format gives the same rows, and every kind of damage is named with its place and a remedy."""

import gzip
import json
from pathlib import Path

import pytest

from lit_ift.data.records import Record, read_records, source_kind
from lit_ift.errors import RowError, UserError

ROWS = [{"prompt": "a\u2028b", "completion": "é"}, {"prompt": "c", "completion": "d"}]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "ROWS.JSONL"])
def test_jsonl_gives_rows_with_line_numbers(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, jsonl(ROWS))
    assert list(read_records(path)) == [Record(ROWS[0], f"{path}:1"), Record(ROWS[1], f"{path}:2")]


def test_blank_lines_and_byte_order_mark_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}')
    assert [record.origin for record in read_records(path)] == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
def test_json_list_and_data_object(tmp_path: Path, name: str, wrap) -> None:
    path = write(tmp_path / name, json.dumps(wrap(ROWS)).encode())
    assert list(read_records(path)) == [Record(ROWS[0], f"{path}#0"), Record(ROWS[1], f"{path}#1")]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert list(read_records(path)) == [Record(ROWS[0], f"{path}#0"), Record(ROWS[1], f"{path}#1")]
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"rows\.parquet: not a readable Parquet file.*write the file again"):
        list(read_records(path))


def test_saved_dataset_and_dataset_dict(tmp_path: Path) -> None:
    import datasets

    single = datasets.Dataset.from_list(ROWS)
    single.save_to_disk(tmp_path / "single")
    datasets.DatasetDict(train=single, test=single.select([1])).save_to_disk(tmp_path / "both")
    assert list(read_records(tmp_path / "single"))[1] == Record(ROWS[1], f"{tmp_path}/single#1")
    assert list(read_records(tmp_path / "both", split="test")) == [Record(ROWS[1], f"{tmp_path}/both/test#0")]
    with pytest.raises(UserError, match=r"no split was named. Its splits are test, train"):
        list(read_records(tmp_path / "both"))
    with pytest.raises(UserError, match=r"there is no split 'val'. Its splits are test, train"):
        list(read_records(tmp_path / "both", split="val"))
    with pytest.raises(UserError, match=r"single data set. Remove split"):
        list(read_records(tmp_path / "single", split="train"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1', r"not valid JSON: .* at column \d+\. Mend the line"),
        (b'{"a": "\xff"}', r"not UTF-8: byte 0xff at byte 8\. Save the file again as UTF-8"),
        (b'{"a": "\x00"}', r"null byte at byte 8\. The file is damaged or not UTF-8"),
        (b'["a", 1]', r"the row is a list, not an object\. Write rows as"),
    ],
)
def test_bad_line_is_named_and_can_be_passed_over(tmp_path: Path, line: bytes, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(RowError, match=rf"rows\.jsonl:2: {problem}") as caught:
        list(read_records(path))
    assert caught.value.origin == f"{path}:2"
    errors: list[RowError] = []
    assert [record.data["a"] for record in read_records(path, on_row_error=errors.append)] == [1, 3]
    assert [error.origin for error in errors] == [f"{path}:2"]


def test_truncated_archive_is_never_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    lines = jsonl([{"a": f"{i * 7919 % 1000003}"} for i in range(5000)])
    path.write_bytes(gzip.compress(lines)[:-2000])
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz:\d{3,}: the file is damaged or cut off here.*download"):
        list(read_records(path, on_row_error=lambda error: None))
    path.write_bytes(b"plain text")
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz:1: the file is damaged"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"rows": []}', r"keys \['rows'\]\. It must be a list of rows"),
        ("3", "expected a list of rows, found a int"),
        ('[{"a": 1},\n oops]', r"rows\.json:2: not valid JSON.*column 2"),
        ('{"a": 1}\n{"a": 2}', r"rows\.json:2: not valid JSON.*name it \.jsonl"),
        ('[{"a": 1}, 5]', r"rows\.json#1: the row is a int, not an object"),
    ],
)
def test_bad_json_files(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        list(read_records(write(tmp_path / "rows.json", text.encode())))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows2.json"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"[]" if name == "rows2.json" else b"\n" if name == "rows.jsonl" else b"")
    with pytest.raises(UserError, match=rf"{name}: there is no row in it"):
        list(read_records(path))


def test_unknown_suffix_and_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.csv: cannot tell the format.*\.jsonl"):
        source_kind(write(tmp_path / "rows.csv", b"a,b\n"))
    with pytest.raises(UserError, match=r"not written by datasets\.save_to_disk"):
        source_kind(tmp_path)


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows", "/no/such/thing", "a/b/c", "~/rows", "data/rows.csv"])
def test_missing_path_does_not_go_to_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("went to the hub"))
    with pytest.raises(UserError, match=r"no such file or folder.*Check the path"):
        list(read_records(name))


def test_hub_gets_split_and_revision_and_a_local_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def fake(name: str, split: str | None, revision: str | None):
        asked.append((name, split, revision))
        rows = datasets.Dataset.from_list(ROWS)
        return rows if split else datasets.DatasetDict(train=rows)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.chdir(tmp_path)
    assert [r.origin for r in read_records("me/set", split="train", revision="v1")] == [
        "me/set/train#0",
        "me/set/train#1",
    ]
    assert next(iter(read_records("me/set"))).origin == "me/set/train#0"
    assert asked == [("me/set", "train", "v1"), ("me/set", None, None)]
    datasets.Dataset.from_list(ROWS).save_to_disk("me/set")
    assert next(iter(read_records("me/set"))).origin == "me/set#0"
    assert len(asked) == 2


def test_hub_failure_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"me/set: no such file here.*ConnectionError: offline.*Check the name"):
        list(read_records("me/set"))


def test_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl(ROWS))
    with pytest.raises(UserError, match=r"a file has no splits"):
        list(read_records(path, split="train"))
    with pytest.raises(UserError, match=r"this is local data. Remove revision"):
        list(read_records(path, revision="main"))
