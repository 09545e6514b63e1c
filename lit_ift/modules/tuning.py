"""What Lightning's tuners ask of a module: trials, and a learning rate and a batch size that change after set-up."""

import math

import lightning as L
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.tuner import lr_finder

from lit_ift.errors import UserError
from lit_ift.modules.optim import WarmupSchedule


def searches_learning_rate(trainer: L.Trainer) -> bool:
    """Whether these are the steps of a search for a learning rate, which goes up until training diverges."""
    return any(type(callback).__module__ == lr_finder.__name__ for callback in trainer.callbacks)  # type: ignore[attr-defined]


def is_trial(trainer: L.Trainer) -> bool:
    """Whether these are a tuner's steps: it takes away the callbacks that a fit has."""
    return not trainer.callbacks or searches_learning_rate(trainer)  # type: ignore[attr-defined]


def set_learning_rate(trainer: L.Trainer, rate: float) -> None:
    """Make `rate` the peak learning rate of optimizers and schedules that are set up already."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = rate * group.get("lr_factor", 1.0)
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
        if isinstance(scheduler, WarmupSchedule):
            scheduler.apply()


def accumulated_steps(trainer: L.Trainer) -> float:
    """Optimizer steps of the whole run; infinite where it has no end."""
    total = float(trainer.estimated_stepping_batches)  # This also sets the loader up.
    epochs = trainer.max_epochs
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler) and epochs is not None and epochs > 0:
            batches = trainer.num_training_batches
            counts = [math.ceil(batches / callback.get_accumulate_grad_batches(epoch)) for epoch in range(epochs)]
            total = min(sum(counts), trainer.max_steps if trainer.max_steps > 0 else math.inf)
    return total


def check_callbacks(trainer: L.Trainer) -> None:
    """Refuse Lightning's callbacks that cannot work with a language model or the run's options.

    Raises:
        UserError: says why, and what to use instead.
    """
    budget = getattr(getattr(trainer, "datamodule", None), "tokens_per_batch", None)
    shards = isinstance(trainer.strategy, ModelParallelStrategy)
    copies = "it copies the whole model, which FSDP2 has sharded. Use trainer.strategy=ddp"
    for kind, is_refused, why in (
        (
            BackboneFinetuning,
            True,
            "it thaws a module's `backbone`, and a language model has none: every layer is trained from the start. To "
            "train less, use model.lora or HalfFineTuning",
        ),
        (
            BatchSizeFinder,
            budget is not None,
            f"it looks for data.batch_size, and data.tokens_per_batch={budget} says how large a batch is. Leave one "
            "out",
        ),
        (WeightAveraging, shards, copies),
        (StochasticWeightAveraging, shards, copies),
    ):
        if is_refused and any(isinstance(callback, kind) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(f"{kind.__name__} cannot be used here: {why}.")
