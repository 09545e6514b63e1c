"""A run's table of metrics, which a resumed run goes on with."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lit_ift.lightning_private import logged_steps, not_yet_logged
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


def logged_until_now(trainer: L.Trainer) -> dict[str, Any]:
    """What a checkpoint tells of the run's tables: their folder and rows, and the metrics that are yet to be logged."""
    return {
        "folder": trainer.loggers[0].log_dir if trainer.loggers else None,
        "rows": {
            logger.name: logger.experiment.rows
            for logger in trainer.loggers
            if trainer.is_global_zero and isinstance(logger, RunTable)
        },
        "next_step": logged_steps(trainer) + trainer.validating,  # Counted on after the validation.
        "pending": not_yet_logged(trainer),
    }


def continue_tables(trainer: L.Trainer, logged: Mapping[str, Any]) -> None:
    """Where the run goes on in its own folder, drop the rows after the checkpoint and add the one it came before.

    Where a killed run had a name but no checkpoint yet, drop all that it wrote.

    Lightning logs a step's metrics after the hook in which checkpoints are written.

    Args:
        trainer: of a fit that is about to begin.
        logged: what `logged_until_now` told when the checkpoint was written; empty without one.
    """
    if trainer.ckpt_path is None and trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, RunTable):
                logger.experiment.begin_anew()
    if not logged or not trainer.loggers or logged["folder"] != trainer.loggers[0].log_dir:
        return
    for logger in trainer.loggers:
        if trainer.is_global_zero and isinstance(logger, RunTable):
            logger.experiment.keep(logged["rows"][logger.name])
        if logged["pending"]:
            logger.log_metrics(logged["pending"], step=logged["next_step"])
            logger.save()
