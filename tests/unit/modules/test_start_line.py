"""The line before training, for runs of every size."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_ift.data.report.account import TokenCount
from lit_ift.modules.optim import ConstantSchedule, CosineSchedule
from lit_ift.modules.start_line import announce_start


def trainer(*, batches: int, steps: float, accumulate: int = 1, **changes: Any) -> Any:
    """What the line is read from; one process unless it is said otherwise."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = CosineSchedule(optimizer, warmup=0.1, total_steps=int(steps) if math.isfinite(steps) else None)
    values = {
        "log_dir": None,
        "default_root_dir": "out",
        "fast_dev_run": False,
        "global_step": 0,
        "estimated_stepping_batches": steps,
        "num_training_batches": batches,
        "accumulate_grad_batches": accumulate,
        "world_size": 1,
        "lr_scheduler_configs": [SimpleNamespace(scheduler=scheduler)],
        "datamodule": None,
    }
    return SimpleNamespace(**{**values, **changes})


def data(*sources: TokenCount, batch_size: int | None) -> Any:
    tokens = round(sum(source.tokens * source.weight for source in sources))
    report = SimpleNamespace(sources=dict(enumerate(sources)), tokens_per_epoch=tokens)
    return SimpleNamespace(reports={"train": report}, batch_size=batch_size)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            trainer(batches=25, steps=4, accumulate=8, datamodule=data(TokenCount(200, 20_000), batch_size=8)),
            "Training: 200 rows, 64 a step (about 6,400 tokens), 4 steps in 1 epoch, 0 warm-up steps, in out.",
        ),
        (
            trainer(
                batches=50,
                steps=100,
                world_size=2,
                log_dir="runs/a",
                datamodule=data(TokenCount(100, 1000), TokenCount(50, 4000, weight=2.0), batch_size=2),
            ),
            "Training: 150 rows, 4 a step (about 180 tokens), 100 steps in 2 epochs, 10 warm-up steps, in runs/a.",
        ),
        (
            trainer(batches=40, steps=30, datamodule=data(TokenCount(200, 20_000), batch_size=None)),
            "Training: 200 rows, about 5 a step (about 500 tokens), 30 steps in 0.75 epochs, 3 warm-up steps, in out.",
        ),
        (
            trainer(batches=40, steps=40, global_step=7),
            "Training goes on after step 7: 40 steps in 1 epoch, 4 warm-up steps, in out.",
        ),
        (trainer(batches=40, steps=math.inf), "Training: steps without end, in out."),
    ],
)
def test_the_line(given: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        announce_start(given)
    assert caplog.messages[0] == said


@pytest.mark.parametrize(("steps", "warns"), [(1, True), (19, True), (20, False), (math.inf, False)])
def test_few_steps_are_warned_of(steps: float, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        announce_start(trainer(batches=10, steps=steps))
    assert ("too little to learn much" in caplog.text) is warns


def test_a_dry_run_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        announce_start(trainer(batches=1, steps=1, fast_dev_run=1))
    assert not caplog.messages


def test_the_number_of_warm_up_steps_is_that_of_the_schedule() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    assert CosineSchedule(optimizer, warmup=0.25, total_steps=8).warmup_steps == 2
    assert CosineSchedule(optimizer, warmup=0.25).warmup_steps is None
    assert ConstantSchedule(optimizer, warmup=3).warmup_steps == 3
    assert ConstantSchedule(optimizer, warmup=0).warmup_steps == 0
