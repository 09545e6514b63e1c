"""A callback that writes down what a run does, as it does it, and can slow it down."""

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class Trace(Callback):
    """Appends ``step loss`` of every optimizer step on rank 0, the loss bit by bit.

    Args:
        path: file to append to.
        seconds: to wait after each step [s].
    """

    def __init__(self, path: str, seconds: float = 0.0) -> None:
        self.path = Path(path)
        self.seconds = seconds
        self._last = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        if trainer.is_global_zero:
            with self.path.open("a") as file:
                file.write(f"{trainer.global_step} {float(trainer.callback_metrics['train/loss']).hex()}\n")
                file.flush()
                os.fsync(file.fileno())
        time.sleep(self.seconds)
