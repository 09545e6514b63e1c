"""A run's table of metrics, which a resumed run goes on with."""

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lit_ift.staging import replaced_file


class RunTable(CSVLogger):
    """``metrics.csv``; what a folder already has of it stays. Lightning's own begins anew and deletes the old rows."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "TableWriter":
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = TableWriter(self.log_dir)
        assert isinstance(self._experiment, TableWriter)
        return self._experiment


class TableWriter(ExperimentWriter):
    """Adds rows to ``metrics.csv``, after those that are there.

    Args:
        log_dir: folder of the table.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows = 0
        """Rows in the file, after the header."""
        self._table = Path(self.metrics_file_path)
        if self._table.is_file():
            header, rows = self._read()
            self.metrics_keys = header
            self.rows = len(rows)
        self._found = self.rows

    def begin_anew(self) -> None:
        """Drop the rows that were there before this process; for a run that goes on with no checkpoint."""
        if self._found:
            self.keep(0)
        self._found = 0

    def keep(self, rows: int) -> None:
        """Leave only the first rows: those that a checkpoint knows of. A killed run may have written more."""
        self.metrics = []
        if not self._table.is_file():
            return
        header, found = self._read()
        with replaced_file(self._table, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *found[:rows]])
        self.rows = min(rows, len(found))

    def save(self) -> None:
        self.rows += len(self.metrics)
        super().save()

    def _check_log_dir_exists(self) -> None:
        """Lightning's deletes the table here."""

    def _read(self) -> tuple[list[str], list[list[str]]]:
        with self._table.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        return header, rows
