"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ift.errors import UserError
from lit_ift.modules.by_name import factor_of
from lit_ift.options import CheckedOptions, NonNegative, PositiveInt

OptimizerCallable = Callable[[Iterable], Optimizer]  # type: ignore[type-arg]
"""Builds an optimizer from parameter groups; in YAML, a ``class_path`` with ``init_args``."""
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]
"""Builds a scheduler from the optimizer, stepped after every optimizer step."""


_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Types of devices that torch has fused kernels for."""
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_OPTIONS = ("lr", "initial_lr", "weight_decay", "betas", "momentum", "eps", "alpha", "dampening", "nesterov")
"""What a configuration says of an optimizer; other entries of a parameter group may be its running state."""


def plain_name(name: str) -> str:
    """A parameter's name without what ``torch.compile`` and activation checkpointing put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def vector_names(module: nn.Module) -> frozenset[str]:
    """Names of all parameters of fewer than two dimensions (norms, biases), taken before a strategy flattens them."""
    return frozenset(name for name, parameter in module.named_parameters() if parameter.ndim < 2)


def parameter_groups(
    module: nn.Module, vectors: Collection[str], factors: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups, with and without weight decay; two more for each learning rate.

    Args:
        module: may be wrapped by ``torch.compile`` or activation checkpointing.
        vectors: names of the parameters for the second group, as ``vector_names`` gives them.
        factors: by patterns of names within ``module.model``, what the learning rate is multiplied by; the first one
            that matches counts. Groups have it as ``lr_factor``.

    Raises:
        ValueError: nothing is trainable.
    """
    found: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            name = plain_name(name)
            factor = factor_of(name.removeprefix("model."), factors or {})
            found.setdefault((factor, name in vectors), []).append(parameter)
    if not found:
        raise ValueError("no parameter requires a gradient: nothing to train")
    # Those of the optimizer's own learning rate come first: it is the one that is logged.
    order = sorted(found, key=lambda key: (key[0] is not None, key[0] or 0.0, key[1]))
    return [
        {
            "params": found[factor, is_vector],
            **({"weight_decay": 0.0} if is_vector else {}),
            **({} if factor is None else {"lr_factor": factor}),
        }
        for factor, is_vector in order
    ]


def lost_updates(optimizer: Optimizer) -> tuple[float, float]:
    """How many of the trained weights are held so coarsely that a step of the size of the learning rate is lost.

    Adaptive optimizers take steps of about that size. A weight w in bfloat16 stays what it is if the step is less than
    half the distance to its neighbours, which is at least abs(w)/256 away.

    Returns:
        The share of such weights in [0, 1], of those in bfloat16 or float16 on this rank (0 if there are none), and
        the largest learning rate.
    """
    lost, total, largest = 0, 0, 0.0
    for group in optimizer.param_groups:
        rate = float(group.get("initial_lr", group["lr"]))
        largest = max(largest, rate)
        for parameter in group["params"]:
            if parameter.dtype not in (torch.bfloat16, torch.float16):
                continue
            local = parameter.detach()
            local = local.to_local() if isinstance(local, DTensor) else local
            some = local.flatten()[:: max(1, local.numel() // 10_000)]
            lost += int((some.abs() > 4 * rate / torch.finfo(local.dtype).eps).sum())
            total += some.numel()
    return lost / max(total, 1), largest


def check_eps(optimizer: Optimizer) -> None:
    """Check that what one of torch's optimizers adds to a denominator is not 0 in the dtype of its weights.

    Their state has that dtype: where a gradient's square is 0 too, the first step would be 0 / 0.

    Raises:
        UserError: it is 0.
    """
    if not any(cls.__module__.startswith("torch.optim.") for cls in type(optimizer).__mro__ if cls is not Optimizer):
        return  # Others may keep their state in float32.
    for group in optimizer.param_groups:
        eps = group.get("eps")
        for dtype in {parameter.dtype for parameter in group["params"]} if isinstance(eps, float) and eps > 0 else ():
            if torch.tensor(eps, dtype=dtype) == 0:
                raise UserError(
                    f"{type(optimizer).__name__}'s eps={eps:g} is 0 in {str(dtype).removeprefix('torch.')}, the dtype "
                    "of the weights (trainer.precision=16-true, or model.dtype), so the first step would make them "
                    "NaN. Set trainer.precision=bf16-mixed or bf16-true, or eps of the optimizer to 1e-4 or more."
                )


def use_fused_kernels(optimizer: Optimizer) -> None:
    """Let torch's Adam and AdamW update all weights in one kernel, unless ``fused`` or ``foreach`` says otherwise.

    It is set after they are made: they then take no part in unscaling float16 gradients, which Lightning would not let
    go together with clipping.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        unsaid = all(group[name] is None for name in ("fused", "foreach"))
        plain = not (group["differentiable"] or group["capturable"])
        if unsaid and plain and all(p.device.type in _FUSED and p.is_floating_point() for p in group["params"]):
            group["fused"] = True


def configured_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each parameter group as they are now, to compare with after a checkpoint was restored."""
    return [{name: group[name] for name in _OPTIONS if name in group} for group in optimizer.param_groups]


def keep_configuration(
    optimizer: Optimizer, schedulers: Sequence[Any], configured: Sequence[dict[str, Any]]
) -> list[str]:
    """Put configured options back where a checkpoint restored others; how far a schedule has got stays.

    Args:
        optimizer: as restored.
        schedulers: its schedulers, as restored.
        configured: what ``configured_options`` said before.

    Returns:
        A line for each option that differed, ``lr: 1e-05 -> 0.5``.

    Raises:
        UserError: the checkpoint's optimizer has other options.
    """
    differences: dict[str, None] = {}
    # Some schedules move betas or momentum as well: what a checkpoint says of these is how far they have got.
    cycled = {"betas", "momentum"} if any(getattr(s, "cycle_momentum", False) for s in schedulers) else set()
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        if missing := [name for name in options if name not in group]:
            raise UserError(
                f"The checkpoint was written with another optimizer: it has no {', '.join(missing)}. Resume with the "
                "same optimizer class, or start anew from the exported model."
            )
        peak = "initial_lr" if "initial_lr" in options else "lr"
        before, after = group[peak], options[peak]
        for name, value in options.items():
            if name in cycled or (name == "lr" and peak == "initial_lr"):
                continue
            if group[name] != value:
                differences[f"{'lr' if name == peak else name}: {group[name]} -> {value}"] = None
            group[name] = value
        if peak == "initial_lr" and before != after:
            group["lr"] = group["lr"] * after / before if before else options["lr"]
    for scheduler in schedulers:
        if differences and hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        if isinstance(scheduler, WarmupSchedule):
            scheduler.apply()
    return list(differences)


class WarmupSchedule(CheckedOptions, LRScheduler):
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

    def __init__(self, optimizer: Optimizer, warmup: NonNegative = 0.1, total_steps: PositiveInt | None = None) -> None:
        self.warmup = warmup
        self.total_steps = total_steps
        self.is_bound = False
        """Whether `total_steps` is what the Trainer estimates."""
        super().__init__(optimizer)

    @property
    def needs_total_steps(self) -> bool:
        """True while the length of the run matters and is not known."""
        return self.total_steps is None and (self.decays or 0 < self.warmup < 1)

    @property
    def warmup_steps(self) -> int | None:
        """Optimizer steps of the warm-up; None while they are a share of a length that is not known."""
        if self.warmup >= 1 or self.warmup == 0:
            return int(self.warmup)
        return None if self.total_steps is None else round(self.warmup * self.total_steps)

    def bind(self, total_steps: int) -> None:
        """Set the length of the run."""
        self.total_steps = total_steps
        self.is_bound = True
        self.apply()

    def apply(self) -> None:
        """Set the learning rates of the current step."""
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def decay(self, progress: float) -> float:
        """Factor after warm-up; ``progress`` runs from 0 to 1."""
        del progress
        return 1.0

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at optimizer step ``step``."""
        total, warmup_steps = self.total_steps, self.warmup_steps
        if warmup_steps is None:
            return 1.0  # Before `bind`; the first optimizer step comes after it.
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
        return {k: v for k, v in super().state_dict().items() if k not in ("total_steps", "warmup", "is_bound")}


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
