"""CSV, TSV and Parquet: round trips, and every fault with the place where its row starts."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rowfiles import ROWS, parquet, read_all, table, write

from lit_ift.data.read import parquet as parquet_reader
from lit_ift.data.read import tables
from lit_ift.data.read import text_files as textfiles
from lit_ift.data.read.readers import read_records
from lit_ift.data.read.record import Record
from lit_ift.errors import UserError


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.csv.zst", "rows.tsv", "rows.tsv.zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_table_gives_rows_with_the_lines_they_start_in(tmp_path: Path, name: str, mark: bytes) -> None:
    path = write(tmp_path / name, mark + table(ROWS, "\t" if ".tsv" in name else ","))
    assert list(read_records(path)) == [Record(ROWS[0], f"{path}:2"), Record(ROWS[1], f"{path}:4")]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_delimiter_is_found(tmp_path: Path, name: str, delimiter: str, mark: bytes) -> None:
    rows = [*ROWS, {"prompt": "a, b; c\td", "completion": "e, f, g"}]
    path = write(tmp_path / name, mark + table(rows, delimiter))
    assert [record.data for record in read_records(path)] == rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line", ["sep={}\r\n", "\ufeffsep={}\n", '"SEP={}"\n'])
def test_a_line_may_name_the_delimiter(tmp_path: Path, delimiter: str, line: str) -> None:
    path = write(tmp_path / "rows.csv", line.format(delimiter).encode() + table(ROWS, delimiter))
    assert list(read_records(path)) == [Record(ROWS[0], f"{path}:3"), Record(ROWS[1], f"{path}:5")]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("a;b,c;d\n1;2;3\n", {"a": "1", "b,c": "2", "d": "3"}),
        ("a;b,c\n1,5;2\n3,5;4\n1;2\n", {"a": "1,5", "b,c": "2"}),
        ("text\nHello; you\n", {"text": "Hello; you"}),
        ('"a;b",c\n1,"x;y"\n', {"a;b": "1", "c": "x;y"}),
        ('a;b\n1;"no, yes, no\n2;3"\n', {"a": "1", "b": "no, yes, no\n2;3"}),
    ],
)
def test_other_delimiters_in_texts_do_not_mislead(tmp_path: Path, text: str, row: dict[str, str]) -> None:
    assert next(read_records(write(tmp_path / "rows.csv", text.encode()))).data == row


def test_a_foreign_delimiter_and_the_one_in_use_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", b"prompt|completion\na|b\n")
    with pytest.raises(UserError, match=r"rows\.csv:1: no comma, .*'prompt\|completion'\. .*line sep=\| before it"):
        list(read_records(path))
    path = write(tmp_path / "rows.csv", b"prompt;completion\na;b;c\n")
    with pytest.raises(UserError, match=r"rows\.csv:2: .* 3 fields, but the header has 2\. .*\(semicolons\)"):
        list(read_records(path))


def test_long_fields_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", b"\na,b\n\nx," + b"y" * 300_000 + b"\n\n1,2")
    assert [(len(r.data["b"]), r.origin) for r in read_records(path)] == [(300_000, f"{path}:4"), (1, f"{path}:6")]


@pytest.mark.parametrize(
    ("row", "field", "origin", "problem"),
    [
        (b"1\n", "b", 2, r"the row has 1 fields, but the header has 2\. Put fields with delimiters"),
        (b"1,2,3\n", "", 2, r"the row has 3 fields, but the header has 2\. Put fields with delimiters"),
        (b'"x\ny",\xe9\n', "", 3, r"not UTF-8: byte 0xe9 at byte 4\. Save the file again"),
        (b'"\xe9\nx, ""y""",z\n', "", 2, r"not UTF-8: byte 0xe9 at byte 2\. Save the file again"),
        (b"1,\x00\n", "", 2, r"null byte at byte 3"),
        (b"1," + b"y" * 4_000_000 + b"\n", "b", 2, r"the row has 4,000,001 characters.*Split the row"),
    ],
)
def test_bad_row_is_named_and_can_be_passed_over(
    tmp_path: Path, row: bytes, field: str, origin: int, problem: str
) -> None:
    path = write(tmp_path / "rows.csv", b"a,b\n" + row + b"5,6\n")
    records, errors = read_all(path)
    assert [record.data for record in records] == [{"a": "5", "b": "6"}]
    assert records[0].origin == f"{path}:{2 + row.count(bytes([10]))}"
    assert [(error.origin, error.field, error.reason) for error in errors] == [
        (f"{path}:{origin}", field, "unreadable")
    ]
    with pytest.raises(UserError, match=problem):
        list(read_records(path))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a,,c\n1,2,3\n", r"rows\.csv:1: column 2 of the header has no name.*index=False"),
        (b"a,b,a\n1,2,3\n", r"rows\.csv:1: the header names the column 'a' more than once\. Rename"),
        (b"a,\xe9\n1,2\n", r"rows\.csv:1: not UTF-8: byte 0xe9 at byte 3"),
        (b"a,b\n", r"rows\.csv: there is no row in it"),
        (b'a,b\n1,2\n"he said "hi"",2\n', r"rows\.csv:3: the row that starts here has a quoting error in line 3"),
        (b'a,b\n1,"2\n3,4\n5,"6"\n', r"rows\.csv:2: the row that starts here has a quoting error in line 4"),
        (
            b'a,b\n1,2\n3,"4\n5,6\n',
            r"rows\.csv:3: .*quoting error in line 4 \(unexpected end of data\)\. Write a quote",
        ),
    ],
)
def test_faults_that_hide_the_rest_are_never_passed_over(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        list(read_records(write(tmp_path / "rows.csv", data), on_row_error=lambda error: None))


@pytest.mark.slow
@pytest.mark.parametrize("body", [b'1,"' + b"x\n" * 2**23, b"1," + b"x" * 2**24, b'"\n",' * 2**22])
def test_a_csv_row_without_end_is_given_up_in_little_memory(
    tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tables, textfiles):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 2**17)
    path = write(tmp_path / "rows.csv", b"a,b\n" + body)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"rows\.csv:2: the row that starts here is longer than.*not closed"):
            list(read_records(path))
        assert tracemalloc.get_traced_memory()[1] < 2**22 < path.stat().st_size / 3
    finally:
        tracemalloc.stop()


def test_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", parquet([{**row, "tags": [1, {"x": "y"}][:1]} for row in ROWS]))
    assert list(read_records(path)) == [
        Record({**ROWS[0], "tags": [1]}, f"{path}#0"),
        Record({**ROWS[1], "tags": [1]}, f"{path}#1"),
    ]


def test_parquet_rows_are_numbered_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_reader, "BATCH_ROWS", 4)
    path = write(tmp_path / "rows.parquet", parquet([{"a": i} for i in range(10)]))
    assert [(r.data["a"], r.origin) for r in read_records(path)] == [(i, f"{path}#{i}") for i in range(10)]


def test_long_parquet_rows_come_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_reader, "BATCH_BYTES", 10_000)
    file = io.BytesIO()
    rows = [{"a": f"{i}" * 1000} for i in range(1000, 1100)]
    pq.write_table(pa.Table.from_pylist(rows), file, use_dictionary=False)
    assert parquet_reader._batch_rows(pq.ParquetFile(file).metadata) == 2


def test_bad_parquet_rows_are_named(tmp_path: Path) -> None:
    binary = pa.array([b"a", b"\xff\xfe", b"c", b"d" * 4_000_001, b"e"], pa.binary())
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"ok": range(5), "text": binary.view(pa.string())}), path)
    records, errors = read_all(path)
    assert [(r.data["text"], r.origin) for r in records] == [("a", f"{path}#0"), ("c", f"{path}#2"), ("e", f"{path}#4")]
    assert [(e.origin, e.field, e.reason) for e in errors] == [
        (f"{path}#1", "text", "unreadable"),
        (f"{path}#3", "text", "unreadable"),
    ]


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"rows\.parquet#0: not a readable Parquet file.*write the file again"):
        list(read_records(path))
    whole = parquet([{"a": f"{i * 7919 % 1000003}"} for i in range(5000)])
    path.write_bytes(whole[:200] + bytes(20000) + whole[20200:])
    with pytest.raises(UserError, match=r"rows\.parquet#\d+: not a readable Parquet file"):
        list(read_records(path, on_row_error=lambda error: None))
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"rows\.parquet#0: not a readable Parquet file"):
        list(read_records(path))


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(UserError, match=r"rows\.parquet: there are two columns named 'a'"):
        list(read_records(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["q"] * 100, "completion": ["a" * 1_000_000] * 100},
        {"texts": [["a" * 1_000_000] * 100]},
        {"messages": [[{"role": "user", "content": "a" * 500_000}] * 2] * 100},
        {"nothing": pa.nulls(1_000_000)},
    ],
)
@pytest.mark.parametrize("encoding", ["dictionary", "plain"])
def test_a_small_parquet_file_that_stands_for_much_is_refused(
    tmp_path: Path, columns: dict[str, Any], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfiles, "MIN_EXPANDED_BYTES", 2**20)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=encoding == "dictionary")
    seen = []
    with pytest.raises(UserError, match=r"rows\.parquet: the file has [\d,]+ bytes, but stands for more than"):
        seen.extend(read_records(path, on_row_error=lambda error: None))
    assert sum(len(str(record.data)) for record in seen) < 2**21


def test_texts_that_repeat_are_the_same_rows_with_and_without_a_dictionary(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "é" * (i % 3)}, {"role": None, "content": "x"}]} for i in range(9)
    ]
    for dictionary in (True, False):
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=dictionary)
        assert [record.data for record in read_records(path)] == rows


def test_long_repeated_texts_are_written_out_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_reader, "BATCH_BYTES", 3_000_000)
    path = write(tmp_path / "rows.parquet", parquet([{"i": i, "a": "x" * 1_000_000} for i in range(40)]))
    tracemalloc.start()
    try:
        assert [(record.data["i"], len(record.data["a"])) for record in read_records(path)] == [
            (i, 1_000_000) for i in range(40)
        ]
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
