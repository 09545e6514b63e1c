"""Hub and saved data sets, without the network: `load_dataset` and the hub client are replaced."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from rowfiles import ROWS

from lit_ift.data.read import hub
from lit_ift.data.read.readers import read_records
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError, UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What `load_dataset` was called with; it gives `ROWS` as the split train, in a folder without files."""
    calls: list[dict[str, Any]] = []

    def load(path: str, **options: Any) -> Any:
        calls.append({"path": path, **options})
        rows = datasets.Dataset.from_list(ROWS)
        if options["streaming"]:
            rows = rows.to_iterable_dataset()
        if options["split"]:
            return rows
        return {True: datasets.IterableDatasetDict, False: datasets.DatasetDict}[options["streaming"]](train=rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    return calls


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_gets_every_option(asked: list[dict[str, Any]], streaming: bool) -> None:
    rows = list(read_records("me/set", split="train", name="en", revision="v1", streaming=streaming))
    assert rows == [Record(ROWS[0], "me/set/en/train#0"), Record(ROWS[1], "me/set/en/train#1")]
    assert next(iter(read_records("me/set", streaming=streaming))).origin == "me/set/train#0"
    assert asked == [
        {"path": "me/set", "split": "train", "name": "en", "revision": "v1", "streaming": streaming},
        {"path": "me/set", "split": None, "name": None, "revision": None, "streaming": streaming},
    ]


def test_a_local_name_wins(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "me/set")
    assert next(iter(read_records("me/set"))).origin == "me/set#0"
    assert asked == []


def test_streaming_fetches_no_more_rows_than_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []

    def rows() -> Any:
        for i in range(1000):
            fetched.append(i)
            yield {"a": i}

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: stream)
    records = read_records("me/set", split="train", streaming=True)
    assert [next(records).data["a"] for _ in range(3)] == [0, 1, 2]
    assert len(fetched) < 10


def test_hub_failure_says_what_to_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"me/set: no such file here.*ConnectionError: offline.*Check the name"):
        list(read_records("me/set"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"and the network\. Did you mean data/train\?"):
        list(read_records("data/trian"))


def test_a_stream_that_breaks_off_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"a": 1}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows())
    with pytest.raises(UserError, match=r"me/set/train#1: cannot be read \(ConnectionError: reset by peer\)\. Check"):
        list(read_records("me/set", split="train", streaming=True))


def test_rows_beyond_the_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": "x"}, {"a": "x" * 4_000_001}, {"a": "y"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows)
    errors: list[RowError] = []
    records = read_records("me/set", split="train", on_row_error=errors.append)
    assert [record.origin for record in records] == ["me/set/train#0", "me/set/train#2"]
    assert [(error.origin, error.field) for error in errors] == [("me/set/train#1", "a")]


def test_identity_is_the_commit_that_the_hub_names(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    revisions: list[str | None] = []

    def info(self: object, repo_id: str, *, revision: str | None, timeout: float) -> Any:
        revisions.append(revision)
        return SimpleNamespace(sha=COMMIT)

    answer_with(monkeypatch, info)
    for revision in (None, "v1", COMMIT):
        assert hub.hub_identity("me/set", split="train", name=None, revision=revision) == {"commit": COMMIT}
    assert revisions == [None, "v1"]  # A commit names itself.
    assert asked == []


def test_identity_where_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("offline")

    answer_with(monkeypatch, fail)
    first = hub.hub_identity("me/set", split="train", name="en", revision="v1")
    assert first == {"dataset_fingerprint": datasets.Dataset.from_list(ROWS)._fingerprint}
    assert hub.hub_identity("me/set", split=None, name="en", revision="v1") == first
    assert [(call["name"], call["revision"], call["streaming"]) for call in asked] == [("en", "v1", False)] * 2

    loaded = datasets.Dataset.from_list(ROWS)
    loaded.info.download_checksums = {f"hf://datasets/me/set@{COMMIT}/{part}.parquet": {} for part in "ab"}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: loaded)
    assert hub.hub_identity("me/set", split="train", name=None, revision=None) == {"commit": COMMIT}

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match="loading it from the Hugging Face hub failed"):
        hub.hub_identity("me/set", split="train", name=None, revision=None)


def test_saved_dataset_and_dataset_dict(tmp_path: Path) -> None:
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


def test_damaged_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1 not really")
    with pytest.raises(UserError, match=r"set: cannot be loaded .*Write it again with datasets\.save_to_disk"):
        list(read_records(tmp_path / "set"))
