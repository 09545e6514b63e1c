"""Sources: their options, their rows and what identifies them in a cache."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from rowfiles import jsonl, write

from lit_ift.data.read import sources
from lit_ift.data.read.readers import source_kind
from lit_ift.data.read.sources import Source, as_sources
from lit_ift.errors import RowError, UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# This is what Lightning calls; jsonargparse 5 removes it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def in_tmp_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", jsonl([{"a": i} for i in range(5)]))


def save(path: str, **splits: list[int]) -> None:
    """Write a `DatasetDict`."""
    import datasets

    datasets.DatasetDict({k: datasets.Dataset.from_dict({"a": v}) for k, v in splits.items()}).save_to_disk(path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"path": " "}, r"empty path\. Name a file"),
        ({"path": '{"path": "rows.jsonl", "wieght": 1}'}, r"this mapping is no source\. Its keys may be path, weight"),
        (
            {"weight": 0},
            r"rows\.jsonl: weight=0 must be above 0 and at most 1000",
        ),
        ({"weight": -0.5}, r"weight=-0\.5 must be above 0"),
        ({"weight": float("nan")}, r"weight=nan must be a finite number"),
        ({"weight": float("inf")}, r"weight=inf must be a finite number"),
        ({"max_rows": 0}, r"max_rows=0 must be at least 1"),
        ({"score_range": (10, 1)}, r"score_range=\(10, 1\) must be two numbers, the lower one first"),
        ({"preference_scale": 0}, r"rows\.jsonl: preference_scale=0 must be above 0"),
        ({"preference_scale": float("inf")}, r"preference_scale=inf must be a finite number"),
        ({"preference_scale": True}, r"preference_scale=True must be a finite number"),
        ({"score_range": (1, 1)}, r"score_range=\(1, 1\) must be two numbers"),
        ({"score_range": (0, float("inf"))}, r"score_range=\(0, inf\) must be two numbers"),
        ({"split": "train"}, r"rows\.jsonl: split='train' was given, but a file has no splits"),
        ({"name": "en"}, r"rows\.jsonl: name='en' was given, but this is local data\. Remove name"),
        ({"revision": "v1"}, r"rows\.jsonl: revision='v1' was given, but this is local data"),
        ({"streaming": True}, r"rows\.jsonl: streaming=True was given, but this is local data"),
        ({"path": "row.jsonl"}, r"row\.jsonl: no such file or folder.*Did you mean rows\.jsonl\?"),
        ({"path": "*.csv"}, r"\*\.csv: no data file matches this pattern"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Source(**{"path": "rows.jsonl", **options})


class Options:
    """A class with data options, as a data module has them."""

    def __init__(self, train: str | Source | list[str | Source] | None = None) -> None:
        self.train = train


@pytest.mark.parametrize(
    ("given", "make"),
    [
        ("null", lambda: None),
        ("rows.jsonl", lambda: "rows.jsonl"),
        (
            "{path: rows.jsonl, weight: 2, score_range: [1, 10]}",
            lambda: Source("rows.jsonl", 2.0, score_range=(1.0, 10.0)),
        ),
        (
            "[rows.jsonl, {path: me/set, name: en, split: tr, streaming: true, max_rows: 3}]",
            lambda: ["rows.jsonl", Source("me/set", name="en", split="tr", streaming=True, max_rows=3)],
        ),
    ],
)
def test_sources_in_a_configuration(given: str, make: Callable[[], Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Options, "data")
    parser.add_argument("--config", action="config")
    Path("config.yaml").write_text(f"data:\n  train: {given}\n")
    config = parser.parse_args(["--config", "config.yaml"])
    assert parser.instantiate_classes(config).data.train == make()
    assert parser.instantiate_classes(parser.parse_string(parser.dump(config))).data.train == make()


def test_misspelt_and_wrong_options_in_a_configuration() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Options, "data")
    with pytest.raises(ArgumentError, match="'wieght' is not accepted"):
        parser.parse_object({"data": {"train": [{"path": "rows.jsonl", "wieght": 2}]}})
    config = parser.parse_object({"data": {"train": [{"path": "rows.jsonl", "weight": -2}]}})
    with pytest.raises(ValueError, match=r"weight=-2\.0 must be above 0"):
        parser.instantiate_classes(config)


def test_a_list_of_sources() -> None:
    assert as_sources(None) == []
    assert as_sources("rows.jsonl") == as_sources(Source("rows.jsonl")) == [Source("rows.jsonl")]
    other = Source("me/set", weight=2)
    assert as_sources(["rows.jsonl", other]) == [Source("rows.jsonl"), other]
    twice = [Source("me/set", split="a"), Source("me/set", split="b"), Source("me/set", name="x")]
    assert as_sources(twice) == twice


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (["rows.jsonl", "rows.jsonl"], r"The source rows\.jsonl is listed twice.*set its weight"),
        (["rows.jsonl", "./rows.jsonl"], r"The source \./rows\.jsonl has files that rows\.jsonl has, too"),
        (["*.jsonl", {"path": "rows.jsonl", "weight": 2}], r"The source rows\.jsonl has files that \*\.jsonl has, too"),
        (["me/set", {"path": "me/set", "max_rows": 2}], r"The source me/set is listed twice"),
    ],
)
def test_a_source_listed_twice(listed: list[str | dict[str, Any]], problem: str) -> None:
    made = [item if isinstance(item, str) else Source(**item) for item in listed]
    with pytest.raises(UserError, match=problem):
        as_sources(made)


def test_records_are_the_first_ones_and_bad_rows_do_not_count() -> None:
    write(Path("some.jsonl"), b'{"a": 0}\noops\n{"a": 2}\n{"a": 3}\noops\n')
    errors: list[RowError] = []
    records = Source("some.jsonl", max_rows=2).records("train", errors.append)
    assert [record.data["a"] for record in records] == [0, 2]
    assert [error.origin for error in errors] == ["some.jsonl:2"]
    with pytest.raises(RowError, match=r"some\.jsonl:2"):
        list(Source("some.jsonl").records("train"))


def test_default_split_is_for_sources_that_have_splits() -> None:
    save("saved", train=[1, 2], test=[3])
    assert [r.data["a"] for r in Source("saved").records("test")] == [3]
    assert [r.data["a"] for r in Source("saved", split="train").records("test")] == [1, 2]
    assert [r.data["a"] for r in Source("rows.jsonl").records("test")] == [0, 1, 2, 3, 4]


def test_streaming_and_the_other_options_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, **options: Any) -> list[dict[str, int]]:
        asked.append((path, options))
        return [{"a": 1}, {"a": 2}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Source("me/set", name="en", revision="v1", streaming=True, max_rows=1)
    assert [record.origin for record in source.records("train")] == ["me/set/en/train#0"]
    assert asked == [("me/set", {"name": "en", "split": "train", "revision": "v1", "streaming": True})]


def test_fingerprint_of_a_file_is_name_size_and_content() -> None:
    data = Path("rows.jsonl").read_bytes()
    fingerprint = Source("rows.jsonl", max_rows=3).fingerprint("train")
    assert fingerprint == {
        "path": "rows.jsonl",
        "kind": "file",
        "split": None,
        "name": None,
        "max_rows": 3,
        "layout": None,
        "columns": None,
        "score_range": None,
        "preference_scale": None,
        "files": [{"name": "rows.jsonl", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}],
    }
    assert json.loads(json.dumps(fingerprint)) == fingerprint


def test_fingerprint_is_the_same_where_the_data_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save("saved", train=[1], test=[2])
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, b"{}\n") if name == "a.jsonl" else shutil.copy("a.jsonl", name)
    (tmp_path / "folder").mkdir()
    shutil.copy("a.jsonl", "folder/x.jsonl")
    paths = ("rows.jsonl", "?.jsonl", "folder", "saved", "saved/train")
    before = [Source(path).fingerprint("train") for path in paths]
    shutil.copytree(tmp_path, tmp_path / "moved", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "moved")
    assert [Source(path).fingerprint("train") for path in paths] == before
    assert str(tmp_path) not in json.dumps(before)
    assert [file["name"] for file in before[1]["files"]] == ["a.jsonl", "b.jsonl"]
    # An absolute path is in it as it was written, and only so.
    absolute = Source(str(tmp_path / "?.jsonl")).fingerprint("train")
    assert {**absolute, "path": "?.jsonl"} == before[1]


@pytest.mark.parametrize(
    "options",
    [
        {"max_rows": 2},
        {"score_range": (0.0, 5.0)},
        {"preference_scale": 1.0},
        {"layout": "alpaca"},
        {"columns": {"prompt": "Question"}},
        {"columns": {"rating": None}},
        {"path": "./rows.jsonl"},
        {"path": "row?.jsonl"},
    ],
)
def test_fingerprint_depends_on_what_changes_the_rows(options: dict[str, Any]) -> None:
    changed = Source(**{"path": "rows.jsonl", **options}).fingerprint("train")
    assert changed != Source("rows.jsonl").fingerprint("train")


def test_fingerprint_does_not_depend_on_weight_or_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Source("rows.jsonl", weight=3).fingerprint() == Source("rows.jsonl").fingerprint()
    streamed = Source("me/set", revision=COMMIT, streaming=True).fingerprint("train")
    assert streamed == Source("me/set", revision=COMMIT).fingerprint("train")
    assert streamed["commit"] == COMMIT
    assert streamed["split"] == "train"
    assert streamed != Source("me/set", revision=COMMIT, name="en").fingerprint("train")
    assert streamed != Source("me/set", revision=COMMIT).fingerprint("test")


def test_fingerprint_sees_every_change_of_a_file() -> None:
    path = Path("rows.jsonl")
    before = Source("rows.jsonl").fingerprint()
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"4", b"5"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # Same size, and as quick as a clock can tell.
    after = Source("rows.jsonl").fingerprint()
    assert after != before
    assert after["files"][0]["size"] == before["files"][0]["size"]


def test_fingerprint_sees_files_that_come_go_and_change_their_names() -> None:
    for folder in ("x", "y", "z"):
        Path(folder).mkdir()
        write(Path(folder) / "a.jsonl", b"{}\n")
    write(Path("y/b.jsonl"), b"{}\n")
    Path("z/a.jsonl").rename("z/b.jsonl")
    files = [Source(folder).fingerprint()["files"] for folder in ("x", "y", "z")]
    assert [[file["name"] for file in listed] for listed in files] == [["a.jsonl"], ["a.jsonl", "b.jsonl"], ["b.jsonl"]]


def test_fingerprint_of_a_saved_dataset_is_that_of_its_split_and_not_of_its_cache() -> None:
    save("saved", train=[1], test=[2])
    before = Source("saved").fingerprint("train")
    assert [file["name"] for file in before["files"]] == [
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    ]
    Path("saved/train/cache-0123.arrow").write_bytes(b"of map")
    Path("saved/test/data-00000-of-00001.arrow").write_bytes(b"other")
    assert Source("saved").fingerprint("train") == before
    Path("saved/train/data-00000-of-00001.arrow").write_bytes(b"other")
    assert Source("saved").fingerprint("train") != before
    with pytest.raises(UserError, match=r"saved: there is no split 'val'\. Its splits are test, train"):
        Source("saved").fingerprint("val")


def test_a_file_is_hashed_once_and_a_large_one_with_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Source("rows.jsonl").fingerprint()
    assert "hash" not in capsys.readouterr().err
    monkeypatch.setattr(sources, "PROGRESS_BYTES", 10)
    write(Path("more.jsonl"), jsonl([{"a": 1}] * 3))
    for _ in range(2):
        Source("more.jsonl").fingerprint()
        Source("rows.jsonl").fingerprint()
    assert capsys.readouterr().err.count("hash more.jsonl: 100%") == 1


def test_a_file_that_cannot_be_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("secret.jsonl"), b"{}\n")
    source = Source("secret.jsonl")
    assert source_kind("secret.jsonl") == "file"

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources, "_sha256", refuse)
    with pytest.raises(UserError, match=r"secret\.jsonl: cannot be opened \(Permission denied\)"):
        source.fingerprint()


def test_files_are_listed_once_for_reading_and_for_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("many").mkdir()
    for name in ("a", "b"):
        write(Path(f"many/{name}.jsonl"), b'{"a": 1}\n')
    calls = []
    listed = sources.data_files
    monkeypatch.setattr(sources, "data_files", lambda path: calls.append(path) or listed(path))
    (source,) = sources.as_sources("many")
    source.fingerprint()
    assert len(list(source.records())) == len(list(source.records())) == 2
    assert calls == ["many"]
