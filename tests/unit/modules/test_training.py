"""Training with a plain Trainer: normalisation, logging, what is refused."""

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from tiny import tiny_batch, tiny_model
from torch.optim import SGD
from torch.utils.data import DataLoader

from lit_ift.callbacks import LossCurves
from lit_ift.errors import NonFiniteLossError, UserError
from lit_ift.modules import IFTModule, SFTModule
from lit_ift.modules.lambda_schedule import LambdaSchedule
from lit_ift.modules.optim import ConstantSchedule, CosineSchedule

OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: SGD(params, lr=0.05),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}


class Record(Callback):
    """Loss and gradient norm of every optimizer step, as seen by a callback."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(norms).norm()))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.metrics):
            self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def loader(num_rows: int, batch_size: int) -> DataLoader:
    sizes = [min(batch_size, num_rows - first) for first in range(0, num_rows, batch_size)]
    batches = [tiny_batch(size, first=i * batch_size) for i, size in enumerate(sizes)]
    return DataLoader(batches, batch_size=None)


def fit(module: Any, batches: Any, **options: Any) -> Record:
    record = Record()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record, *options.pop("more", [])],
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, batches, options.get("val"))
    return record


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize("module_class", [SFTModule, IFTModule])
def test_every_split_of_a_step_is_the_same(module_class: type, reduction: str) -> None:
    """19 rows in steps of 8: the epoch's last window holds 3 rows, in 1, 2 or 3 micro-batches."""
    runs = {}
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4), (1, 8)):
        module = module_class(tiny_model(), reduction=reduction, **OPTIONS)
        record = fit(module, loader(19, batch_size), accumulate_grad_batches=accumulate)
        weights = torch.cat([p.detach().flatten() for p in module.model.parameters()])
        runs[batch_size] = record, weights
    reference, weights = runs.pop(8)
    assert len(reference.norms) == len(reference.metrics) == 2 * 3
    for record, others in runs.values():
        assert record.norms == pytest.approx(reference.norms, rel=1e-6)
        for ours, expected in zip(record.metrics, reference.metrics, strict=True):
            for name in ("train/loss", "train/grad_norm", "train/token_accuracy"):
                assert ours[name] == pytest.approx(expected[name], rel=1e-6)
        torch.testing.assert_close(others, weights, rtol=1e-6, atol=1e-6)


def test_the_step_is_the_gradient_of_the_mean() -> None:
    """One step of SGD against the same by hand; clipping and callbacks see the normalised gradient."""
    batches = [tiny_batch(2, first=0), tiny_batch(1, first=2)]
    module = SFTModule(tiny_model(), reduction="token", **OPTIONS)
    record = fit(module, DataLoader(batches, batch_size=None), accumulate_grad_batches=4, max_epochs=1)

    model = tiny_model().train()
    total, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        total = total + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        )
        count += int((targets != -100).sum())
    (total / count).backward()
    gradients = [p.grad for p in model.parameters()]
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    assert record.norms == [pytest.approx(norm, rel=1e-6)]
    assert record.metrics[0]["train/grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert record.metrics[0]["train/loss"] == pytest.approx((total / count).item(), rel=1e-6)
    for ours, old in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, old - 0.05 * old.grad, rtol=1e-6, atol=1e-8)


def test_clipping_acts_on_the_mean() -> None:
    module = SFTModule(tiny_model(), **OPTIONS)
    before = torch.cat([p.detach().flatten() for p in module.model.parameters()])
    record = fit(module, loader(4, 2), gradient_clip_val=1e-3, accumulate_grad_batches=2, max_epochs=1)
    step = torch.cat([p.detach().flatten() for p in module.model.parameters()]) - before
    assert record.metrics[0]["train/grad_norm"] > 1e-3
    assert step.norm().item() == pytest.approx(0.05 * 1e-3, rel=1e-3)


def test_logged_names_and_values(tmp_path: Path) -> None:
    module = IFTModule(tiny_model(), lam=0.4, lam_noise=0.2, **OPTIONS)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        max_epochs=1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader(4, 2), loader(5, 2))
    names = (Path(trainer.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("loss", "sft_loss", "fused_loss", "lam", "token_accuracy", "grad_norm", "lr", "tokens_per_s"):
        assert f"train/{name}" in names
    for name in ("loss", "sft_loss", "fused_loss", "token_accuracy"):
        assert f"val/{name}" in names
    assert trainer.callback_metrics["train/lr"] == pytest.approx(0.05)
    assert trainer.callback_metrics["val/lam"] == pytest.approx(0.4)  # Undisturbed outside training.
    assert trainer.callback_metrics["train/lam"] != pytest.approx(0.4)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_validation_is_independent_of_the_batch_size(reduction: str) -> None:
    values = []
    for batch_size in (1, 2, 5):
        module = IFTModule(tiny_model(), reduction=reduction, **OPTIONS)
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        (metrics,) = trainer.validate(module, loader(5, batch_size), verbose=False)
        values.append(metrics)
    for metrics in values[1:]:
        assert metrics == pytest.approx(values[0], rel=1e-5)


def test_a_bad_loss_stops_before_the_step_and_names_the_row() -> None:
    module = SFTModule(tiny_model(), **OPTIONS)
    batches = [tiny_batch(2, first=0), tiny_batch(2, first=2)]

    class Poison(SFTModule):
        def per_example_loss(self, nll: Any, mask: Any) -> Any:
            losses, metrics = super().per_example_loss(nll, mask)
            factor = torch.ones_like(losses)
            factor[1] = math.inf if self.trainer.global_step == 1 else 1.0
            return losses * factor, metrics

    module = Poison(tiny_model(), **OPTIONS)
    weights: list[torch.Tensor] = []

    class Keep(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            weights.append(torch.cat([p.detach().flatten() for p in module.model.parameters()]))

    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[Keep()], enable_progress_bar=False
    )
    with pytest.raises(NonFiniteLossError, match=r"Step 1: .*NaN or infinite.*\['row 3'\].*none was written yet"):
        trainer.fit(module, DataLoader(batches, batch_size=None))
    assert len(weights) == 1
    assert torch.equal(weights[0], torch.cat([p.detach().flatten() for p in module.model.parameters()]))


def test_a_step_without_any_target_is_refused() -> None:
    batch = tiny_batch(2)
    batch["labels"][:] = -100
    module = SFTModule(tiny_model(), **OPTIONS)
    with pytest.raises(UserError, match=r"Step 0: no trained token .*\['row 0', 'row 1'\]"):
        fit(module, DataLoader([batch], batch_size=None))


def test_an_endless_run_cannot_have_a_schedule() -> None:
    module = SFTModule(tiny_model(), optimizer=OPTIONS["optimizer"], lr_scheduler=CosineSchedule)
    with pytest.raises(UserError, match=r"Set trainer.max_steps or trainer.max_epochs"):
        fit(module, loader(2, 2), max_epochs=-1)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    module = IFTModule(tiny_model(), lam=0.3, gamma=0.5, **OPTIONS)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_epochs=1, enable_progress_bar=False, logger=False
    )
    trainer.fit(module, loader(4, 2))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = IFTModule.load_from_checkpoint(path, model=tiny_model(seed=5))
    assert loaded.hparams["lam"] == 0.3
    assert loaded.hparams["gamma"] == loaded.token_loss.options["gamma"] == 0.5
    for ours, theirs in zip(loaded.model.parameters(), module.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Own(SFTModule):
    """As Lightning's documentation writes a subclass."""

    def __init__(self, model: Any, *, power: float = 1.0, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.save_hyperparameters()
        self.power = power


class OwnAgain(Own):
    not_saved = (*Own.not_saved, "judge")

    def __init__(self, model: Any, *, judge: Any, note: str, name: str, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.save_hyperparameters(ignore="note")
        self.judge = judge


def test_a_subclass_may_save_its_hyperparameters(tmp_path: Path) -> None:
    module = OwnAgain(tiny_model(), power=3.0, judge=print, note="mine", name="own", **OPTIONS)
    assert {"power": 3.0, "name": "own"}.items() <= dict(module.hparams).items()
    assert not {"optimizer", "lr_scheduler", "model", "judge", "note"} & set(module.hparams)
    assert Own("somewhere", power=2.0).hparams["model"] == "somewhere"
    trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=1, logger=False)
    trainer.fit(module, loader(2, 2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = OwnAgain.load_from_checkpoint(tmp_path / "last.ckpt", model=tiny_model(seed=5), judge=print, note="")
    assert loaded.power == 3.0
    assert torch.equal(next(loaded.parameters()), next(module.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"overfit_batches": 1},
        {"limit_train_batches": 1},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"detect_anomaly": True},
    ],
    ids=lambda o: next(iter(o)),
)
def test_trainer_options_keep_working(options: dict[str, Any]) -> None:
    module = IFTModule(tiny_model(dtype=torch.float32), **OPTIONS)
    record = fit(module, loader(4, 2), **options)
    assert all(math.isfinite(m["train/loss"]) for m in record.metrics)
    assert record.metrics


def test_lightnings_own_callbacks_keep_working(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import (
        DeviceStatsMonitor,
        EMAWeightAveraging,
        LearningRateMonitor,
        OnExceptionCheckpoint,
        ThroughputMonitor,
    )

    throughput = ThroughputMonitor(batch_size_fn=lambda batch: len(batch["labels"]), window_size=2)
    callbacks = [throughput, DeviceStatsMonitor(cpu_stats=False), LearningRateMonitor(), EMAWeightAveraging(decay=0.5)]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        max_epochs=1,
        log_every_n_steps=2,
        accumulate_grad_batches=2,
        callbacks=[*callbacks, OnExceptionCheckpoint(tmp_path)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = SFTModule(tiny_model(), **OPTIONS)
    trainer.fit(module, loader(16, 2))
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))
    assert not (tmp_path / "on_exception.ckpt").exists()

    class Breaks(SFTModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("broken on purpose")

    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[OnExceptionCheckpoint(tmp_path)], enable_progress_bar=False
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(Breaks(tiny_model(), **OPTIONS), loader(2, 2))
    assert (tmp_path / "on_exception.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "options", [{"lam_schedule": "linear", "lam_warmup": 4}, {"lam_noise": 0.4, "lam_seed": 3}], ids=["linear", "noisy"]
)
def test_lam_follows_the_optimizer_steps(options: dict[str, Any], accumulate: int) -> None:
    schedule = LambdaSchedule(
        0.4, options.get("lam_schedule", "constant"), None, options.get("lam_warmup"), options.get("lam_noise", 0.0), 3
    )
    module = IFTModule(tiny_model(), lam=0.4, **options, **OPTIONS)
    record = fit(module, loader(6 * accumulate, 2), accumulate_grad_batches=accumulate)
    assert len(record.metrics) == 6
    expected = [schedule.at(step, 6) for step in range(6)]
    assert len(set(expected)) >= 5
    assert [metrics["train/lam"] for metrics in record.metrics] == pytest.approx(expected)


def test_each_validation_stands_alone(tmp_path: Path) -> None:
    """What is logged after the last epoch is what the final weights score, and a broken validation leaves nothing."""
    module = SFTModule(tiny_model(), **OPTIONS)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=3, enable_checkpointing=False, **options)
    trainer.fit(module, loader(6, 2), loader(4, 2))
    logged = float(trainer.callback_metrics["val/loss"])

    class BreaksOff(Callback):
        def on_validation_batch_end(self, *_: Any) -> None:
            raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        L.Trainer(callbacks=[BreaksOff()], **options).validate(module, loader(8, 4), verbose=False)
    (again,) = L.Trainer(**options).validate(module, loader(4, 2), verbose=False)
    assert again["val/loss"] == pytest.approx(logged, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_validation_weighs_examples_as_training_does(reduction: str) -> None:
    """By hand: rows of 2 and of 8 trained tokens, and one without any."""
    batch = tiny_batch(3, 12)
    labels = torch.full((3, 12), -100)
    labels[0, 4:6] = batch["input_ids"][0, 4:6]
    labels[1, 3:11] = batch["input_ids"][1, 3:11]
    batch = {**batch, "labels": labels, "attention_mask": torch.ones(3, 12, dtype=torch.long)}
    module = SFTModule(tiny_model(), reduction=reduction, **OPTIONS)
    with torch.no_grad():
        losses, _ = module.example_losses(batch)
    weights = torch.tensor([2.0, 8.0, 0.0] if reduction == "token" else [1.0, 1.0, 0.0]).double()
    expected = float((losses * weights).sum() / weights.sum())
    other = float(losses[:2].mean() if reduction == "token" else (losses * torch.tensor([0.2, 0.8, 0.0])).sum())
    assert abs(expected - other) > 1e-3
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (metrics,) = trainer.validate(module, DataLoader([batch], batch_size=None), verbose=False)
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-6)


def test_a_row_of_weight_zero_counts_for_nothing_in_validation() -> None:
    class DividesByTokens(SFTModule):
        def per_example_loss(self, nll: Any, mask: Any) -> Any:
            return (nll * mask).sum(-1) / mask.sum(-1), {}

    batch = tiny_batch(3)
    batch["labels"][1] = -100
    values = [
        L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).validate(
            module_class(tiny_model(), **OPTIONS), DataLoader([batch], batch_size=None), verbose=False
        )[0]["val/loss"]
        for module_class in (DividesByTokens, SFTModule)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_broken_fit_leaves_nothing_behind() -> None:
    """A fit that breaks inside a window, then a whole one: its first step sees its own rows alone."""

    class Breaks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("broken on purpose")

    module = SFTModule(tiny_model(), **OPTIONS)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(accumulate_grad_batches=2, callbacks=[Breaks()], enable_checkpointing=False, **options)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(module, loader(4, 2))
    for parameter in module.model.parameters():
        parameter.grad = None
    after = fit(module, loader(4, 2), accumulate_grad_batches=2, max_epochs=1)
    fresh = fit(SFTModule(tiny_model(), **OPTIONS), loader(4, 2), accumulate_grad_batches=2, max_epochs=1)
    assert after.metrics[0]["train/loss"] == pytest.approx(fresh.metrics[0]["train/loss"], rel=1e-9)
    assert after.metrics[0]["train/grad_norm"] == pytest.approx(fresh.metrics[0]["train/grad_norm"], rel=1e-9)


def test_tokens_per_second_counts_what_is_not_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 2))  # Every look at the clock is two seconds after the one before.
    monkeypatch.setattr("lit_ift.modules.window.time.perf_counter", lambda: float(next(now)))
    batches = [tiny_batch(2, first=0), tiny_batch(2, first=2)]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    module = SFTModule(tiny_model(), **OPTIONS)
    record = fit(module, DataLoader(batches, batch_size=None), accumulate_grad_batches=2, max_epochs=1)
    assert record.metrics[0]["train/tokens_per_s"] == pytest.approx(tokens / 2)


@pytest.mark.parametrize("scale", [1.0, 1024.0, 2.0**40])
def test_float16_gradients_are_normalised_and_overflow_is_skipped(scale: float) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    module, twin = (SFTModule(tiny_model(dtype=torch.float32), **OPTIONS) for _ in range(2))
    before = torch.cat([p.detach().flatten() for p in module.model.parameters()])
    record = fit(module, loader(4, 2), plugins=[precision], accumulate_grad_batches=2, max_epochs=1)
    step = (torch.cat([p.detach().flatten() for p in module.model.parameters()]) - before).norm().item()
    exact = fit(twin, loader(4, 2), accumulate_grad_batches=2, max_epochs=1)
    assert record.metrics[0]["train/loss"] == pytest.approx(exact.metrics[0]["train/loss"], rel=1e-2)
    if scale > 1e6:
        assert "train/grad_norm" not in record.metrics[0]
        assert step == 0.0
        assert scaler.get_scale() < scale
    else:
        assert record.metrics[0]["train/grad_norm"] == pytest.approx(exact.metrics[0]["train/grad_norm"], rel=2e-2)
        assert step == pytest.approx(0.05 * exact.metrics[0]["train/grad_norm"], rel=2e-2)


def test_a_metric_may_be_missing_now_and_then_or_nan() -> None:
    class Sometimes(SFTModule):
        def example_losses(self, batch: Any) -> Any:
            losses, _ = super().example_losses(batch)
            metrics = {"odd": torch.full_like(losses, math.nan)}
            if batch["row_ids"][0] == "row 0":
                metrics["now_and_then"] = torch.ones_like(losses)
            return losses, metrics

    record = fit(Sometimes(tiny_model(), **OPTIONS), loader(4, 2), accumulate_grad_batches=2, max_epochs=1)
    assert record.metrics[0]["train/now_and_then"] == 1.0
    assert math.isnan(record.metrics[0]["train/odd"])


def test_a_step_logs_no_metric_of_an_earlier_one(tmp_path: Path) -> None:
    class OddSteps(SFTModule):
        def per_example_loss(self, nll: Any, mask: Any) -> Any:
            loss, metrics = super().per_example_loss(nll, mask)
            return loss, metrics | ({"odd": loss.detach()} if self.global_step % 2 else {})

    logger = CSVLogger(tmp_path)
    curves = LossCurves()
    fit(
        OddSteps(tiny_model(), **OPTIONS), loader(8, 2), logger=logger, max_epochs=1, log_every_n_steps=1, more=[curves]
    )
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        assert [bool(row["train/odd"]) for row in csv.DictReader(file)] == [False, True, False, True]
    assert [step for step, _ in curves.points["train/odd"]] == [2, 4]
    assert [step for step, _ in curves.points["train/loss"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (lambda losses: losses[:, None], r"losses of shape \(2, 1\)"),
        (lambda losses: losses.mean(), r"losses of shape \(\)"),
    ],
    ids=["keepdim", "scalar"],
)
def test_losses_of_another_shape_are_refused(wrong: Any, shape: str) -> None:
    class Wrong(SFTModule):
        def per_example_loss(self, nll: Any, mask: Any) -> Any:
            losses, metrics = super().per_example_loss(nll, mask)
            return wrong(losses), metrics

    with pytest.raises(ValueError, match=f"Wrong returned {shape} for a batch of 2 examples"):
        fit(Wrong(tiny_model(), **OPTIONS), loader(2, 2))


def test_batches_that_would_be_scored_wrongly_are_refused() -> None:
    batch = tiny_batch(2)
    module = SFTModule(tiny_model(), **OPTIONS)
    with pytest.raises(UserError, match=r"The batch has no labels; it has input_ids, attention_mask"):
        fit(module, DataLoader([{k: batch[k] for k in ("input_ids", "attention_mask")}], batch_size=None))
    left = {**batch, "attention_mask": batch["attention_mask"].flip(1)}
    with pytest.raises(UserError, match="padded on the left"):
        fit(module, DataLoader([left], batch_size=None))
    with pytest.raises(UserError, match="The batch is a list; SFTModule needs a dictionary of tensors by name"):
        fit(module, DataLoader([(batch["input_ids"], batch["labels"])], batch_size=None))


def test_the_model_is_there_once_it_is_configured(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    module = SFTModule(str(tmp_path))
    with pytest.raises(AttributeError, match=r"model is loaded by configure_model\(\), which the Trainer calls"):
        module.example_losses(tiny_batch(2))
    assert not hasattr(module, "model")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.nonsense  # noqa: B018
    module.configure_model()
    assert module.example_losses(tiny_batch(2))[0].shape == (2,)


def test_the_configured_learning_rate_wins_on_resuming(tmp_path: Path) -> None:
    def run(lr: float, epochs: int, **options: Any) -> L.Trainer:
        module = SFTModule(
            tiny_model(), optimizer=lambda params: SGD(params, lr=lr), lr_scheduler=OPTIONS["lr_scheduler"]
        )
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=epochs, enable_progress_bar=False
        )
        trainer.fit(module, loader(4, 2), **options)
        return trainer

    first = run(0.05, 1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    second = run(0.02, 2, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert second.global_step == 4
    assert float(second.callback_metrics["train/lr"]) == pytest.approx(0.02)
