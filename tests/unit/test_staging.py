"""Folders that appear whole, and what killed processes leave of them."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lit_ift.staging import remove_abandoned, replaced_file, scratch_folder, staged_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from lit_ift.staging import scratch_folder
target = Path(sys.argv[1])
with scratch_folder(target) as holder:
    (holder / "weights").write_text("half")
    if target.exists():
        os.rename(target, holder / "old")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(target: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "model[1]"
    killed(target)
    assert len(names(tmp_path)) == 1
    with staged_folder(target) as stage:
        (stage / "config.json").write_text("{}")
    assert names(tmp_path) == ["model[1]"]
    assert names(target) == ["config.json"]


def test_what_was_put_aside_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    killed(target)
    assert not target.exists()
    with scratch_folder(target):
        assert (target / "config.json").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    target, other = tmp_path / "model", tmp_path / "model-1"
    with scratch_folder(target) as mine, scratch_folder(other) as others:
        for one in (target, other):
            with scratch_folder(one) as second:
                assert mine.is_dir()
                assert others.is_dir()
            assert not second.exists()
        unlocked = tmp_path / ".model.tmp-new"  # It is being made at this moment.
        unlocked.mkdir()
        with scratch_folder(target):
            assert unlocked.is_dir()
        os.utime(unlocked, (0, 0))
        with scratch_folder(target):
            assert not unlocked.exists()
    assert names(tmp_path) == []


def test_a_file_takes_the_place_of_another_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with pytest.raises(TypeError), replaced_file(path) as file:
        file.writelines([b"half", "text"])
    assert path.read_text() == "old"
    with replaced_file(path, "w", encoding="utf-8") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["rows.csv"]


def test_a_folder_with_content_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileExistsError, match="not empty"), staged_folder(target):
        pass
    assert names(target) == ["old"]
    with staged_folder(target, replace=True) as stage:
        (stage / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


def test_what_others_have_left_is_removed_for_all_targets(tmp_path: Path) -> None:
    killed(tmp_path / "train-1")
    killed(tmp_path / "val-1")
    with scratch_folder(tmp_path / "test-1") as mine:
        assert len(names(tmp_path)) == 3
        remove_abandoned(tmp_path)
        assert names(tmp_path) == [mine.name]


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    with scratch_folder(tmp_path / "model") as first:
        (first / ".lock").touch()
        with staged_folder(tmp_path / "model"):
            assert first.is_dir()
    assert names(tmp_path) == ["model"]
