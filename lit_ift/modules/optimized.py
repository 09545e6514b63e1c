"""Optimizer, schedule and learning rate of a module."""

from typing import TYPE_CHECKING, Any, Final

from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ift.errors import UserError
from lit_ift.models.lora import is_adapted
from lit_ift.modules.optim import (
    LRSchedulerCallable,
    OptimizerCallable,
    WarmupSchedule,
    check_eps,
    lost_updates,
    parameter_groups,
    use_fused_kernels,
)
from lit_ift.modules.stepping import ExampleMeanModule
from lit_ift.modules.tuning import set_learning_rate

if TYPE_CHECKING:
    pass


LOST_UPDATES: Final = 0.1
"""Share of weights that half precision may keep from learning without a warning."""


def default_optimizer(params: Any) -> Optimizer:
    """AdamW at 2e-5 without weight decay."""
    return AdamW(params, lr=2e-5, weight_decay=0.0)


class OptimizedModule(ExampleMeanModule):
    """Builds optimizer and schedule by the functions that it is given.

    Attributes:
        model: a language model, once it is loaded.
    """

    model: Any
    lr_factors: dict[str, float]

    lora_rate: float = 2e-4
    """Learning rate that suits an adapter; one for all weights is about a tenth of it."""

    _build_optimizer: OptimizerCallable
    _build_scheduler: LRSchedulerCallable

    def __init__(self) -> None:
        super().__init__()
        self._lr: float | None = None
        self.lr_factors = {}
        self._vector_names: frozenset[str] = frozenset()

    @property
    def lr(self) -> float | None:
        """Peak learning rate instead of the optimizer's own; None leaves that. ``Tuner.lr_find`` sets it."""
        return self._lr

    @lr.setter
    def lr(self, rate: float | None) -> None:
        self._lr = rate
        if rate is not None and self._trainer is not None and self.trainer.optimizers:
            set_learning_rate(self.trainer, rate)
            self.remember_configuration(self.trainer.optimizers[0])

    def on_train_start(self) -> None:
        # A tuner may have changed the size of batches, or the learning rate, since the schedule was made.
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupSchedule) and config.scheduler.is_bound:
                config.scheduler.bind(self.total_steps())
        super().on_train_start()

    def build_optimizer(self) -> Optimizer:
        """The optimizer of the weights that train.

        Raises:
            UserError: it refuses its options.
        """
        try:
            optimizer = self._build_optimizer(parameter_groups(self, self._vector_names, self.lr_factors))
        except ValueError as error:  # As torch's have it for a learning rate below 0.
            raise UserError(f"The optimizer refuses its options: {error}") from error
        check_eps(optimizer)
        use_fused_kernels(optimizer)
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.build_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = (group["lr"] if self._lr is None else self._lr) * group.get("lr_factor", 1.0)
        scheduler = self._build_scheduler(optimizer)
        for option, made, kind in (("optimizer", optimizer, Optimizer), ("lr_scheduler", scheduler, LRScheduler)):
            if not isinstance(made, kind):
                raise UserError(f"{option} returned {type(made).__name__} {made!r}, where {kind.__name__} is needed.")
        if isinstance(scheduler, WarmupSchedule) and scheduler.needs_total_steps:
            scheduler.bind(self.total_steps())
        self.remember_configuration(optimizer)
        share, rate = lost_updates(optimizer)
        if share > LOST_UPDATES:
            rank_zero_warn(
                f"{share:.0%} of the trained weights would not move: they are kept in half precision, in which a step "
                f"of the learning rate's size ({rate:g}) is rounded away. Set trainer.precision=bf16-mixed and leave "
                "model.dtype at float32, which computes in bfloat16 and keeps the weights in float32."
            )
        if is_adapted(self.model) and rate < self.lora_rate / 4:
            rank_zero_warn(
                f"The learning rate {rate:g} is one for training all weights. An adapter learns little with it: set "
                f"model.optimizer's lr to about {self.lora_rate:g}, as configs/lora/lora.yaml does for SFT and IFT."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
