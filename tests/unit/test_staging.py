"""Folders that appear whole, and what killed processes leave of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from lit_ift.staging import scratch_folder, staged_folder

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
