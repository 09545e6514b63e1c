"""What a run shows of itself: its progress, and how large the model is."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count


class TextProgress(TQDMProgressBar):
    """One line on a terminal. Leaves out ``v_num``, the last four characters of ``version_0``."""

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return _without_version(super().get_metrics(*args, **kwargs))


class ProgressLines(ProgressBar):
    """A line of text every few seconds, for a log file: a bar that is drawn over and over is no good there.

    The first batch and the last one of an epoch or an evaluation have a line in any case, and so have the metrics of a
    validation.

    Args:
        seconds: between two lines, unless a batch takes longer [s].
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._began = self._spoke = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return _without_version(super().get_metrics(*args, **kwargs))

    def on_train_epoch_start(self, *_: Any) -> None:
        self._begin()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epochs = trainer.max_epochs
        of_epochs = f"/{epochs}" if epochs is not None and epochs > 0 else ""
        self._say(f"epoch {trainer.current_epoch + 1}{of_epochs}", batch_idx, self.total_train_batches, trainer, module)

    def on_validation_epoch_start(self, *_: Any) -> None:
        self._begin()

    def on_test_epoch_start(self, *_: Any) -> None:
        self._begin()

    def on_predict_epoch_start(self, *_: Any) -> None:
        self._begin()

    def on_validation_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        if not trainer.sanity_checking:
            self._say_evaluated("validation", trainer.num_val_batches, *rest)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._enabled and not trainer.sanity_checking:
            print(", ".join(["validation", *self._metrics(trainer, module)]), flush=True)

    def on_test_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self._say_evaluated("test", trainer.num_test_batches, *rest)

    def on_predict_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self._say_evaluated("predict", trainer.num_predict_batches, *rest)

    def _say_evaluated(
        self,
        what: str,
        totals: Sequence[float],
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._say(what, batch_idx, totals[dataloader_idx])

    def _begin(self) -> None:
        self._began = time.monotonic()

    def _say(
        self,
        what: str,
        batch_idx: int,
        total: float,
        trainer: L.Trainer | None = None,
        module: L.LightningModule | None = None,
    ) -> None:
        done, now = batch_idx + 1, time.monotonic()
        if not self._enabled or (done not in (1, total) and now - self._spoke < self.seconds):
            return
        self._spoke = now
        parts = [what, f"batch {done}/{total:g}" if total != float("inf") else f"batch {done}"]
        if 1 < done < total < float("inf"):
            left = (now - self._began) / done * (total - done)
            parts.append(f"{timedelta(seconds=round(left))} left")
        if trainer is not None and module is not None:
            parts += self._metrics(trainer, module)
        print(", ".join(parts), flush=True)

    def _metrics(self, trainer: L.Trainer, module: L.LightningModule) -> list[str]:
        values = self.get_metrics(trainer, module).items()
        return [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values]


class ParameterCount(ModelSummary):
    """A line on the size of the model. Lightning's table would add ``Total FLOPs: 0``, which is not measured here."""

    @staticmethod
    def summarize(
        summary_data: Any,
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **_: Any,
    ) -> None:
        total, trained = (get_human_readable_count(n).strip() for n in (total_parameters, trainable_parameters))
        rank_zero_info(f"Model: {total} parameters ({model_size:.3g} MB), {trained} of them trained.")


def _without_version(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "v_num"}
