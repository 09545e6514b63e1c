"""Checkpoints that are there whole or not at all."""

import os
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from lit_ift.checkpoints import writing as atomic
from lit_ift.checkpoints.writing import AtomicCheckpointIO, put_in_place, read_header, remove_leftovers, staging_path
from lit_ift.errors import UserError


def content(path: Path) -> dict[str, str]:
    """Files below a path, or the file itself."""
    return {str(file.relative_to(path)): file.read_text() for file in [path, *path.rglob("*")] if file.is_file()}


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("exists", [None, "file", "folder"])
def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path, kind: str, exists: str | None) -> None:
    def write(path: Path, kind: str, text: str) -> None:
        if kind == "folder":
            path.mkdir()
            path = path / "shard"
        path.write_text(text)

    path = tmp_path / "last.ckpt"
    staged = staging_path(path)
    write(staged, kind, "new")
    if exists:
        write(path, exists, "old")
    put_in_place(staged, path)
    assert content(path) == ({".": "new"} if kind == "file" else {"shard": "new"})
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("old")
    staging_path(path).write_text("new")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        put_in_place(staging_path(path), path)
    assert path.read_text() == "old"
    assert list(tmp_path.glob("*.ckpt")) == [path]  # What is not whole does not look like a checkpoint.
    assert remove_leftovers(tmp_path) == [staging_path(path)]
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_was_put_aside_gets_its_name_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    for folder in (path, staging_path(path)):
        folder.mkdir()
        (folder / "shard").write_text("new" if folder != path else "old")
    rename = os.rename

    def killed(staged: Path, target: Path) -> None:
        if target == path and not path.exists():
            raise KeyboardInterrupt
        rename(staged, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(staging_path(path), path)
    assert not path.exists()
    assert remove_leftovers(tmp_path) == [staging_path(path)]
    assert content(path) == {"shard": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_half_of_a_removed_folder_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "shard").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: None)  # It is killed here.
        AtomicCheckpointIO().remove_checkpoint(path)
    assert not list(tmp_path.glob("*.ckpt"))
    assert len(remove_leftovers(tmp_path)) == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere")  # Moved to another disk: only the link is removed.
    AtomicCheckpointIO().remove_checkpoint(path)
    assert [found.name for found in tmp_path.iterdir()] == ["elsewhere"]
    path.write_text("file")
    for _ in range(2):  # The second time there is none.
        AtomicCheckpointIO().remove_checkpoint(path)
        assert not path.exists()


def test_headers(tmp_path: Path) -> None:
    whole = {"loops": {}, "global_step": 3, "state_dict": {"w": torch.zeros(1000)}}
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(whole, path)
    assert read_header(path)["global_step"] == 3
    assert list(tmp_path.iterdir()) == [path]

    shards = tmp_path / "b.ckpt"
    shards.mkdir()
    torch.save(whole, shards / "meta.pt")
    with pytest.raises(UserError, match=r"b.ckpt is no checkpoint: it has no .metadata"):
        read_header(shards)
    (shards / ".metadata").touch()
    with pytest.raises(UserError, match=r"b.ckpt cannot be read as a checkpoint: Ran out of input"):
        read_header(shards)
    (shards / ".metadata").write_bytes(pickle.dumps(Metadata({})))
    assert read_header(shards)["global_step"] == 3

    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:2000])
    torch.save({"loops": Path}, tmp_path / "code.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    for name, message in (("cut", "cannot be read"), ("code", "only code could restore"), ("list", "no checkpoint")):
        with pytest.raises(UserError, match=message):
            read_header(tmp_path / f"{name}.ckpt")


def test_folders_that_can_be_written_to(tmp_path: Path) -> None:
    assert atomic.why_not_writable(tmp_path / "new" / "folder") is None
    (tmp_path / "file").touch()
    assert "file" in (atomic.why_not_writable(tmp_path / "file" / "x") or "")


@pytest.mark.parametrize("other", [False, True])
def test_folders_of_other_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool) -> None:
    """As rank 1 of two sees it."""

    class SecondOfTwo:
        is_initialized = staticmethod(lambda: True)
        get_rank = staticmethod(lambda: 1)
        get_world_size = staticmethod(lambda: 2)

        @staticmethod
        def broadcast_object_list(values: list[str]) -> None:
            (tmp_path / "shared" / "mark").touch()
            values[0] = "mark"

    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(atomic, "distributed", SecondOfTwo)
    monkeypatch.setattr(atomic, "of_every_rank", lambda own: [None, own])
    monkeypatch.setattr(atomic, "_APPEARS", 0.0)
    with pytest.raises(UserError, match=r"Rank 1: .*elsewhere on .* is another folder") if other else nullcontext():
        atomic.check_shared(tmp_path / ("elsewhere" if other else "shared"))
