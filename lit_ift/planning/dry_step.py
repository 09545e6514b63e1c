"""Memory and work of a module's second training step, without weights and without computing.

The module is the one of the configuration, and its step the one that a Trainer takes. It is run with two small numbers
of layers: every further layer takes as much as the last one, so that two tell of any number.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor

from lit_ift.models.head import base_model
from lit_ift.models.source import ModelSource
from lit_ift.modules.base import CausalLMModule
from lit_ift.planning.dry_run import DryRun, Part, Work

Phase = Literal["forward", "backward", "update"]
PHASES: Final[tuple[Phase, ...]] = ("forward", "backward", "update")

_HALF: Final = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


@dataclass(frozen=True)
class StepCost:
    """A training step of one micro-batch on one device, without sharding.

    Attributes:
        parameters: of the model.
        trained: those that learn.
        layer_parameters: those of one layer.
        num_layers: number of layers.
        memory: bytes alive at the peak of each phase, by part.
        work: of forward and backward pass.
        update: bytes that the optimizer reads and writes.
        tokens: of the micro-batch, padding apart.
        mean_square: mean of the squared lengths of its rows over their mean length [tokens].
    """

    parameters: float
    trained: float
    layer_parameters: float
    num_layers: int
    memory: dict[Phase, dict[Part, float]]
    work: Work
    update: float
    tokens: int
    mean_square: float = 0.0

    @property
    def root_parameters(self) -> float:
        """Those outside of the layers."""
        return self.parameters - self.num_layers * self.layer_parameters

    @property
    def peak(self) -> dict[Part, float]:
        """Bytes alive at the highest peak, by part."""
        return max(self.memory.values(), key=lambda parts: sum(parts.values()))


def step_cost(
    make_module: Callable[[], CausalLMModule],
    source: ModelSource,
    batch: Mapping[str, Any],
    *,
    precision: str,
    accumulates: bool,
    on_gpu: bool = False,
) -> StepCost:
    """Cost of a step of a model of any size, in seconds.

    Args:
        make_module: makes the module as the configuration says.
        source: of the model, with its configuration.
        batch: of the largest size that the data gives.
        precision: of the Trainer.
        accumulates: whether an optimizer step has several micro-batches.
        on_gpu: take the kernels of the optimizer that torch takes there.
    """
    layers = source.config.get_text_config().num_hidden_layers
    stride = max(1, int(make_module().gradient_checkpointing))  # Every n-th layer recomputes: the pattern repeats then.
    if layers < 2 * stride:
        stride = layers

    def at(depth: int) -> StepCost:
        cut = replace(source, config=shallow(source.config, depth))
        return _cost(make_module, cut, batch, precision, accumulates, on_gpu)

    first = at(stride)
    return first if stride == layers else _further(first, at(2 * stride), layers, stride)


def shallow(config: Any, layers: int) -> Any:
    """A model's configuration with its first layers alone."""
    found = copy.deepcopy(config)
    text = found.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return found


def _further(first: StepCost, second: StepCost, layers: int, stride: int) -> StepCost:
    """The cost with more layers, each of which takes as much as those between two costs."""
    steps = (layers - stride) / stride

    def line(a: float, b: float) -> float:
        return a + steps * (b - a)

    return StepCost(
        parameters=line(first.parameters, second.parameters),
        trained=line(first.trained, second.trained),
        layer_parameters=(second.parameters - first.parameters) / stride,
        num_layers=layers,
        memory={
            phase: {
                part: line(first.memory[phase].get(part, 0), second.memory[phase].get(part, 0))
                for part in second.memory[phase]
            }
            for phase in PHASES
        },
        work=Work(**{name: line(value, vars(second.work)[name]) for name, value in vars(first.work).items()}),
        update=line(first.update, second.update),
        tokens=first.tokens,
        mean_square=first.mean_square,
    )


def _cost(
    make_module: Callable[[], CausalLMModule],
    source: ModelSource,
    batch: Mapping[str, Any],
    precision: str,
    accumulates: bool,
    on_gpu: bool,
) -> StepCost:
    run = DryRun()
    with run.on():
        module = make_module()
        module.model_source = source  # Looked up already; `_load` takes it from here.
        module.configure_model()
        if precision.endswith("-true") and precision.partition("-")[0] in _HALF:
            module.to(_HALF[precision.partition("-")[0]])
        module.one_sweep = None if precision.startswith("16") else True
        run.vocabulary, run.hidden = module.model.get_output_embeddings().weight.shape
        memory, work, update = _second_step(run, module, _faked(run, batch), precision, accumulates, on_gpu)
    parameters, lengths = [*module.model.parameters()], _lengths(batch)
    return StepCost(
        parameters=float(sum(p.numel() for p in base_model(module.model).parameters())),
        trained=float(sum(p.numel() for p in parameters if p.requires_grad)),
        layer_parameters=0.0,
        num_layers=source.config.get_text_config().num_hidden_layers,
        memory=memory,
        work=work,
        update=update,
        tokens=sum(lengths),
        mean_square=sum(n * n for n in lengths) / max(sum(lengths), 1),
    )


def _second_step(
    run: DryRun, module: CausalLMModule, batch: Any, precision: str, accumulates: bool, on_gpu: bool
) -> tuple[dict[Phase, dict[Part, float]], Work, float]:
    """As Lightning takes it: the gradients of the step before are dropped after the forward pass."""
    memory: dict[Phase, dict[Part, float]] = {}
    live = run.live
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = module.build_optimizer()
    if on_gpu:
        for group in optimizer.param_groups:
            if "foreach" in group and group["foreach"] is None and not group.get("fused"):
                group["foreach"] = True
    with run.counting():
        for tensor in _held(module):
            live.name(tensor, "weights")
        for value in _tensors(batch):
            live.name(value, "activations")
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
            live.name(parameter.grad, "gradients")
            named: Any = parameter
            named.register_post_accumulate_grad_hook(lambda p: live.name(p.grad, "gradients"))
        optimizer.step()
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    live.name(value, "optimizer")

        def ended(phase: Phase) -> Work:
            memory[phase], done = {**live.peak}, run.work
            live.restart()
            run.work = Work()
            return done

        ended("update")
        with _autocast(precision):
            with run.pausing():
                module.check_batch(batch)  # As in the first step of a run.
            module._batch_checked = True
            losses, weights, _ = module._weighted_losses(batch, 1)
            total = (losses * weights).sum()
        del losses, weights
        of_forward = ended("forward")
        if not accumulates:
            optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        of_backward = ended("backward")
        optimizer.step()
        update = ended("update").moved
    both = {name: value + vars(of_backward)[name] for name, value in vars(of_forward).items()}
    return memory, Work(**both), update


def _held(module: CausalLMModule) -> list[Tensor]:
    """Weights that are in memory all the time, those of a reference model too."""
    second = getattr(getattr(module, "reference", None), "_second", None)
    models = [module, *(() if second is None else (second,))]
    return [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]


def _autocast(precision: str) -> AbstractContextManager[Any]:
    if not precision.endswith("-mixed"):
        return nullcontext()
    return torch.autocast("cpu", dtype=_HALF[precision.partition("-")[0]])


def _faked(run: DryRun, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: _faked(run, value) for name, value in batch.items()}
    return run.put(batch) if isinstance(batch, Tensor) else batch


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Mapping):
        return [tensor for value in batch.values() for tensor in _tensors(value)]
    return [batch] if isinstance(batch, Tensor) else []


def _lengths(batch: Mapping[str, Any]) -> list[int]:
    """Tokens of the answers of a batch, or of the batches by part."""
    if "attention_mask" in batch:
        return [int(n) for n in batch["attention_mask"].sum(-1)]
    if "sequence_ids" in batch:
        ids = batch["sequence_ids"]
        return [int((ids == k).sum()) for k in range(int(ids.max()) + 1)]
    return [n for value in batch.values() if isinstance(value, Mapping) for n in _lengths(value)]
