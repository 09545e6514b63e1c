"""Run by torchrun or alone: trains a tiny model on a tiny file and writes what rank 0 logged.

Usage: ddp_script.py MODEL DATA OUT BATCH_SIZE ACCUMULATE OBJECTIVE REDUCTION
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_ift import IFTModule, InstructionDataModule, SFTModule
from lit_ift.modules.optim import ConstantSchedule


class Record(Callback):
    """Metrics of every optimizer step and every validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[float] = []
        self.rows: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.rows += batch["row_ids"]
        if trainer.global_step > len(self.steps):
            names = ("train/loss", "train/grad_norm", "train/token_accuracy")
            self.steps.append({name: float(trainer.callback_metrics[name]) for name in names})

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            self.validations.append(float(trainer.callback_metrics["val/loss"]))


def main(model: str, data: str, out: str, batch_size: str, accumulate: str, objective: str, reduction: str) -> None:
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", 1))
    module_class = {"ift": IFTModule, "sft": SFTModule}[objective]
    module = module_class(
        model,
        reduction=reduction,
        dtype="float64",
        # Without adaptive steps, so that a wrong scale of the gradient cannot hide.
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
        lr_scheduler=lambda optimizer: ConstantSchedule(optimizer, warmup=0),
    )
    record = Record()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=2,
        accumulate_grad_batches=int(accumulate),
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    trainer.fit(module, datamodule=InstructionDataModule(train=data, val=data, batch_size=int(batch_size)))
    weights = torch.cat([p.detach().flatten() for p in module.model.parameters()])
    content = {
        "steps": record.steps,
        "validations": record.validations,
        "rows": record.rows,
        "weights": [weights.sum().item(), weights.double().norm().item()],
    }
    Path(f"{out}.{trainer.global_rank}").write_text(json.dumps(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
