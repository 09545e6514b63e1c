"""Training checkpoints with the defaults that a fine-tuning run wants."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn


class RunCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by ``val/loss``, and the last one.

    Without validation data there is nothing to compare: the newest checkpoint is kept instead, and that is said.
    A checkpoint that can resume training also holds, under ``data_reports``, what became of the rows of each split.

    Args:
        dirpath: folder; ``<log_dir>/checkpoints`` by default.
        filename: as for ``ModelCheckpoint``.
        monitor: the metric to compare by; None keeps the newest.
        mode: whether smaller or larger is better.
        save_top_k: how many of the best to keep; -1 keeps all, 0 none.
        save_last: also keep ``last.ckpt``.
        save_weights_only: leave the optimizer out; such a checkpoint cannot resume training.
        every_n_train_steps: how often, in optimizer steps; after each validation by default.
    """

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

        self._configured = monitor, save_top_k

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.monitor, self.save_top_k = self._configured
        if self.monitor is not None and self.monitor.startswith("val/") and not _validates(trainer):
            rank_zero_warn(f"No validation data, so no {self.monitor}: keeping the newest checkpoint instead.")
            self.monitor = None
            self.save_top_k = min(self.save_top_k, 1)
        super().on_train_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        reports = getattr(getattr(trainer, "datamodule", None), "reports", {})
        checkpoint["data_reports"] = {split: report.summary() for split, report in reports.items()}


def _validates(trainer: L.Trainer) -> bool:
    """Whether there is validation data; sets its loader up where the first validation is some epochs off."""
    if not trainer.enable_validation:
        return False
    if trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    return sum(trainer.num_val_batches) > 0
