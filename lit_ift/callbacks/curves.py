"""Training curves as a picture and a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_ift.callbacks.panels import draw_panels
from lit_ift.lightning_private import metrics_of_this_step


class LossCurves(Callback):
    """Draws loss and metrics against the optimizer step when ``fit`` ends, also when it ends by an error.

    Writes ``<log_dir>/curves.png``, and the numbers behind it to ``curves.csv`` (step, metric, value). Long lines are
    smoothed, with the values in pale behind them. What never changed has no panel: its value stands below.

    Args:
        metrics: what to draw, a panel each; names of one panel are joined by ``+``, as in
            ``train/loss+val/loss``. ``*`` stands for any characters, such as the name of a part of a mixed run.
            Names that were never logged are left out.
        enabled: false draws nothing.
    """

    def __init__(
        self,
        metrics: Sequence[str] = (
            "train/loss+val/loss",
            "train/*/loss+val/*/loss",
            "train/*sft_loss+train/*fused_loss+val/*sft_loss",
            "train/*rewards/accuracies+val/*rewards/accuracies",
            "train/*rewards/chosen+train/*rewards/rejected",
            "train/*token_accuracy+val/*token_accuracy",
            "train/grad_norm",
            "train/*lam",
            "train/lr",
        ),
        enabled: bool = True,
    ) -> None:
        self.panels = [tuple(panel.split("+")) for panel in metrics]
        self.enabled = enabled
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.folder: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.points = {}  # A checkpoint's points come after this, an earlier fit's do not count.

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # All ranks ask at once, because Lightning answers with a broadcast; later a single rank may have failed.
        self.folder = Path(trainer.log_dir) if trainer.log_dir is not None else None

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = {name: [tuple(p) for p in points] for name, points in state_dict["points"].items()}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._record(trainer, metrics_of_this_step(trainer), "train/")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, trainer.callback_metrics, "val/")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        try:
            self._write()
        except OSError as error:  # A full disk may be what the run ended by, which is to be said.
            rank_zero_warn(f"The training curves could not be written: {error}")

    def _record(self, trainer: L.Trainer, metrics: Mapping[str, Any], prefix: str) -> None:
        for name, value in metrics.items():
            points = self.points.setdefault(name, []) if name.startswith(prefix) else None
            # One point a step, though a step may have several micro-batches.
            if points is not None and (not points or points[-1][0] < trainer.global_step):
                points.append((trainer.global_step, float(value)))

    @rank_zero_only
    def _write(self) -> None:
        if not self.enabled or not self.points or self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "metric", "value"])
            writer.writerows((step, name, value) for name, points in self.points.items() for step, value in points)
        path = self.folder / "curves.png"
        draw_panels(self.points, self.panels, path)
        rank_zero_info(f"Training curves: {path}")
