"""The running mean of log-ratios that BCO shifts rewards by: once a step, over all answers, kept in checkpoints."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from feedback import answer_logps, dummy, encoded_row, feedback_batch, pairs
from tiny import QUIET_TRAINER, tiny_model
from torch.optim import SGD
from torch.utils.data import DataLoader

from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError
from lit_ift.modules import KTOModule, MixedModule, ObjectivePart, PreferenceModule
from lit_ift.modules.feedback_module import RunningMean
from lit_ift.modules.optim import ConstantSchedule


def thumbs(count: int, first_seed: int) -> list[EncodedRow]:
    """More thumbs up than down, so that rewards have a mean to be shifted by."""
    return [encoded_row("unpaired", "answer", score=float(i % 4 > 0), seed=first_seed + i) for i in range(count)]


STEPS = {
    "pairs": [pairs(4, first_seed=10 * step) for step in range(4)],
    "thumbs": [thumbs(4, first_seed=10 * step) for step in range(4)],
    "both": [[*pairs(2, first_seed=10 * step), *thumbs(2, first_seed=10 * step + 5)] for step in range(4)],
}
LR = 0.05
OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: SGD(params, lr=LR),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}


def bco(model: Any, rows: str = "pairs", **options: Any) -> Any:
    if rows == "pairs":
        return PreferenceModule(model, loss="bco", options={"beta": 0.5}, reference="model", **options)
    return KTOModule(model, variant="bco", beta=0.5, desirable_weight=1.5, reference="model", **options)


def loader(steps: list[list[EncodedRow]], accumulate: int, part: str | None = None) -> DataLoader[Any]:
    batches = []
    for rows in steps:
        size = len(rows) // accumulate
        batches += [feedback_batch(rows[i : i + size]) for i in range(0, len(rows), size)]
    return DataLoader([{part: batch} if part else batch for batch in batches], batch_size=None)


def fit(
    module: Any, steps: list[list[EncodedRow]], accumulate: int = 1, part: str | None = None, **options: Any
) -> L.Trainer:
    checkpoint = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        **QUIET_TRAINER,
        accumulate_grad_batches=accumulate,
        **{"max_epochs": 1, **options},
    )
    trainer.fit(module, loader(steps, accumulate, part), ckpt_path=checkpoint, weights_only=checkpoint and True)
    return trainer


def literal(steps: list[list[EncodedRow]], up: float, of_each: float) -> tuple[list[float], torch.Tensor]:
    """The shifts of all steps, and the weights after them, by a plain loop with each answer alone.

    ``up`` is the weight of a good answer, ``of_each`` of all.
    """
    model = tiny_model()
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=LR)
    means: list[float] = []
    shifts: list[float] = []
    for rows in steps:
        shift = 0.5 * sum(means) / max(len(means), 1)
        shifts.append(shift)
        losses, ratios = [], []
        for row, one, other in zip(rows, answer_logps(model, rows), answer_logps(reference, rows), strict=True):
            for side, logp in one.items():
                ratio = logp - other[side]
                is_up = side == "chosen" or row.score == 1
                above = 0.5 * ratio - shift
                losses.append(-up * torch.log(torch.sigmoid(above)) if is_up else -torch.log(torch.sigmoid(-above)))
                ratios.append(ratio.item())
        means.append(sum(ratios) / len(ratios))
        optimizer.zero_grad()
        (of_each * torch.stack(losses).mean()).backward()
        optimizer.step()
    return shifts, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def weights_of(module: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("rows", STEPS)
def test_equals_a_literal_loop_however_a_step_is_split(rows: str, accumulate: int) -> None:
    module = bco(tiny_model(), rows, **OPTIONS)
    fit(module, STEPS[rows], accumulate)
    # The loss of a pair is the sum over its answers, that of judged answers the mean.
    shifts, weights = literal(STEPS[rows], *((1, 2) if rows == "pairs" else (1.5, 1)))
    assert len({round(shift, 9) for shift in shifts}) == 3  # The first two are 0.
    # The model's norms compute in float32, whose rounding a division by 4 rows leaves alone, and one by 6 answers not.
    rounding = {"rtol": 1e-5, "atol": 1e-7} if rows == "both" else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(weights_of(module), weights, **rounding)
    assert module.log_ratios.steps == 4


@pytest.mark.slow
@pytest.mark.parametrize(("part", "rows"), [(None, "pairs"), (None, "both"), ("preference", "pairs")])
def test_a_resumed_run_goes_on_with_the_mean(tmp_path: Path, part: str | None, rows: str) -> None:
    def made() -> Any:
        if part is None:
            return bco(tiny_model(), rows, **OPTIONS)
        options = {"loss": "bco", "options": {"beta": 0.5}, "reference": "model"}
        return MixedModule(tiny_model(), parts={part: ObjectivePart("PreferenceModule", options)}, **OPTIONS)

    steps = STEPS[rows]
    whole, checkpoint = made(), tmp_path / "half.ckpt"
    fit(whole, steps, part=part)
    fit(made(), steps[:2], part=part).save_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    kept = saved if part is None else saved["of_parts"][part]
    assert kept["log_ratios"]["steps"] == 2
    resumed = made()
    # The rest of the rows is the second epoch's.
    fit(resumed, steps[2:], part=part, max_epochs=2, ckpt_path=checkpoint)
    assert (resumed if part is None else resumed.parts[part]).log_ratios.steps == 4
    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0, atol=0)


@pytest.mark.parametrize("kind", STEPS)
def test_rows_that_count_for_nothing_have_no_share(kind: str) -> None:
    module = bco(tiny_model(), kind, **OPTIONS)
    rows = STEPS[kind][0]
    fit(module, [[*rows, dummy(rows[0])]])
    other = bco(tiny_model(), kind, **OPTIONS)
    fit(other, [rows])
    assert module.log_ratios.mean == pytest.approx(other.log_ratios.mean, abs=1e-12)


def test_a_checkpoint_without_the_mean_is_refused() -> None:
    with pytest.raises(UserError, match="no running mean of log-ratios"):
        bco(tiny_model()).on_load_checkpoint({})


def test_the_mean_of_steps() -> None:
    mean = RunningMean()
    for value in (1.0, 4.0, -2.0):
        mean.add(value)
    assert (mean.mean, mean.steps) == (1.0, 3)
    assert math.isclose(RunningMean(mean=3.0, steps=1).mean, 3.0)
