"""Folders of runs: who may write to which, and until when."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only

from lit_ift.checkpoints.run_folder import Claims
from lit_ift.errors import UserError


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("version_7", "version_x", "mine", "version_9"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "version_7" / "metrics.csv").touch()
    (tmp_path / "runs" / "version_9" / "config.yaml").touch()
    claims = [Claims() for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda claim: claim.claim_new(tmp_path / "runs"), claims))
    # The one of a start that failed is used again.
    assert sorted(names, key=lambda name: int(str(name)[8:])) == [f"version_{number}" for number in range(8, 28)]
    assert all((tmp_path / "runs" / str(name)).is_dir() for name in names)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for claim in (Claims().claim_new, Claims().claim):
        with pytest.raises(UserError, match=r"Runs cannot be written to .*file.*trainer\.default_root_dir"):
            claim(tmp_path / "file" / "runs")


def test_other_ranks_claim_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    claims = Claims()
    assert claims.claim_new(tmp_path / "runs") is None
    claims.claim(tmp_path / "runs" / "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_one_process_until_that_one_ends(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # Another process, which is killed while it has the folder.
        try:
            claims = Claims()
            claims.claim(run)
            os.write(write, b"x")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(read, 1) == b"x"
    with pytest.raises(UserError) as error:
        Claims().claim(run)
    assert f"{run} is in use by process {child} on {os.uname().nodename} since 2" in str(error.value)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with Claims() as claims:
        claims.claim(run)
        (run / "metrics.csv").touch()
    assert [path.name for path in run.iterdir()] == ["metrics.csv"]


def test_what_a_failed_start_leaves_is_removed(tmp_path: Path) -> None:
    with Claims() as claims:
        name = claims.claim_new(tmp_path / "runs")
        (tmp_path / "runs" / str(name) / "checkpoints").mkdir()
        (tmp_path / "runs" / str(name) / "config.yaml").touch()
    assert list((tmp_path / "runs").iterdir()) == []
    # A folder that was there before stays.
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "config.yaml").touch()
    with Claims() as claims:
        claims.claim(tmp_path / "runs" / "mine")
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["config.yaml"]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="cannot lock files .No locks available."):
        assert Claims().claim_new(tmp_path / "runs") == "version_0"
    with pytest.warns(UserWarning, match="cannot lock files"):
        assert Claims().claim_new(tmp_path / "runs") == "version_1"
