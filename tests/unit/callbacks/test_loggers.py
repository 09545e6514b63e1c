"""The table of metrics of a run that is continued."""

import csv
from pathlib import Path

from lit_ift.callbacks.loggers import RunTable


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
