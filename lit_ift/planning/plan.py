"""All that a plan says, from the parts that `dry_step`, `rows` and `hardware` measure."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lit_ift.data.modules.conversation import ConversationDataModule
from lit_ift.models.source import ModelSource
from lit_ift.modules.base import CausalLMModule
from lit_ift.planning.dry_run import Part, Work
from lit_ift.planning.dry_step import StepCost, step_cost
from lit_ift.planning.hardware import GIB, Device
from lit_ift.planning.rows import PlannedRows, largest_batch

PARTS: Final[tuple[Part, ...]] = ("weights", "gradients", "optimizer", "activations", "logits")

MakeModule = Callable[[Mapping[str, Any]], CausalLMModule]
"""Makes the module of the configuration, with some of its options changed."""


@dataclass(frozen=True)
class Run:
    """What the Trainer's options say.

    Attributes:
        precision: such as bf16-mixed.
        ranks: processes that train.
        shards: ranks that a model is sharded over; 1 for none.
        gathers_once: whether the whole gathered model is held from the forward to the end of the backward pass.
        offloads: whether shards are kept in the memory of the host.
        accumulate: micro-batches of a step.
        epochs: of the run; None for no bound.
        steps: at most; None for no bound.
        batches: of an epoch at most: a number, or a share.
    """

    precision: str = "32-true"
    ranks: int = 1
    shards: int = 1
    gathers_once: bool = False
    offloads: bool = False
    accumulate: int = 1
    epochs: float | None = 1
    steps: int | None = None
    batches: float | int | None = None


@dataclass(frozen=True)
class Option:
    """A way to run, and what it takes.

    Attributes:
        name: of the way.
        peak: bytes on a rank.
        largest_batch: rows a process and batch that fit; 0 if none does.
    """

    name: str
    peak: float
    largest_batch: int


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        conflicts: what `fit` would refuse, with the remedy.
        device: which it is planned for.
        run: the Trainer's options.
        rows: those of an epoch.
        batch_rows: rows of the largest batch.
        step: cost of one micro-batch of the longest rows.
        memory: bytes on a rank at the peak, by part.
        is_estimate: whether the memory is an estimate, as where a model is sharded or quantized.
        steps: optimizer steps; None if not known.
        steps_per_epoch: optimizer steps of an epoch; None if not known.
        tokens: of the run; None if not known.
        flops: of the run on all ranks, by kind; None if not known.
        seconds: of training; None if not known.
        options: ways to run that need less memory.
    """

    conflicts: list[str]
    device: Device | None = None
    run: Run | None = None
    rows: PlannedRows | None = None
    batch_rows: int = 0
    step: StepCost | None = None
    memory: dict[Part, float] = field(default_factory=dict)
    is_estimate: bool = False
    steps: float | None = None
    steps_per_epoch: float | None = None
    tokens: float | None = None
    flops: Work | None = None
    seconds: float | None = None
    options: list[Option] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether a rank's peak fits into the device."""
        return self.device is not None and sum(self.memory.values()) <= self.device.memory


def rank_memory(parts: Mapping[Part, float], step: StepCost, run: Run) -> dict[Part, float]:
    """Bytes on a rank from those on a single device.

    DDP holds the gradients a second time, in the buckets that it sends. FSDP2 holds shards of weights, gradients and
    optimizer state, and besides the gathered root (embeddings, last norm, head) and two gathered layers.
    """
    found = {part: parts.get(part, 0.0) for part in PARTS}
    if run.shards == 1:
        if run.ranks > 1:
            found["gradients"] += step.trained / max(step.parameters, 1) * found["weights"]
        return found
    of_layer = step.layer_parameters / max(step.parameters, 1)
    layers = 0.0 if not of_layer else round((1 - _root_share(step)) / of_layer)
    computes_in_half = run.precision.startswith(("bf16-m", "16-m"))
    gathered = (layers if run.gathers_once else 2) * of_layer * (0.5 if computes_in_half else 1.0)
    weights, trained = found["weights"], step.trained / max(step.parameters, 1)
    kept = 0.0 if run.offloads else 1 / run.shards
    found["weights"] = weights * (kept + _root_share(step) + gathered)
    found["gradients"] = found["gradients"] * kept + weights * min(trained, 1) * (_root_share(step) + of_layer)
    found["optimizer"] *= kept
    if computes_in_half:  # Layers are gathered in half precision, where autocast would keep a cast of each weight.
        casts = weights / 2 * (1 - _root_share(step))
        found["activations"] = max(0.0, found["activations"] - casts)
    return found


def _root_share(step: StepCost) -> float:
    return min(1.0, step.root_parameters / max(step.parameters, 1))


def make_plan(
    make_module: MakeModule,
    source: ModelSource,
    data: ConversationDataModule,
    rows: PlannedRows,
    run: Run,
    device: Device,
    *,
    alternatives: bool = True,
) -> Plan:
    """The plan of a run that has no conflicts.

    Args:
        make_module: see `MakeModule`.
        source: of the model, with its configuration.
        data: whose training split is set up.
        rows: see ``planned_rows``.
        run: the Trainer's options.
        device: that each rank has.
        alternatives: look for ways that need less memory.

    Raises:
        UserError: the step cannot be taken.
    """
    batch = largest_batch(data)
    count = _rows_of(batch)

    def cost(changes: Mapping[str, Any]) -> StepCost:
        return step_cost(
            lambda: make_module(changes),
            source,
            batch,
            precision=run.precision,
            accumulates=run.accumulate > 1,
            on_gpu=device.is_gpu,
        )

    step = cost({})
    memory = rank_memory(step.peak, step, run)
    plan = Plan(
        [],
        device=device,
        run=run,
        rows=rows,
        batch_rows=count,
        step=step,
        memory=memory,
        is_estimate=run.shards > 1 or make_module({}).quantization is not None,
    )
    plan = replace(plan, **_length(plan))
    plan = replace(plan, **_time(plan))
    return replace(plan, options=_options(make_module, cost, step, plan)) if alternatives else plan


def _rows_of(batch: Mapping[str, Any]) -> int:
    if "row_ids" in batch:
        return len(batch["row_ids"])
    return sum(_rows_of(value) for value in batch.values() if isinstance(value, Mapping))


def _length(plan: Plan) -> dict[str, Any]:
    """Steps and tokens of the run."""
    run, rows, step = plan.run, plan.rows, plan.step
    assert run is not None
    assert rows is not None
    assert step is not None
    if rows.rows is None or rows.tokens is None:
        return {"steps": run.steps}
    batches = max(1, math.ceil(rows.rows / (plan.batch_rows * run.ranks)))
    if isinstance(run.batches, int):
        batches = min(batches, run.batches)
    elif run.batches is not None:
        batches = int(batches * run.batches)
    if not batches:
        return {"steps": 0, "steps_per_epoch": 0, "tokens": 0.0}
    per_epoch = math.ceil(batches / run.accumulate)
    bounds = [*([] if run.epochs is None else [per_epoch * run.epochs]), *([] if run.steps is None else [run.steps])]
    steps = min(bounds) if bounds else math.inf
    seen = min(1.0, batches * plan.batch_rows * run.ranks / rows.rows)
    return {"steps": steps, "steps_per_epoch": per_epoch, "tokens": rows.tokens * seen * steps / per_epoch}


def _time(plan: Plan) -> dict[str, Any]:
    """FLOPs and seconds of the run: matrix products at their rate, all else at that of the memory."""
    run, rows, step, device = plan.run, plan.rows, plan.step, plan.device
    assert run is not None
    assert rows is not None
    assert step is not None
    assert device is not None
    if plan.tokens is None or plan.steps is None or not math.isfinite(plan.tokens):
        return {}
    times = plan.tokens / step.tokens  # So many batches of the longest rows have as many tokens.
    shorter = min(1.0, rows.mean_square / step.mean_square) if step.mean_square else 1.0
    flops = Work(step.work.matmul * times, step.work.attention * times * shorter, step.work.moved * times)
    rate = device.half if run.precision.startswith(("bf16", "16")) else device.full
    a_rank = (flops.matmul + flops.attention) / rate + flops.moved / device.bandwidth
    seconds = a_rank / run.ranks + plan.steps * step.update / run.shards / device.bandwidth
    return {"flops": flops, "seconds": seconds / device.reached}


def _options(
    make_module: MakeModule, cost: Callable[[Mapping[str, Any]], StepCost], step: StepCost, plan: Plan
) -> list[Option]:
    """As configured and, where they would change something, with checkpointing, an adapter, and sharded."""
    run, device = plan.run, plan.device
    assert run is not None
    assert device is not None
    module = make_module({})
    ways: list[tuple[str, dict[str, Any], Run]] = [("as configured", {}, run)]
    if not module.gradient_checkpointing and not module.share_prompts:
        ways.append(("model.gradient_checkpointing=true", {"gradient_checkpointing": True}, run))
    if module.lora is None and not module.added_tokens:
        ways.append(("model.lora={r: 16}", {"lora": {"r": 16}}, run))
    if run.shards == 1 and module.quantization is None:
        ways += [(f"trainer.strategy=fsdp2 over {n}", {}, replace(run, ranks=n, shards=n)) for n in (2, 8)]
    found = []
    for name, changes, how in ways:
        taken = cost(changes) if changes else step
        parts = rank_memory(taken.peak, taken, how)
        peak, a_row = sum(parts.values()), parts["activations"] / plan.batch_rows
        largest = math.floor(plan.batch_rows + (device.memory - peak) / a_row)
        found.append(Option(name, peak, max(0, largest)))
    return found


def as_plain(plan: Plan) -> dict[str, Any]:
    """Plain values for JSON, in bytes, FLOPs and seconds."""
    step, device, rows = plan.step, plan.device, plan.rows
    if step is None or device is None or rows is None or plan.run is None:
        return {"conflicts": plan.conflicts}
    finite = {
        name: value if value is None or math.isfinite(value) else None
        for name, value in (("steps", plan.steps), ("tokens", plan.tokens), ("seconds", plan.seconds))
    }
    return {
        "conflicts": plan.conflicts,
        "parameters": round(step.parameters),
        "trained": round(step.trained),
        "rows": rows.rows,
        "rows_from": rows.how,
        "rows_exact": rows.exact,
        **finite,
        "flops": None if plan.flops is None else {"matmul": plan.flops.matmul, "attention": plan.flops.attention},
        "flops_per_parameter_and_token": step.work.matmul / max(step.parameters, 1) / max(step.tokens, 1),
        "batch": {"rows": plan.batch_rows, "tokens": step.tokens},
        "memory": {**plan.memory, "total": sum(plan.memory.values()), "is_estimate": plan.is_estimate},
        "device": {"name": device.name, "memory": device.memory, "is_measured": device.is_measured},
        "fits": plan.fits,
        "options": [vars(option) for option in plan.options],
        "ranks": plan.run.ranks,
        "precision": plan.run.precision,
    }


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
