"""The table of metrics of a run that is continued."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from lit_ift.callbacks.loggers import RunTable, claim_run
from lit_ift.errors import UserError


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_table_is_cut_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "version_0" / "metrics.csv"
    first = RunTable(tmp_path, name="runs", version=0)
    for step in range(3):
        first.log_metrics({"train/loss": step / 2}, step=step)
        first.save()
    assert first.experiment.rows == 3

    second = RunTable(tmp_path, name="runs", version=0)
    assert second.experiment.rows == 3
    second.experiment.keep(2)
    second.log_metrics({"train/loss": 9.0, "val/loss": 4.0}, step=2)
    second.save()
    assert second.experiment.rows == 3
    assert rows(path) == [
        {"step": "0", "train/loss": "0.0", "val/loss": ""},
        {"step": "1", "train/loss": "0.5", "val/loss": ""},
        {"step": "2", "train/loss": "9.0", "val/loss": "4.0"},
    ]


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("version_7", "version_x", "mine"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(claim_run, [tmp_path / "runs"] * 20))
    assert sorted(names, key=str) == sorted(f"version_{number}" for number in range(8, 28))
    assert all((tmp_path / "runs" / str(name)).is_dir() for name in names)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Runs cannot be written to .*file/runs.*trainer\.default_root_dir"):
        claim_run(tmp_path / "file" / "runs")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert claim_run(tmp_path / "file" / "runs") is None
