"""Optimizer steps that are skipped and counted."""

import math
from collections.abc import Container
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from tiny import QUIET_TRAINER, tiny_batch, tiny_model
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from lit_ift.errors import NonFiniteLossError
from lit_ift.modules import SFTModule
from lit_ift.modules.bad_steps import BadSteps

COMPARED_FROM = 4


@pytest.fixture(autouse=True)
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare steps with fewer ones than the 20 of a run, which take long."""
    monkeypatch.setattr("lit_ift.modules.bad_steps.COMPARED_FROM", COMPARED_FROM)


WAYS = {"loss": math.inf, "gradient": math.nan, "spike": 1000.0}
"""What a row's loss, its gradient alone, or the whole step is multiplied by."""


class Scaled(torch.autograd.Function):
    """The same value with another gradient."""

    @staticmethod
    def forward(ctx: Any, value: Any, factor: float) -> Any:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
        return gradient * ctx.factor, None


class Poisoned(SFTModule):
    """Has one bad row in some steps.

    Args:
        bad: by the number of the step, the way in which it is bad.
    """

    not_saved = (*SFTModule.not_saved, "bad")

    def __init__(self, model: Any, bad: dict[int, str], **options: Any) -> None:
        super().__init__(model, **options)
        self.bad = bad

    def example_losses(self, batch: Any) -> Any:
        losses, metrics = super().example_losses(batch)
        way = self.bad.get(self.trainer.global_step)
        if way is None or not self.trainer.training:
            return losses, metrics
        if way == "loss":
            return losses * torch.tensor([1.0, *[WAYS[way]] * (len(losses) - 1)]), metrics
        return Scaled.apply(losses, WAYS[way]), metrics


class Logged(Callback):
    """What each optimizer step logged."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.steps):
            logged = trainer._logger_connector.metrics["log"]
            self.steps.append({name: float(value) for name, value in logged.items()})


def adam(parameters: Any) -> AdamW:
    return AdamW(parameters, lr=0.01, weight_decay=0.1)


def stairs(optimizer: Any) -> StepLR:
    return StepLR(optimizer, 2, gamma=0.7)


def batches(steps: int, accumulated: int = 2) -> DataLoader[Any]:
    return DataLoader([tiny_batch(2, first=2 * (i % 6)) for i in range(steps * accumulated)], batch_size=None)


def poisoned(bad: dict[int, str], **options: Any) -> Poisoned:
    return Poisoned(tiny_model(), bad, optimizer=adam, lr_scheduler=stairs, **options)


def fit(module: Any, steps: int, *, resume: Path | None = None, **options: Any) -> Logged:
    logged = Logged()
    more = options.pop("more", [])
    given = {**QUIET_TRAINER, "max_epochs": 1, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, **options}
    L.Trainer(**given, callbacks=[logged, *more]).fit(module, batches(steps), ckpt_path=resume)
    return logged


def weights(module: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()])


def by_hand(steps: int, left_out: set[int], spikes: Container[int] = ()) -> torch.Tensor:
    """The weights of a loop that leaves some steps out."""
    model = tiny_model().train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = adam([{"params": decayed}, {"params": rest, "weight_decay": 0.0}])
    scheduler = stairs(optimizer)
    rows = list(batches(steps))
    for step in range(steps):
        if step not in left_out:
            losses = []
            for batch in rows[2 * step : 2 * step + 2]:
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                for row, labels in zip(logits[:, :-1], batch["labels"][:, 1:], strict=True):
                    losses.append(torch.nn.functional.cross_entropy(row, labels, ignore_index=-100))
            optimizer.zero_grad()
            (torch.stack(losses).mean() * (WAYS["spike"] if step in spikes else 1.0)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        scheduler.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_run_that_skips_steps_is_a_loop_that_leaves_them_out() -> None:
    module = poisoned({1: "loss", 3: "gradient"}, max_bad_steps=2)
    with pytest.warns(UserWarning, match="was skipped") as told:
        logged = fit(module, 6)
    torch.testing.assert_close(weights(module), by_hand(6, {1, 3}), rtol=1e-10, atol=1e-12)
    assert [step["train/bad_steps"] for step in logged.steps] == [0, 1, 1, 2, 2, 2]
    assert ["train/grad_norm" in step for step in logged.steps] == [True, False, True, False, True, True]
    assert ["train/loss" in step for step in logged.steps] == [True, False, True, True, True, True]
    texts = [str(warning.message) for warning in told if "was skipped" in str(warning.message)]
    assert len(texts) == 2
    skipped = "became NaN or infinite, and the step was skipped"
    assert texts[0].startswith(f"Step 1: the loss (inf) {skipped} (1 of at most 2)")
    assert texts[0].endswith("Rows with a bad loss: ['row 5', 'row 7'].")
    assert texts[1].startswith(f"Step 3: the gradient {skipped} (2 of at most 2)")
    assert texts[1].endswith("Rows of the step: ['row 0', 'row 1', 'row 2', 'row 3'].")


def test_a_spike_is_skipped_once_there_are_steps_to_compare_with() -> None:
    steps, spikes = COMPARED_FROM + 4, {2: "spike", COMPARED_FROM + 2: "spike"}
    module = poisoned(spikes, max_bad_steps=1, bad_step_norm=10.0)
    with pytest.warns(UserWarning, match=rf"Step {COMPARED_FROM + 2}: the gradient's norm .* more than 10 times"):
        logged = fit(module, steps)
    # Step 2 came too early to be one.
    torch.testing.assert_close(weights(module), by_hand(steps, {COMPARED_FROM + 2}, {2}), rtol=1e-9, atol=1e-11)
    assert logged.steps[-1]["train/bad_steps"] == 1
    assert logged.steps[-2]["train/grad_norm"] > 10 * logged.steps[-3]["train/grad_norm"]


@pytest.mark.parametrize("way", WAYS)
def test_the_next_one_stops_the_run_and_names_its_rows(way: str) -> None:
    module = poisoned({COMPARED_FROM: "gradient", COMPARED_FROM + 2: way}, max_bad_steps=1, bad_step_norm=10.0)
    rows = r"with a bad loss: \['row 1', 'row 3'\]" if way == "loss" else "in this step: .*'row 3'"
    message = rf"Step {COMPARED_FROM + 2}: .* the step was not taken\. Steps skipped before: 1\. Rows on rank 0 {rows}"
    with pytest.raises(NonFiniteLossError, match=message):
        fit(module, COMPARED_FROM + 3)
    # The step that stops it is not taken either.
    steps = COMPARED_FROM + 2
    torch.testing.assert_close(weights(module), by_hand(steps, {COMPARED_FROM}), rtol=1e-9, atol=1e-11)


def test_by_default_the_first_one_stops_the_run() -> None:
    logged = fit(poisoned({}), 2)
    assert "train/bad_steps" not in logged.steps[-1]
    with pytest.raises(NonFiniteLossError, match=r"not taken\. Rows on rank 0"):
        fit(poisoned({0: "gradient"}), 2)


class Saves(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*was skipped")
def test_a_resumed_run_counts_and_compares_on(tmp_path: Path) -> None:
    saved, last = 6, 6 + COMPARED_FROM - 1  # The spike is one by the norms of both sides of the checkpoint.
    bad = {2: "loss", last: "spike"}
    whole, rest = (poisoned(bad, max_bad_steps=2, bad_step_norm=10.0) for _ in range(2))
    path = tmp_path / "middle.ckpt"
    options: dict[str, Any] = {"accumulate_grad_batches": 1, "max_steps": last + 2}
    # A plain loader begins anew when a run resumes. It has the same rows then, being at the end of a round of 6.
    logged = fit(whole, 6, more=[Saves(path, saved)], **options)
    torch.load(path, weights_only=True)
    again = fit(rest, 6, resume=path, **options)
    assert torch.equal(weights(rest), weights(whole))
    assert logged.steps[-1]["train/bad_steps"] == again.steps[-1]["train/bad_steps"] == 2


@pytest.mark.filterwarnings("ignore:.*was skipped")
def test_a_second_fit_counts_anew() -> None:
    module = poisoned({1: "loss"}, max_bad_steps=1)
    trainer = L.Trainer(**QUIET_TRAINER, max_epochs=1)
    trainer.fit(module, batches(2))
    (counter,) = [callback for callback in trainer.callbacks if isinstance(callback, BadSteps)]
    assert counter.count == 1
    module.bad = {5: "loss"}
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, batches(2))
    assert [callback.count for callback in trainer.callbacks if isinstance(callback, BadSteps)] == [1]


def test_float16_leaves_its_own_overflow_to_the_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = tiny_model(dtype=torch.float32)
    module = Poisoned(model, {0: "gradient", 1: "loss"}, optimizer=adam, lr_scheduler=stairs, max_bad_steps=1)
    before = weights(module)
    with pytest.warns(UserWarning, match=r"Step 1: .*was skipped \(1 of at most 1\)"):
        logged = fit(module, 2, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert torch.equal(weights(module), before)
    assert [step["train/bad_steps"] for step in logged.steps] == [0, 1]
    assert scaler.get_scale() == 512.0  # Lowered for the overflow alone.


def test_a_search_for_a_learning_rate_neither_skips_nor_counts() -> None:
    module = poisoned({}, max_bad_steps=1, bad_step_norm=1.5)
    trainer = L.Trainer(**QUIET_TRAINER, max_epochs=1)
    finder = Tuner(trainer).lr_find(
        module, batches(10), num_training=20, min_lr=1e-6, max_lr=10.0, early_stop_threshold=None
    )
    assert finder is not None
    assert len(finder.results["loss"]) == 20
    trainer.fit(module, batches(1))
    (counter,) = [callback for callback in trainer.callbacks if isinstance(callback, BadSteps)]
    assert counter.count == 0
    assert len(counter.state_dict()["norms"]) == 2


def test_bad_step_norm_needs_max_bad_steps() -> None:
    with pytest.raises(ValueError, match=r"bad_step_norm=5.0 skips nothing .* Set max_bad_steps"):
        SFTModule("somewhere", bad_step_norm=5.0)
    with pytest.raises(ValueError, match=r"bad_step_norm=1.0 must be .*above 1"):
        SFTModule("somewhere", max_bad_steps=1, bad_step_norm=1.0)
    with pytest.raises(ValueError, match=r"max_bad_steps=-1 must be at least 0"):
        SFTModule("somewhere", max_bad_steps=-1)
