"""What a source is, which files it consists of, and which options fit it."""

from pathlib import Path

import pytest
from rowfiles import compress, jsonl, parquet, table, write

from lit_ift.data.read import readers
from lit_ift.data.read.readers import data_files, read_records, source_kind
from lit_ift.errors import RowError, UserError

ROW = b'{"a": 1}\n'


def make(folder: Path, *names: str) -> Path:
    """A folder with files of one row each."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, ROW)
    return folder


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("went to the hub"))
    monkeypatch.chdir(tmp_path)


def test_kinds(tmp_path: Path) -> None:
    import datasets

    make(tmp_path, "rows.jsonl", "hub_folder/dataset_info.json", "hub_folder/rows.jsonl")
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=datasets.Dataset.from_list([{"a": 1}])).save_to_disk(tmp_path / "several")
    kinds = {name: source_kind(tmp_path / name) for name in ("rows.jsonl", "hub_folder", "one", "several", "*.jsonl")}
    assert kinds == {
        "rows.jsonl": "file",
        "hub_folder": "folder",
        "one": "dataset",
        "several": "dataset_dict",
        "*.jsonl": "pattern",
    }
    assert source_kind("owner/name-v1.5") == "hub"
    with pytest.raises(UserError, match=r"rows\.txt: cannot tell the format.*\.jsonl.*or \.parquet"):
        source_kind(write(tmp_path / "rows.txt", b"a,b\n"))


@pytest.mark.parametrize(
    "name",
    [
        "rows.jsonl",
        "rows.jsonll",
        "./rows",
        "/no/such/thing",
        "a/b/c",
        "~/no_rows_here",
        "data/rows.csv",
        "d/r.csv.zst",
    ],
)
@pytest.mark.usefixtures("no_hub")
def test_missing_path_does_not_go_to_the_hub(name: str) -> None:
    with pytest.raises(UserError, match=r"no such file or folder.*Check the path"):
        list(read_records(name))


@pytest.mark.usefixtures("no_hub")
def test_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    make(tmp_path, "alpaca.jsonl.gz", "data/train.jsonl")
    for wrong, right in (("alpaca.jsonl", "alpaca.jsonl.gz"), ("dta/train.jsonl", "data"), ("./data/x/y", "Check")):
        with pytest.raises(UserError, match=rf"no such file.*(Did you mean {right}\?|{right} the path)"):
            list(read_records(wrong))


def test_a_place_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UserError, match=r"rows\.jsonl: cannot be looked at \(Permission denied\)\. Check its name"):
        source_kind(tmp_path / "rows.jsonl")


def test_folder_gives_its_files_by_name_and_nothing_else(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", "b.jsonl", "a.ndjson.zst", "c.jsonl.gz", "license-questions.jsonl", "sub/d.jsonl")
    for name in ("README.md", "LICENSE", "LICENCE.txt", "dataset_infos.json", ".hidden.jsonl", "_SUCCESS", "make.py"):
        (folder / name).write_bytes(b"not a row")
    assert [record.origin for record in read_records(folder)] == [
        f"{folder}/{name}:1" for name in ("a.ndjson.zst", "b.jsonl", "c.jsonl.gz", "license-questions.jsonl")
    ]
    assert [record.origin for record in read_records(folder / "sub")] == [f"{folder}/sub/d.jsonl:1"]


def test_folders_of_other_formats(tmp_path: Path) -> None:
    rows = [{"a": "1"}, {"a": "2"}]
    for name, data in (("x.csv.gz", table(rows)), ("x.parquet", parquet(rows)), ("x.tsv", table(rows, "\t"))):
        folder = tmp_path / name.split(".")[1]
        folder.mkdir()
        write(folder / name, data)
        write(folder / f"2{name}", data)
        assert [record.data for record in read_records(folder)] == rows * 2


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.csv", "b.jsonl", "c.jsonl.gz"], r"set: files of several formats \(a\.csv, b\.jsonl\)"),
        (
            ["a.jsonl", "a.jsonl.gz"],
            r"set: the same file in several compressions \(a\.jsonl, a\.jsonl\.gz\)\. Keep one",
        ),
        (["a.jsonl", "b.zip"], r"set: b\.zip cannot be read\. Move it away, or convert it"),
        (
            ["train-00001.jsonl", "x_validation.jsonl"],
            r"several splits: train-00001\.jsonl \(train\), x_validation\.jsonl \(validation\).* \S+set/\*train\*",
        ),
        (
            ["train/a.jsonl"],
            r"set: there is no data file in this folder.*subfolders are not searched.*: \S+set/train\.",
        ),
        (["README.md"], r"set: there is no data file in this folder.*Check the path"),
    ],
)
def test_folders_that_do_not_say_what_to_read(tmp_path: Path, names: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        list(read_records(make(tmp_path / "set", *names)))


def test_words_that_only_contain_the_name_of_a_split_are_none(tmp_path: Path) -> None:
    assert len(data_files(make(tmp_path, "latest.jsonl", "constrained.jsonl", "train_devotion.jsonl"))) == 3


def test_an_empty_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (make(tmp_path, "a.jsonl", "b.jsonl") / "b.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.jsonl: there is no row in it.*leave it out"):
        list(read_records(tmp_path))


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(
        make(tmp_path, "d/train-2.jsonl", "d/train-1.jsonl", "d/test.jsonl", "d/e/f/x.jsonl", "[1].jsonl")
    )
    (tmp_path / "d" / "README.md").write_bytes(b"")
    assert [r.origin for r in read_records("d/train*")] == ["d/train-1.jsonl:1", "d/train-2.jsonl:1"]
    assert [r.origin for r in read_records("d/**/?.jsonl")] == ["d/e/f/x.jsonl:1"]
    assert len(list(read_records("d/*"))) == 3
    assert [r.origin for r in read_records("[1].jsonl")] == ["[1].jsonl:1"]
    with pytest.raises(UserError, match=r"d/\*\.csv: no data file matches this pattern.*Check the path"):
        list(read_records("d/*.csv"))
    make(tmp_path, "d/y.csv")
    with pytest.raises(UserError, match=r"files of several formats \(test\.jsonl, y\.csv\)"):
        list(read_records("d/*"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"split": "train"}, r"split='train' was given, but a file has no splits\. Remove split"),
        ({"revision": "main"}, r"revision='main' was given, but this is local data\. Remove revision"),
        ({"name": "en"}, r"name='en' was given, but this is local data\. Remove name"),
        ({"streaming": True}, r"streaming=True was given, but this is local data\. Remove streaming"),
    ],
)
def test_options_that_do_not_apply_are_refused(tmp_path: Path, options: dict, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", jsonl([{"a": 1}]))
    with pytest.raises(UserError, match=problem):
        list(read_records(path, **options))


def test_a_folder_has_no_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"split='train' was given, but files of a folder are read together; name"):
        list(read_records(make(tmp_path, "a.jsonl"), split="train"))


def test_compression_is_by_the_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.JSONL.GZ"
    path.write_bytes(compress("x.gz", ROW))
    assert [record.data for record in read_records(path)] == [{"a": 1}]


@pytest.mark.slow
def test_four_thousand_files_are_listed_in_one_pass(tmp_path: Path) -> None:
    """By the number of looks at a name, for a test that took its time would depend on the machine."""
    for i in range(4000):
        (tmp_path / f"{i:04}.jsonl").touch()
    looks = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_without_compression", lambda path: Name(path))
        assert len(data_files(tmp_path)) == 4000
    assert looks < 40_000


class Listener:
    """Collects bad rows and bad files."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.files: list[str] = []

    def __call__(self, error: RowError) -> None:
        self.rows.append(str(error))

    def file_fault(self, error: UserError) -> None:
        self.files.append(str(error))


BAD_FILES = {
    "a_quote.csv": (b'x\n1\n"2', "quoting error"),
    "b_header.csv": (b"x,x\n1,2\n", "more than once"),
    "c_empty.csv": (b"", "no row in it"),
    "d_utf16.csv": ("x\n1\n".encode("utf-16"), "UTF-16"),
    "e_cut.csv.gz": (b"\x1f\x8b\x08", "damaged or cut off"),
}


def test_a_listener_hears_of_every_bad_file_and_gets_the_rows_of_the_others(tmp_path: Path) -> None:
    for name, (content, _) in BAD_FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "f_good.csv").write_bytes(b"x\n3\n")
    listener = Listener()
    assert [record.data["x"] for record in read_records(tmp_path, on_row_error=listener)] == ["1", "3"]
    assert len(listener.files) == len(BAD_FILES)
    for told, (name, (_, problem)) in zip(listener.files, BAD_FILES.items(), strict=True):
        assert name in told
        assert problem in told
    with pytest.raises(UserError, match="a_quote"):
        list(read_records(tmp_path, on_row_error=listener.rows.append))


@pytest.mark.parametrize(("line", "reason"), [(b'{"a": "\xe9"}', "UTF-8"), (b'{"a": NaN}', "NaN"), (b"{a}", "JSON")])
def test_a_file_of_bad_rows_is_not_called_empty(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "rows.jsonl", line + b"\n")
    errors: list[RowError] = []
    assert list(read_records(path, on_row_error=errors.append)) == []
    assert [reason in str(error) for error in errors] == [True]
