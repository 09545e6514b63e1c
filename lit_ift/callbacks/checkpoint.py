"""Training checkpoints with the defaults that a fine-tuning run wants."""

import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lit_ift.callbacks.inputs import KEY, RunInputs
from lit_ift.callbacks.loggers import continue_tables, logged_until_now
from lit_ift.checkpoints.signals import StopSignals
from lit_ift.checkpoints.writing import (
    AtomicCheckpointIO,
    CheckpointWriter,
    check_shared,
    raise_together,
    remove_leftovers,
    why_not_writable,
)
from lit_ift.errors import UserError, nearest
from lit_ift.lightning_private import (
    dump_checkpoint,
    is_accumulating,
    validation_or_epoch_end_follows,
    writes_shards,
)
from lit_ift.options import CheckedOptions, PositiveInt


@dataclass
class Schedule:
    """When a checkpoint to resume from is due, in optimizer steps; each step has one at most."""

    every: int  # how many steps lie between two; below 1 the validations say when
    written: int = 0  # the step of the newest one
    owed: bool = False  # whether one was due while gradients were accumulated

    def is_due(self, step: int) -> bool:
        """Whether the number of steps asks for one."""
        return self.every > 0 and step % self.every == 0

    def take(self, step: int, due: bool) -> bool:
        """Whether one is to be written now, between two steps; what was owed is no longer."""
        due, self.owed = due or self.owed, False
        return due and self.written != step


class RunCheckpoint(CheckedOptions, ModelCheckpoint):
    """Keeps the best checkpoint by ``val/loss``, and the last ones to resume from.

    Without validation data there is nothing to compare: the newest checkpoint is kept instead, and that is said.
    A checkpoint that can resume training also holds, under ``data_reports``, what became of the rows of each split.

    A checkpoint to resume from is written between two optimizer steps: after the validation, where one is due, and
    never while gradients are accumulated, for those would be lost. It appears under its name when it is whole and on
    the disk; what a killed run had begun to write is removed by the next one. If it cannot be written (disk full),
    training ends with an error and the earlier ones stay.

    On SIGTERM, which schedulers send before they take a machine away, every rank ends its optimizer step, together
    they write a checkpoint, and the process ends with exit code 143. Ctrl-C (SIGINT) does the same with exit code 130;
    a second one ends the run at once.

    Args:
        dirpath: folder; ``<log_dir>/checkpoints`` by default.
        filename: of the best ones, as for ``ModelCheckpoint``.
        monitor: the metric to compare by; None keeps the newest.
        mode: whether smaller or larger is better.
        save_top_k: how many of the best to keep; -1 keeps all, 0 none.
        save_last: keep checkpoints to resume from.
        save_weights_only: leave the optimizer out; such a checkpoint cannot resume training.
        every_n_train_steps: how often to write one to resume from, in optimizer steps; after each validation by
            default. The best are looked for after each validation.
        keep_last: how many to resume from are kept. A single file is ``last.ckpt``; several, or folders of shards, are
            ``last-step=<n>.ckpt``.
        async_save: write them while training goes on, from a copy in main memory.
        allow_changed_inputs: go on from a checkpoint though the model's files or the rows have changed since; an error
            by default.
    """

    option_prefix = "checkpoint."

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = "step={step}",
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool = True,
        save_weights_only: bool = False,
        every_n_train_steps: int | None = None,
        keep_last: PositiveInt = 1,
        async_save: bool = False,
        allow_changed_inputs: bool = False,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last or None,
            save_weights_only=save_weights_only,
            every_n_train_steps=every_n_train_steps,
            auto_insert_metric_name=False,
        )
        self.keep_last = keep_last
        self.async_save = async_save
        self._writer = CheckpointWriter(async_save)
        self._inputs = RunInputs(allow_changed_inputs)
        self._configured = monitor, save_top_k
        self._schedule = Schedule(self._every_n_train_steps)
        self._compared_step = 0
        self._resumable: list[str] = []
        """Checkpoints to resume from that this run has written and not removed, the oldest first."""
        self.found = "no checkpoint"
        """What ``--resume`` found on this rank."""
        self._signals = StopSignals()
        self._unlogged: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        # Not what became of `monitor` where there is no validation data: a resumed run asks before it knows that. Nor
        # how often to write, which a resumed run may do otherwise.
        return self._generate_state_key(monitor=self._configured[0], mode=self.mode)

    # Set-up ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._schedule, self._compared_step = Schedule(self._every_n_train_steps), 0
            self._unlogged, self._resumable = {}, []
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit":
            self._check_same_start(trainer)
            self._inputs.forget()
            self._signals.take_sigterm(trainer)
        else:  # An earlier fit's has no part in an evaluation.
            self._signals.leave_sigterm(trainer)
        if stage != "fit" or _writes_nothing(trainer) or not (self.save_top_k or self.save_last):
            return
        folder = Path(str(self.dirpath))
        problem = None
        if trainer.is_global_zero:
            problem = why_not_writable(folder)
            for path in remove_leftovers(folder) if problem is None else []:
                rank_zero_info(f"Removed a checkpoint that was not written to its end: {path}")
        if problem := trainer.strategy.broadcast(problem):
            raise UserError(
                f"Checkpoints cannot be written to {folder}: {problem}. Set checkpoint.dirpath or "
                "trainer.default_root_dir to a folder that can be written to."
            )
        if writes_shards(trainer.strategy):
            check_shared(folder)

    def _check_same_start(self, trainer: L.Trainer) -> None:
        """Check that all ranks have found the same checkpoint, which each looks for before it knows of the others."""
        first = trainer.strategy.broadcast(self.found)
        raise_together(
            None
            if self.found == first
            else f"it found {self.found} on {socket.gethostname()}, and rank 0 found {first}. All nodes must see the "
            "same folder of checkpoints: set checkpoint.dirpath or trainer.default_root_dir to one that they share."
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.monitor, self.save_top_k = self._configured
        if self.monitor is not None and self.monitor.startswith("val/") and not _validates(trainer):
            rank_zero_warn(f"No validation data, so no {self.monitor}: keeping the newest checkpoint instead.")
            self.monitor = None
            self.save_top_k = min(self.save_top_k, 1)
        super().on_train_start(trainer, pl_module)
        if not _writes_nothing(trainer):
            self._inputs.begin(trainer, pl_module)
        self._signals.take_interrupts()
        logged, self._unlogged = self._unlogged, {}
        continue_tables(trainer, logged)

    # When --------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # A run resumed from here would skip the validation, or the end of the epoch, if these come next.
        if not is_accumulating(trainer) and not validation_or_epoch_end_follows(trainer):
            self._between_steps(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        known = self._monitor_candidates(trainer)
        if (problem := self._no_such_metric(known)) is not None:
            # Before training a misspelt one is found. One that is like none may still come: few rows were looked at.
            if trainer.sanity_checking and not nearest(self._configured[0], list(known), cutoff=0.9):
                return
            if not (trainer.sanity_checking or is_accumulating(trainer) or _writes_nothing(trainer)):
                self._save_last_checkpoint(trainer, known)  # What was trained is not lost.
            raise problem
        if trainer.sanity_checking:
            return
        if self.monitor is not None and self._compared_step != trainer.global_step and not _writes_nothing(trainer):
            self._compared_step = trainer.global_step
            self._save_topk_checkpoint(trainer, known)
        due = self._schedule.every < 1 or self._schedule.is_due(trainer.global_step)
        if is_accumulating(trainer):
            self._schedule.owed |= due and self._schedule.written != trainer.global_step
        else:
            self._between_steps(trainer, due=due)

    def _no_such_metric(self, known: dict[str, Tensor]) -> UserError | None:
        """The error if the metric to compare by should be among those of the validation and is not."""
        name = self._configured[0]
        if name is None or self.save_top_k == 0 or not name.startswith("val/") or name in known:
            return None
        return UserError(
            f"checkpoint.monitor={name} is not among the metrics of the validation. Set it to one of "
            f"{', '.join(sorted(name for name in known if name.startswith('val/')))}, or to null to keep the newest "
            "checkpoint."
        )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        by_epochs = self._schedule.every < 1 and not _validates(trainer)
        # The last one tells a run that is started once more that there is nothing left to do.
        self._between_steps(trainer, due=by_epochs or _is_over(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._writer.finish_together()
        self._signals.leave_interrupts()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._signals.leave_interrupts()
        try:
            self._writer.finish()
        except UserError as error:
            exception.add_note(str(error))
        if trainer.is_global_zero and trainer.state.fn == "fit" and Path(str(self.dirpath)).is_dir():
            remove_leftovers(Path(str(self.dirpath)))  # On a full disk, room for other things.

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._writer.close()

    def _between_steps(self, trainer: L.Trainer, due: bool = False) -> None:
        """Write what is due; end the run if any rank was told to."""
        preempted = trainer.strategy.reduce_boolean_decision(self._signals.received is not None, all=False)
        due = due or preempted or self._schedule.is_due(trainer.global_step)
        if self._schedule.take(trainer.global_step, due) and not _writes_nothing(trainer):
            candidates = self._monitor_candidates(trainer)
            if self.monitor is None:
                self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        if preempted:
            self._writer.finish_together()
            told_by = self._signals.received or signal.SIGTERM  # Where another rank was told.
            rank_zero_info(
                f"{told_by.name}: stopped after optimizer step {trainer.global_step}. Checkpoint: "
                f"{self.last_model_path or 'none, because checkpoint.save_last is false'}"
            )
            raise SIGTERMException(128 + told_by)

    # What --------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        reports = getattr(getattr(trainer, "datamodule", None), "reports", {})
        checkpoint["data_reports"] = {split: report.summary() for split, report in reports.items()}
        accumulated = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches
        checkpoint["accumulated_batches"] = accumulated if is_accumulating(trainer) else 0
        checkpoint[KEY] = self._inputs.digests()
        checkpoint["logged"] = logged_until_now(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        self._schedule.written = self._last_global_step_saved = checkpoint["global_step"]
        self._unlogged = checkpoint.get("logged", {})
        self._inputs.check(trainer, pl_module, checkpoint)
        if accumulated := checkpoint.get("accumulated_batches"):
            rank_zero_warn(
                f"The checkpoint was written after {accumulated} batches of an optimizer step, whose gradients it does "
                "not hold: that step is taken with the other batches alone. Resume from a last checkpoint instead."
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "resumable": self._resumable}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # What the killed run wrote after this checkpoint is written again, under the same names.
        self._enable_version_counter = self.dirpath != state_dict.get("dirpath")
        if self.dirpath == state_dict.get("dirpath"):
            self._resumable = list(state_dict.get("resumable", ()))

    # How ---------------------------------------------------------------------------------------------------------

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if not self.save_last:
            return
        several = self.keep_last > 1 or writes_shards(trainer.strategy)
        name = "last-step={step}" if several else "last"
        path = self.format_checkpoint_name(monitor_candidates, name)
        version = self.STARTING_VERSION
        while self._enable_version_counter and path != self.last_model_path and self.file_exists(path, trainer):
            path = self.format_checkpoint_name(monitor_candidates, name, ver=version)
            version += 1
        self.last_model_path = path
        # Only this run's own: another one's in the same folder may be of later steps, and is not to be removed.
        self._resumable = [*(other for other in self._resumable if other != path), path]
        self._save_checkpoint(trainer, path)
        self._schedule.written = trainer.global_step
        while len(self._resumable) > self.keep_last:
            self._remove_checkpoint(trainer, self._resumable.pop(0))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        path = Path(trainer.strategy.broadcast(filepath))
        self._writer.write(trainer, dump_checkpoint(trainer, weights_only=self.save_weights_only), path)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        self._writer.remove(trainer, filepath)


def _writes_nothing(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _is_over(trainer: L.Trainer) -> bool:
    """At the end of an epoch: whether there is no other one."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    limits = (epochs.processed, trainer.max_epochs), (trainer.global_step, trainer.max_steps)
    return trainer.should_stop or any(limit not in (None, -1) and count >= limit for count, limit in limits)


def _validates(trainer: L.Trainer) -> bool:
    """Whether there is validation data; sets its loader up where the first validation is some epochs off."""
    if not trainer.enable_validation:
        return False
    if trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    return sum(trainer.num_val_batches) > 0
