"""ALRIGHT and MAXRIGHT against a plain loop: the same choices, losses and weights however a step is split."""

import copy
import itertools
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from feedback import answer_logps, encoded_row, feedback_batch, pairs
from tiny import QUIET_TRAINER, tiny_model
from torch.optim import SGD
from torch.utils.data import DataLoader

from lit_ift.errors import UserError
from lit_ift.modules import MixedModule, ObjectivePart, PartSchedule
from lit_ift.modules.optim import ConstantSchedule
from lit_ift.modules.part_schedule import PartChoice

LR, BETA, STEPS = 0.05, 0.5, 14
NAMES = ("instruction", "preference")
ROWS = [
    {
        "instruction": [encoded_row("instruction", "answer", seed=100 * step + i) for i in range(2)],
        "preference": pairs(4, first_seed=100 * step + 50),
    }
    for step in range(STEPS)
]
OPTIMA = {"instruction": 5.6, "preference": 0.55}
WEIGHTS = {"instruction": 0.5, "preference": 0.75}
LAMBDA = 0.6
"""Of the paper: the share of the pairs in the weights."""
MAXRIGHT = {"kind": "maxright", "evaluate_every": 5}
ALRIGHT = {"kind": "alright", "seed": 3}
OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: SGD(params, lr=LR),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}
Step = tuple[str, dict[str, float]]


def parts(kind: str, loss: str = "dpo") -> dict[str, Any]:
    optima = OPTIMA if kind == "maxright" else {}
    options = {"loss": loss, "options": {"beta": BETA}, "reference": "model"}
    return {
        "instruction": ObjectivePart("SFTModule", {}, WEIGHTS["instruction"], optima.get("instruction")),
        "preference": ObjectivePart("PreferenceModule", options, WEIGHTS["preference"], optima.get("preference")),
    }


def made(schedule: dict[str, Any], **options: Any) -> MixedModule:
    return MixedModule(
        tiny_model(), parts=parts(schedule["kind"], **options), schedule=PartSchedule(**schedule), **OPTIONS
    )


class Recorder(L.Callback):
    """Which part each optimizer step trained, and the losses that it logged."""

    def __init__(self, save_at: int | None = None, path: Path | None = None) -> None:
        self.steps: list[Step] = []
        self.save_at, self.path = save_at, path

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.steps):
            return
        logged = {key.removeprefix("train/"): float(value) for key, value in trainer.callback_metrics.items()}
        (chosen,) = [name for name in NAMES if logged[f"{name}/chosen"] == 1]
        assert sum(logged[f"{name}/chosen"] for name in NAMES) == 1
        assert logged["loss"] == pytest.approx(logged[f"{chosen}/loss"], rel=1e-6)
        # Callbacks keep finding what was logged in an earlier step.
        seen = NAMES if module.choice.evaluates(len(self.steps)) else (chosen,)
        self.steps.append((chosen, {name: logged[f"{name}/loss"] for name in seen}))
        if trainer.global_step == self.save_at and self.path is not None:
            trainer.save_checkpoint(self.path)


def fit(
    module: MixedModule, rows: list[Any], accumulate: int = 1, recorder: Recorder | None = None, **options: Any
) -> list[Step]:
    recorder = recorder or Recorder()
    checkpoint = options.pop("ckpt_path", None)
    batches = []
    for step in rows:
        for k in range(accumulate):
            batches.append({name: feedback_batch(step[name][k::accumulate]) for name in NAMES})
    trainer = L.Trainer(
        **QUIET_TRAINER,
        accumulate_grad_batches=accumulate,
        callbacks=[recorder],
        **{"max_epochs": 1, **options},
    )
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=checkpoint and True)
    return recorder.steps


def losses_of(model: Any, reference: Any, rows: Any) -> dict[str, torch.Tensor]:
    """The mean loss of each part, each answer alone through the whole model."""
    nll = [
        -logps["answer"] / sum(label != -100 for label in row.sides["answer"].labels)
        for logps, row in zip(answer_logps(model, rows["instruction"]), rows["instruction"], strict=True)
    ]
    margins = [
        (one["chosen"] - other["chosen"]) - (one["rejected"] - other["rejected"])
        for one, other in zip(
            answer_logps(model, rows["preference"]), answer_logps(reference, rows["preference"]), strict=True
        )
    ]
    dpo = -torch.nn.functional.logsigmoid(BETA * torch.stack(margins))
    return {"instruction": torch.stack(nll).mean(), "preference": dpo.mean()}


def literal(schedule: dict[str, Any]) -> tuple[list[Step], torch.Tensor]:
    model = tiny_model()
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=LR)
    values = dict.fromkeys(NAMES, float("inf"))
    steps: list[Step] = []
    for step, rows in enumerate(ROWS):
        if schedule["kind"] == "alright":
            draw = np.random.Generator(np.random.Philox(key=schedule["seed"], counter=step)).random()
            chosen = "instruction" if draw < 1 - LAMBDA else "preference"
        else:
            sft = (1 - LAMBDA) * (values["instruction"] - OPTIMA["instruction"])
            dpo = LAMBDA * (values["preference"] - OPTIMA["preference"])
            chosen = "preference" if dpo > sft else "instruction"
        losses = losses_of(model, reference, rows)
        evaluates = schedule["kind"] == "maxright" and step % schedule["evaluate_every"] == 0
        seen = {name: losses[name].item() for name in NAMES if evaluates or name == chosen}
        values |= seen
        steps.append((chosen, seen))
        optimizer.zero_grad()
        losses[chosen].backward()
        optimizer.step()
    return steps, weights_of(model)


def weights_of(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def assert_alike(found: list[Step], expected: list[Step]) -> None:
    assert [chosen for chosen, _ in found] == [chosen for chosen, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)  # Logged in float32.


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [ALRIGHT, MAXRIGHT], ids=["alright", "maxright"])
def test_equals_a_literal_loop_however_a_step_is_split(schedule: dict[str, Any]) -> None:
    expected, weights = literal(schedule)
    order = [chosen for chosen, _ in expected]
    assert min(order.count(name) for name in NAMES) >= 3
    assert sum(one != other for one, other in itertools.pairwise(order)) >= 3
    assert (len(expected[5][1]) == 2) == (schedule["kind"] == "maxright")
    for accumulate in (1, 2):
        module = made(schedule)
        assert_alike(fit(module, ROWS, accumulate), expected)
        torch.testing.assert_close(weights_of(module.model), weights, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [ALRIGHT, MAXRIGHT], ids=["alright", "maxright"])
def test_a_resumed_run_makes_the_same_choices(tmp_path: Path, schedule: dict[str, Any]) -> None:
    half, checkpoint = 7, tmp_path / "half.ckpt"
    whole = made(schedule)
    steps = fit(whole, ROWS, 2)
    fit(made(schedule), ROWS[:half], 2, Recorder(half, checkpoint))
    assert ("part_losses" in torch.load(checkpoint, weights_only=True)) == (schedule["kind"] == "maxright")
    resumed = made(schedule)
    recorder = Recorder()
    recorder.steps = steps[:half]
    # The rest of the rows is the second epoch's.
    fit(resumed, ROWS[half:], 2, recorder, max_epochs=2, ckpt_path=checkpoint)
    assert recorder.steps == steps
    torch.testing.assert_close(weights_of(resumed.model), weights_of(whole.model), rtol=0, atol=0)


@pytest.mark.slow
def test_the_running_mean_of_bco_goes_on_in_its_own_steps_alone() -> None:
    module = made(ALRIGHT, loss="bco")
    steps = fit(module, ROWS)
    part: Any = module.parts["preference"]
    assert part.log_ratios.steps == sum(chosen == "preference" for chosen, _ in steps)


def test_maxright_takes_the_largest_weighted_excess_and_the_first_of_equal_ones() -> None:
    choice = PartChoice(PartSchedule("maxright"), {"a": 1.0, "b": 2.0, "c": 1.0}, {"a": 0.0, "b": 1.0, "c": 0.0})
    assert choice.at(0) == "a"
    choice.update({"a/loss": 2.0, "loss": 9.0})
    assert choice.at(1) == "b"  # Not known yet.
    choice.update({"b/loss": 2.0, "c/loss": 2.0})
    assert choice.at(2) == "a"
    choice.update({"a/loss": 1.9})
    assert choice.at(3) == "b"
    assert [step for step in range(25) if choice.evaluates(step)] == [0, 10, 20]


def test_alright_draws_by_weight() -> None:
    choice = PartChoice(PartSchedule("alright", seed=1), {"a": 1.0, "b": 2.0, "c": 5.0}, {})
    drawn = [choice.at(step) for step in range(4000)]
    assert drawn == [choice.at(step) for step in range(4000)]
    for name, share in {"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}.items():
        assert drawn.count(name) / 4000 == pytest.approx(share, abs=0.03)
    other = PartChoice(PartSchedule("alright", seed=2), choice.weights, {})
    assert drawn != [other.at(step) for step in range(4000)]


def test_a_checkpoint_keeps_the_schedule_and_another_one_is_refused(tmp_path: Path) -> None:
    module = made(MAXRIGHT)
    assert module.hparams["schedule"] == {"kind": "maxright", "seed": None, "evaluate_every": 5}
    again = MixedModule(tiny_model(), parts=parts("maxright"), schedule=module.hparams["schedule"])
    assert again.choice is not None
    assert again.choice.schedule == PartSchedule("maxright", evaluate_every=5)
    for kept in ({}, {"part_losses": {"strange": 1.0}}):
        with pytest.raises(UserError, match=r"does not have the parts' losses, by which schedule\.kind=maxright"):
            module.on_load_checkpoint(kept)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"kind": "minright"}, "schedule.kind='minright' must be one of 'alright', 'maxright'"),
        ({"kind": "alright", "evaluate_every": 3}, "schedule.evaluate_every has no effect with schedule.kind=alright"),
        ({"kind": "maxright", "seed": 3}, "schedule.seed has no effect with schedule.kind=maxright"),
        ({"kind": "maxright", "evaluate_every": 0}, "schedule.evaluate_every=0 must be at least 1"),
        ({"kind": "alright", "seed": -1}, "schedule.seed=-1 must be at least 0"),
        ({"kind": "alright", "sede": 1}, "schedule: .*'sede'"),
        ({}, "schedule: .*'kind'"),
        ("alright", "schedule='alright' is no schedule"),
    ],
)
def test_an_unfit_schedule_is_refused_before_the_model_is_loaded(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedModule("never loaded", parts=parts("alright"), schedule=schedule)


def test_options_of_parts_without_effect_are_refused() -> None:
    for schedule in (None, PartSchedule("alright")):
        with pytest.raises(ValueError, match=r"parts\.instruction\.optimum has an effect with schedule\.kind=maxright"):
            MixedModule("never loaded", parts=parts("maxright"), schedule=schedule)
    one = {"instruction": ObjectivePart("SFTModule")}
    with pytest.raises(ValueError, match="schedule chooses among parts, and there is one alone"):
        MixedModule("never loaded", parts=one, schedule=PartSchedule("alright"))
    one = {"instruction": ObjectivePart("SFTModule", optimum=float("nan")), "b": ObjectivePart("SFTModule")}
    with pytest.raises(ValueError, match=r"parts\.instruction\.optimum=nan must be a finite number"):
        MixedModule("never loaded", parts=one, schedule=PartSchedule("maxright"))


def test_a_skipped_step_leaves_no_losses_to_choose_by() -> None:
    """It evaluates both parts, but neither is known after it, so that the next one trains the first part."""
    module = MixedModule(
        tiny_model(), parts=parts("maxright"), schedule=PartSchedule(**MAXRIGHT), max_bad_steps=1, **OPTIONS
    )
    losses_of_batch = module.example_losses

    def first_is_bad(batch: Any) -> Any:
        losses, metrics = losses_of_batch(batch)
        return losses * (torch.inf if module.trainer.global_step == 0 else 1), metrics

    module.example_losses = first_is_bad  # type: ignore[method-assign]
    found = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            assert module.choice is not None
            found.append((module._evaluated.empty, list(module.choice.losses)))

    batches = [{name: feedback_batch(step[name]) for name in NAMES} for step in ROWS[:2]]
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = L.Trainer(**QUIET_TRAINER, max_epochs=1, callbacks=[Watch()])
    with pytest.warns(UserWarning, match=r"Step 0: the loss .* was skipped \(1 of at most 1\)"):
        trainer.fit(module, loader)
    assert found == [(True, []), (True, ["instruction"])]
