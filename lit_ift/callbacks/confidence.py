"""How confident a model was of each example in the course of a run."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_ift.errors import UserError
from lit_ift.modules.sft import SFTModule
from lit_ift.options import CheckedOptions
from lit_ift.ranks import of_every_rank

_LARGEST_NLL = 700.0
"""The exponential of more is no finite float64."""


class ConfidenceRecorder(CheckedOptions, Callback):
    """Writes each row's confidence in a run of SFT, by which ``SFTMixModule`` pairs examples (arXiv:2410.05248).

    ``confidence = -(1/C) sum_c perplexity_c`` over C epochs, the perplexity being that of the row's trained tokens.
    The file has a line ``{"row_id": ..., "confidence": ...}`` for each row and is written when ``fit`` ends.

    Args:
        stage: ``train`` takes the loss that each row had when it was trained on, which costs nothing. ``val`` takes
            that of every validation; give the training rows as validation data too, and every epoch's checkpoint
            is asked of all rows, as in the paper.
        path: of the file; ``<log_dir>/confidence.jsonl`` by default.

    Raises:
        ValueError: ``stage`` is unknown.
    """

    def __init__(self, stage: Literal["train", "val"] = "train", path: str | Path | None = None) -> None:
        self.stage = stage
        self.path = Path(path) if path is not None else None
        self._folder: Path | None = None
        self._latest: list[tuple[list[str], Tensor]] = []
        self._passes: dict[str, tuple[float, int]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and not (isinstance(pl_module, SFTModule) and pl_module.is_plain):
            raise UserError(
                "ConfidenceRecorder needs SFTModule with loss=nll and input=true_tokens, whose losses are the rows' "
                f"negative log-likelihoods; {type(pl_module).__name__} has others."
            )
        self._passes = {}  # A checkpoint's come after this, an earlier fit's do not count.

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._folder = Path(trainer.log_dir) if trainer.log_dir is not None else None
        if self.path is None and self._folder is None:
            raise UserError("The run has no folder to write confidence.jsonl to: set ConfidenceRecorder's path.")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stage == "train":
            self._latest = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stage == "val":
            self._latest = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.stage == "train":
            self._latest.append(pl_module.latest_losses)  # type: ignore[arg-type]

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.stage == "val" and not trainer.sanity_checking:
            self._latest.append(pl_module.latest_losses)  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stage == "train":
            self._close_pass()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.stage == "val" and not trainer.sanity_checking:
            self._close_pass()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self.path or (self._folder / "confidence.jsonl" if self._folder is not None else None)
        if trainer.is_global_zero and path is not None and self._passes:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                for row_id, confidence in self.confidence().items():
                    line = {"row_id": row_id, "confidence": confidence}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            rank_zero_info(f"Confidence of {len(self._passes)} rows: {path}")

    def confidence(self) -> dict[str, float]:
        """Negative mean perplexity of each row over the passes that are complete, by row id."""
        return {row_id: -total / count for row_id, (total, count) in self._passes.items()}

    def state_dict(self) -> dict[str, Any]:
        # Complete passes. A run resumed within an epoch counts only those of its rows that come after.
        return {"passes": self._passes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._passes = {row_id: (total, count) for row_id, (total, count) in state_dict["passes"].items()}

    def _close_pass(self) -> None:
        """Add the perplexities of a pass over the data, from all ranks."""
        losses = torch.cat([values for _, values in self._latest]).tolist() if self._latest else []
        row_ids = [row_id for ids, _ in self._latest for row_id in ids]
        self._latest = []
        # A row without an id only keeps ranks in step. One that fills up a rank is seen twice and counts once.
        own = {row_id: nll for row_id, nll in zip(row_ids, losses, strict=True) if row_id}
        merged = {row_id: nll for of_rank in of_every_rank(own) for row_id, nll in of_rank.items()}
        for row_id, nll in merged.items():
            total, count = self._passes.get(row_id, (0.0, 0))
            self._passes[row_id] = total + math.exp(min(nll, _LARGEST_NLL)), count + 1
