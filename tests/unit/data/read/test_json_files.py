"""JSON and JSON Lines: the same rows from both, and every row that is not strict JSON is named."""

import json
from pathlib import Path

import pytest
from rowfiles import ROWS, jsonl, read_all, write

from lit_ift.data.read import json_files as jsonrows
from lit_ift.data.read.readers import read_records
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError, UserError


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.ndjson.gz", "ROWS.NDJSON"])
def test_jsonl_gives_rows_with_line_numbers(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, jsonl(ROWS))
    assert list(read_records(path)) == [Record(ROWS[0], f"{path}:1"), Record(ROWS[1], f"{path}:2")]


def test_blank_lines_and_byte_order_mark_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n\t{"a": 2} ')
    assert list(read_records(path)) == [Record({"a": 1}, f"{path}:1"), Record({"a": 2}, f"{path}:4")]


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.json.zst"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": [1], "data": rows, "last": {}}])
def test_json_list_and_data_object(tmp_path: Path, name: str, indent: int | None, wrap) -> None:
    path = write(tmp_path / name, json.dumps(wrap(ROWS), indent=indent).encode("utf-8-sig"))
    assert list(read_records(path)) == [Record(ROWS[0], f"{path}#0"), Record(ROWS[1], f"{path}#1")]


def nested(levels: int) -> bytes:
    return b'{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


# Not valid JSON, or not text: where these stand in a .json file, its rest cannot be told apart.
BROKEN = [
    (b'{"a": 1', "", r"not valid JSON: .* at column \d+\. Mend the line"),
    (b'{"a": 1} {"a": 2}', "", r"not valid JSON: Extra data at column 10\. Mend the line"),
    (b"{a: 1}", "", r"not valid JSON: Expecting property name.* at column 2\. Mend the line"),
    (b"{'a': 1}", "", r"not valid JSON: a text in single quotes at column 2\. Write double quotes"),
    (
        b'{"a": \xe2\x80\x9cx\xe2\x80\x9d}',
        "",
        r"not valid JSON: the typographic quote . at column 7\. Write plain",
    ),
    (b'{"a": 1,}', "", r"not valid JSON: a comma before the closing '}' at column \d\. Remove the comma"),
    (b'{"a": [1, 2 , ] }', "", r"not valid JSON: a comma before the closing '\]' at column \d+\. Remove the comma"),
    (b'{"a": 1},', "", r"not valid JSON: a comma behind the row at column 9\. Remove the comma, or put all rows"),
    (b'{"a": True}', "", r"not valid JSON: True is not JSON at column 7\. Write null, true or false"),
    (b'{"a": 1} // one', "", r"not valid JSON: a comment at column 10\. Remove it"),
    (b'{"a": "\xff"}', "", r"not UTF-8: byte 0xff at byte 8\. Save the file again as UTF-8.*Latin-1"),
    ('{"a": "né"}'.encode("latin-1"), "", r"not UTF-8: byte 0xe9 at byte 9\. Save the file again"),
    (b'{"a": "\x00"}', "", r"null byte at byte 8\. The file is damaged or not text"),
    (nested(100_000), "", r"nested deeper than 100 levels\. Flatten the row"),
]
NOT_STRICT = [
    (b'["a", 1]', "", r"the row is a list, not an object\. Write rows as"),
    (b'"a"', "", r"the row is a str, not an object\. Write rows as"),
    (b'{"a": 1, "b": 2, "a": 3}', "a", r"the object has this key more than once\. Keep one"),
    (b'{"m": [{"role": "user", "content": "x", "role": "assistant"}]}', "role", r"this key more than once\. Keep one"),
    (b'{"a": 1, "score": NaN}', "score", r"NaN is not JSON\. Write null"),
    (b'{"a": 1, "scores": [0, [-Infinity]]}', "scores", r"-Infinity is not JSON\. Write null"),
    (b'{"score": 1e999}', "score", r"the number 1e999 is out of range\. Write a smaller"),
    (b'{"id": 1' + b"0" * 5000 + b"}", "id", r"the number 1000.*\(5001 digits\) is out of range"),
    (
        b'{"ok": 1, "a": "x\\ud83d"}',
        "a",
        r"character 2 of the text is \\ud83d, half of a surrogate pair\. The text was",
    ),
    (nested(101), "a", r"nested deeper than 100 levels\. Flatten the value"),
    (b'{"b": "x", "a": "' + b"y" * 4_000_000 + b'"}', "a", r"the row has 4,000,001 characters.*\. Split the row"),
]


@pytest.mark.parametrize(("line", "field", "problem"), [*BROKEN, *NOT_STRICT])
def test_bad_line_is_named_and_can_be_passed_over(tmp_path: Path, line: bytes, field: str, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(RowError, match=rf"rows\.jsonl:2: .*{problem}"):
        list(read_records(path))
    records, errors = read_all(path)
    assert [record.data["a"] for record in records] == [1, 3]
    assert [(error.origin, error.field, error.reason) for error in errors] == [(f"{path}:2", field, "unreadable")]


@pytest.mark.parametrize(("row", "field", "problem"), NOT_STRICT)
def test_bad_row_of_a_json_file_is_named_and_can_be_passed_over(
    tmp_path: Path, row: bytes, field: str, problem: str
) -> None:
    path = write(tmp_path / "rows.json", b'[{"a": 1},\n' + row + b',\n{"a": 3}]\n')
    records, errors = read_all(path)
    assert [(record.data, record.origin) for record in records] == [({"a": 1}, f"{path}#0"), ({"a": 3}, f"{path}#2")]
    assert [(error.origin, error.field, error.reason) for error in errors] == [(f"{path}#1", field, "unreadable")]
    with pytest.raises(RowError, match=problem):
        list(read_records(path))


@pytest.mark.parametrize(
    "line", [nested(100), b'{"a": "' + b"y" * 4_000_000 + b'"}', b'{"a": "\\ud83d\\ude00 \\u0000"}']
)
def test_rows_at_the_limits_are_read(tmp_path: Path, line: bytes) -> None:
    assert [record.data for record in read_records(write(tmp_path / "rows.jsonl", line))] == [json.loads(line)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"rows": [], "a": 1}', r"rows\.json: the top level is an object with the keys \['a', 'rows'\]\. It must be"),
        (b'{"data": [{"a": 1}], "data": []}', r"rows\.json: field 'data': the object has this key more than once"),
        (b'{"data": {"a": 1}}', r"rows\.json: expected a list of rows, found a dict"),
        (b"3", r"rows\.json: expected a list of rows, found a int"),
        (b'[{"a": 1},\n oops]', r"rows\.json:2: not valid JSON: Expecting value at column 2\. Mend the file"),
        (b'[{"a": 1}\n{"a": 2}]', r"rows\.json:2: not valid JSON: Expecting ',' delimiter at column 1"),
        (b'[{"a": 1},\n', r"rows\.json:2: not valid JSON: Expecting value at column 1"),
        (b'{"data" [{"a": 1}]}', r"rows\.json:1: not valid JSON: Expecting ':' delimiter at column 9"),
        (b'{"a": 1} {"a": 2}', r"rows\.json:1: not valid JSON: Extra data at column 10\. .*one object a line: jq"),
        (b'{\n"a": 1}\n{"a": 2}', r"rows\.json:3: not valid JSON: Extra data at column 1\. .*one object a line: jq"),
        (b'{"a": 1},\n{"a": 2},\n', r"rows\.json:1: not valid JSON: a comma behind the row at column 9\. Remove"),
        (b'[{"a": 1},\n{"a": 2},\n]', r"rows\.json:\d: not valid JSON: a comma before the closing '\]' at column \d+"),
        (b'{"a": 1}', r"rows\.json: the top level is an object with the keys \['a'\]\. .*row, name the file \.jsonl"),
        (b"[" + nested(100_000) + b"]", r"rows\.json#0: nested deeper than 100 levels"),
        (b'[{"a": 1},\n{"a": "\xe9"}]', r"rows\.json:2: not UTF-8: byte 0xe9 at byte 8\. Save the file again"),
        (b'\xef\xbb\xbf[{"a":\n"\xe9"}]', r"rows\.json:2: not UTF-8: byte 0xe9 at byte 2\. Save the file again"),
        (b'[{"a": 1},\n\n {"a": "\0"}]', r"rows\.json:3: null byte at byte 9"),
    ],
)
def test_bad_json_files(tmp_path: Path, text: bytes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        list(read_records(write(tmp_path / "rows.json", text), on_row_error=lambda error: None))


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.json.zst"])
def test_large_json_files_are_refused_before_they_are_read_whole(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonrows, "MAX_JSON_BYTES", 2**20)
    monkeypatch.setattr(jsonrows, "decode", lambda *args: pytest.fail("read it all"))
    path = write(tmp_path / name, b"[" + b" " * 3 * 2**20 + b"{}]")
    with pytest.raises(UserError, match=rf"{name}: larger than 1 MiB.*Convert it to JSON Lines"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.json", "e.json.zst", "f.json", "g.csv"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"[]" if name == "f.json" else b"\n" if name == "a.jsonl" else b"")
    with pytest.raises(UserError, match=rf"{name}: there is no row in it"):
        list(read_records(path))


LISTS = [b'[{"a": 1}, {"a": 2}]', b'\n [\n {\n"a": 1\n},\n{"a": 2}]\n', b'\xef\xbb\xbf[{"a": 1},\n{"a": 2}]']


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz"])
@pytest.mark.parametrize("text", LISTS)
def test_a_list_named_jsonl_is_read_as_a_list(tmp_path: Path, name: str, text: bytes) -> None:
    path = write(tmp_path / name, text)
    assert list(read_records(path)) == [Record({"a": 1}, f"{path}#0"), Record({"a": 2}, f"{path}#1")]


def test_a_list_further_down_in_json_lines_is_a_bad_row(tmp_path: Path) -> None:
    records, errors = read_all(write(tmp_path / "rows.jsonl", b'{"a": 1}\n[{"a": 2}]\n{"a": 3}\n'))
    assert [record.data["a"] for record in records] == [1, 3]
    assert len(errors) == 1


@pytest.mark.parametrize("name", ["rows.json", "rows.json.zst"])
@pytest.mark.parametrize("start", [b"", b"\n", b"\xef\xbb\xbf"])
def test_json_lines_named_json_are_read_by_lines(tmp_path: Path, name: str, start: bytes) -> None:
    path = write(tmp_path / name, start + b'{"a": 1}\r\n\n{"data": [{"a": 2}]}\n{"a": 3,}\n{"a": 4}')
    first = 1 + start.count(b"\n")
    records, errors = read_all(path)
    assert records == [
        Record({"a": 1}, f"{path}:{first}"),
        Record({"data": [{"a": 2}]}, f"{path}:{first + 2}"),
        Record({"a": 4}, f"{path}:{first + 4}"),
    ]
    assert [error.origin for error in errors] == [f"{path}:{first + 3}"]
