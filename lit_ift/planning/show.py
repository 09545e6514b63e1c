"""A plan on the terminal."""

import math
from collections.abc import Iterator
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lit_ift.modules.start_line import rows_told, steps_told
from lit_ift.planning.plan import PARTS, Plan, gib

EXPLAINED = {
    "weights": "weights, frozen ones and those of a reference model too",
    "gradients": "gradients, and DDP's buckets",
    "optimizer": "optimizer state",
    "activations": "activations, and the batch",
    "logits": "chunks of the output head's logits",
}


def shown(plan: Plan) -> RenderableType:
    """Conflicts, or what the run takes."""
    parts: list[RenderableType] = [Text(f"conflict: {conflict}", style="red") for conflict in plan.conflicts]
    if plan.step is not None:
        parts += [*map(Text, _lines(plan)), _memory(plan), *([_options(plan)] if plan.options else [])]
    return Group(*parts)


def _lines(plan: Plan) -> Iterator[str]:
    step, rows, run, device = plan.step, plan.rows, plan.run, plan.device
    assert step is not None
    assert rows is not None
    assert run is not None
    assert device is not None
    share = step.trained / max(step.parameters, 1)
    yield f"Model: {_short(step.parameters)} parameters, {_short(step.trained)} of them trained ({share:.2%})."
    told = [] if plan.steps is None else [steps_told(plan.steps, plan.steps_per_epoch or 0)]
    if rows.rows is not None and plan.tokens is not None and plan.steps:
        a_step = min(rows.rows, plan.batch_rows * run.accumulate * run.ranks)
        told = [*rows_told(rows.rows, a_step, (rows.tokens or 0) * a_step / rows.rows, is_about=not rows.exact), *told]
    yield f"Training: {', '.join(told) or 'its length is not known'} ({rows.how})."
    about = "" if rows.exact else "about "
    if plan.flops is not None and plan.tokens is not None:
        ratio = step.work.matmul / max(step.parameters, 1) / max(step.tokens, 1)
        yield (
            f"Work: {about}{_short(plan.tokens)} tokens, {plan.flops.matmul + plan.flops.attention:.3g} FLOPs, of "
            f"which attention {plan.flops.attention:.2g}; {ratio:.2f} FLOPs a parameter and token without attention."
        )
    if plan.seconds is not None and math.isfinite(plan.seconds):
        how = (
            "rates measured now"
            if device.is_measured
            else f"estimate: {device.reached:.0%} of the published peak rates"
        )
        ranks = f"{run.ranks} x " if run.ranks > 1 else ""
        yield f"Time: {_duration(plan.seconds)} on {ranks}{device.name} ({how}), validation aside."


def _memory(plan: Plan) -> Table:
    step, device = plan.step, plan.device
    assert step is not None
    assert device is not None
    title = f"Peak memory of a rank, with {plan.batch_rows} of the longest rows" + (
        ", an estimate" if plan.is_estimate else ""
    )
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column(
        "part", footer=f"{'fits' if plan.fits else 'DOES NOT FIT'} into {device.name}: {gib(device.memory)}"
    )
    table.add_column("size", justify="right", footer=gib(sum(plan.memory.values())))
    for part in PARTS:
        table.add_row(EXPLAINED[part], gib(plan.memory[part]))
    return table


def _options(plan: Plan) -> Table:
    assert plan.device is not None
    table = Table(title=f"What fits into {plan.device.name}", title_justify="left")
    table.add_column("way")
    table.add_column("peak", justify="right")
    table.add_column("largest data.batch_size", justify="right")
    for option in plan.options:
        table.add_row(option.name, gib(option.peak), f"{option.largest_batch:,}" if option.largest_batch else "none")
    return table


def _duration(seconds: float) -> str:
    days = seconds / timedelta(days=1).total_seconds()
    return f"{days:.3g} days" if days > timedelta.max.days else str(timedelta(seconds=round(seconds)))


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.0f}"
