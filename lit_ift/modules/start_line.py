"""What a run is about to do, in one line before its first step."""

import logging
import math
from typing import Any, Final

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_ift.modules.optim import WarmupSchedule

logger = logging.getLogger("lit_ift")

FEW_STEPS: Final = 20
"""Optimizer steps below which a run hardly learns anything, which is said."""


def announce_start(trainer: L.Trainer, note: str = "") -> None:
    """Print rows, rows and tokens of a step, steps, epochs, warm-up and the run's folder; warn of few steps.

    Rows and tokens are told of data modules that keep a report. A note follows. All ranks must call it.
    """
    folder = trainer.log_dir or trainer.default_root_dir  # Lightning answers with a broadcast, so all ranks ask.
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    steps = trainer.estimated_stepping_batches
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    said = [
        *_rows(trainer, per_epoch),
        steps_told(steps, per_epoch),
        *_warmup(trainer),
        f"in {folder}",
    ]
    begin = "Training" if trainer.global_step == 0 else f"Training goes on after step {trainer.global_step:,}"
    rank_zero_info(f"{begin}: {', '.join(said)}.{note and f' {note}'}")
    if steps < FEW_STEPS:
        _warn_of_few_steps(int(steps))


@rank_zero_only
def _warn_of_few_steps(steps: int) -> None:
    logger.warning(
        "The whole run makes %s only, which is too little to learn much. Take fewer rows a step (data.batch_size, "
        "trainer.accumulate_grad_batches), more rows, or more epochs (trainer.max_epochs, trainer.max_steps).",
        _counted(steps, "optimizer step"),
    )


def _rows(trainer: L.Trainer, steps_per_epoch: int) -> list[str]:
    """Rows of the data set, and rows and tokens of a step on average."""
    data: Any = getattr(trainer, "datamodule", None)
    report = getattr(data, "reports", {}).get("train")
    if report is None:
        return []
    rows = sum(source.rows for source in report.sources.values())
    of_epoch = sum(source.rows * source.weight for source in report.sources.values())
    if not rows or not of_epoch or not steps_per_epoch:
        return []
    size = getattr(data, "batch_size", None)
    nominal = None if size is None else size * trainer.accumulate_grad_batches * trainer.world_size
    # Of so few rows that they fill no step, all are in one.
    a_step = min(of_epoch, nominal if nominal is not None else of_epoch / steps_per_epoch)
    return rows_told(rows, a_step, report.tokens_per_epoch * a_step / of_epoch, is_about=nominal is None)


def rows_told(rows: float, a_step: float, tokens: float, *, is_about: bool) -> list[str]:
    """Rows of the data set, and rows and tokens of a step, in words."""
    about = "about " if is_about else ""
    return [
        _counted(round(rows), "row"),
        f"{about}{round(a_step):,} a step (about {_counted(round(tokens), 'token')})",
    ]


def steps_told(steps: float, steps_per_epoch: float) -> str:
    """Optimizer steps and epochs, in words."""
    if not math.isfinite(steps):
        return "steps without end"
    epochs = steps / steps_per_epoch if steps_per_epoch else 0.0
    told = f"{epochs:.2f}".rstrip("0").rstrip(".")
    return f"{_counted(int(steps), 'step')} in {told} epoch{'' if told == '1' else 's'}"


def _warmup(trainer: L.Trainer) -> list[str]:
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    found = [s.warmup_steps for s in schedulers if isinstance(s, WarmupSchedule)]
    return [f"{_counted(n, 'warm-up step')}" for n in found if n is not None]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
