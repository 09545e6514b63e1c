"""Every objective under every precision that Lightning offers on a CPU."""

import math
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import lightning as L
import pytest
import torch
from precisions import OBJECTIVES, OF_LOSSES, TOLERANCES, first_epoch
from tiny import tiny_batch, tiny_model
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.utils.data import DataLoader

from lit_ift.errors import UserError
from lit_ift.modules import SFTModule
from lit_ift.modules.optim import ConstantSchedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from invariance import write_inputs

    path = tmp_path_factory.mktemp("precisions")
    write_inputs(path)
    return path


@pytest.fixture(scope="module")
def in_float32(folder: Path) -> Any:
    return cache(partial(first_epoch, folder, precision="32-true"))


ONE_OF_EACH: Final = (
    *("sft", "ift, noisy lambda", "sftmix", "uft", "kto", "ift + dpo", "dpo, lora"),
    *("every pair loss", "every loss that compares pairs", "every token loss"),
)
"""Every module and every loss; ``benchmarks/precisions.py`` has the rest."""


def test_no_module_is_left_out() -> None:
    assert {OBJECTIVES[name].module for name in ONE_OF_EACH} == {o.module for o in OBJECTIVES.values()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("objective", ONE_OF_EACH)
def test_every_objective_under_every_precision(folder: Path, in_float32: Any, objective: str, precision: str) -> None:
    """The reference's log-probabilities are not rounded on their way, or the first steps would differ most."""
    expected, steps = in_float32(objective), first_epoch(folder, objective, precision)
    assert len(steps) == len(expected)
    for tolerance, ours, theirs in zip(
        [TOLERANCES[precision][0], *[TOLERANCES[precision][1]] * 9], steps, expected, strict=False
    ):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)
        assert math.isfinite(ours["grad_norm"])
        assert ours["grad_norm"] > 0


ABSOLUTE: Final = {"pair ada_dpo": 0.01, "pair ipo": 1.5, "pair gipo": 1.5, "pair simpo": 0.01}
"""How far a loss may be off besides: it is near 0, begins at 25, or has a large factor on rounded numbers."""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("loss", OF_LOSSES)
def test_every_loss_by_itself(folder: Path, in_float32: Any, loss: str, precision: str) -> None:
    """Losses, and the first gradient, are near those in float32."""
    expected, steps = in_float32(loss), first_epoch(folder, loss, precision)
    assert len(steps) == len(expected) == 3
    for i, (ours, theirs) in enumerate(zip(steps, expected, strict=True)):
        tolerance = TOLERANCES[precision][min(i, 1)]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance, abs=ABSOLUTE.get(loss))
        assert 0 < ours["grad_norm"] < math.inf
    assert steps[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=0.02)


def fit(optimizer: Any, precision: str) -> SFTModule:
    module = SFTModule(
        tiny_model(dtype=torch.float32), optimizer=optimizer, lr_scheduler=partial(ConstantSchedule, warmup=0)
    )
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([tiny_batch()] * 2, batch_size=None))
    return module


@pytest.mark.parametrize("optimizer", [AdamW, Adam, RMSprop])
def test_an_eps_that_float16_does_not_know_is_refused(optimizer: type[Optimizer]) -> None:
    with pytest.raises(UserError, match=rf"{optimizer.__name__}'s eps=1e-08 is 0 in float16.*16-true.*1e-4"):
        fit(partial(optimizer, lr=1e-3), "16-true")  # type: ignore[call-arg]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        (partial(AdamW, lr=1e-3, eps=1e-4), "16-true"),
        (partial(SGD, lr=1e-3), "16-true"),
        (partial(AdamW, lr=1e-3), "bf16-true"),
        (partial(AdamW, lr=1e-3), "16-mixed"),
        (partial(AdamW, lr=1e-3), "64-true"),
    ],
)
def test_steps_with_an_eps_that_counts_are_finite(optimizer: Any, precision: str) -> None:
    assert all(parameter.isfinite().all() for parameter in fit(optimizer, precision).parameters())
