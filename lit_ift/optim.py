"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OptimizerCallable = Callable[[Iterable], Optimizer]  # type: ignore[type-arg]
"""Builds an optimizer from parameter groups; in YAML, a ``class_path`` with ``init_args``."""
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]
"""Builds a scheduler from the optimizer, stepped after every optimizer step."""


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, and vectors (norms, biases) which get no weight decay.

    Raises:
        ValueError: nothing is trainable.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("no parameter requires a gradient: nothing to train")
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class WarmupSchedule(LRScheduler):
    """Linear warm-up to the optimizer's learning rate, then what ``decay`` says until the end of training.

    At step s (0-based) of S with W warm-up steps the factor is (s+1)/(W+1) while s < W, so that the first step
    already learns; afterwards ``decay((s-W)/(S-W))``.

    Args:
        optimizer: the optimizer, holding the peak learning rates.
        warmup: a share of all steps if below 1, else a number of steps.
        total_steps: optimizer steps of the whole run. None: the module fills in what the Trainer estimates.

    Raises:
        ValueError: ``warmup`` is negative.
    """

    decays = True
    """False where ``decay`` is 1 throughout."""

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, total_steps: int | None = None) -> None:
        if warmup < 0:
            raise ValueError(f"warmup={warmup} is negative")
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer)

    @property
    def needs_total_steps(self) -> bool:
        """True while the length of the run matters and is not known."""
        return self.total_steps is None and (self.decays or 0 < self.warmup < 1)

    def bind(self, total_steps: int) -> None:
        """Set the length of the run and apply it to the current step."""
        self.total_steps = total_steps
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def decay(self, progress: float) -> float:
        """Factor after warm-up; ``progress`` runs from 0 to 1."""
        del progress
        return 1.0

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at optimizer step ``step``."""
        total = self.total_steps
        if self.warmup >= 1:
            warmup_steps = int(self.warmup)
        elif total is None:
            return 1.0  # Before `bind`; the first optimizer step comes after it.
        else:
            warmup_steps = round(self.warmup * total)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if total is None:
            return 1.0
        return self.decay(min(1.0, (step - warmup_steps) / max(1, total - warmup_steps)))

    def get_lr(self) -> list[float | Tensor]:
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        # The length of the run and the warm-up are configuration: a resumed run keeps its own.
        return {k: v for k, v in super().state_dict().items() if k not in ("total_steps", "warmup")}


class ConstantSchedule(WarmupSchedule):
    """Warm-up, then the peak learning rate."""

    decays = False


class LinearSchedule(WarmupSchedule):
    """Warm-up, then linearly down to 0 at the end of training."""

    def decay(self, progress: float) -> float:
        return 1.0 - progress


class CosineSchedule(WarmupSchedule):
    """Warm-up, then half a cosine down to 0 at the end of training (arXiv:2405.11870, Table 4)."""

    def decay(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))
