"""Lightning's own callbacks, from a configuration and from Python: each works, or is refused with the reason."""

import copy
import csv
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from commands import run
from lightning.pytorch import callbacks
from lightning.pytorch.tuner import Tuner
from tiny import num_rows, tiny_model, tiny_tokenizer

from lit_ift import InstructionDataModule, SFTModule
from lit_ift.cli.injected import copyable
from lit_ift.errors import UserError

CALLBACKS: dict[str, dict[str, Any]] = {
    "BatchSizeFinder": {"max_trials": 1, "steps_per_trial": 1, "init_val": 8},
    "DeviceStatsMonitor": {"cpu_stats": True},
    "EMAWeightAveraging": {"decay": 0.9},
    "EarlyStopping": {"monitor": "val/loss"},
    "GradientAccumulationScheduler": {"scheduling": {0: 1, 1: 2}},
    "LearningRateFinder": {"num_training_steps": 2},
    "LearningRateMonitor": {"logging_interval": "step"},
    "ModelSummary": {"max_depth": 2},
    "OnExceptionCheckpoint": {"dirpath": "on-exception"},
    "StochasticWeightAveraging": {"swa_lrs": 1e-3, "swa_epoch_start": 1},
    "ThroughputMonitor": {"batch_size_fn": "tiny.num_rows", "window_size": 2},
    "Timer": {"duration": "00:01:00:00"},
    "WeightAveraging": {},
}


@pytest.fixture
def config(tmp_path: Path, model_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two epochs of one step each."""
    monkeypatch.chdir(tmp_path)
    data = {"train": str(data_file), "val": str(data_file), "batch_size": 8, "max_rows": 8}
    content = {
        "model": {"class_path": "SFTModule", "init_args": {"model": str(model_folder)}},
        "data": {"class_path": "InstructionDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False},
        "export": {"enabled": False},
        "curves": {"enabled": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def from_yaml(config: Path, name: str, options: dict[str, Any], *words: object) -> int:
    overlay = config.with_name("callback.yaml")
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [{"class_path": name, "init_args": options}]}}))
    return run("fit", "--config", config, "--config", overlay, *words)


def trained(batch_size: int, *added: L.Callback, rows: int = 21, **options: Any) -> tuple[L.Trainer, Any, Any]:
    module = SFTModule(tiny_model(dtype=torch.float32), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    data = InstructionDataModule("rows.jsonl", batch_size=batch_size, max_rows=rows, tokenizer=tiny_tokenizer())
    return (
        L.Trainer(
            accelerator="cpu",
            logger=False,
            log_every_n_steps=1,
            enable_checkpointing=any(isinstance(callback, callbacks.Checkpoint) for callback in added),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(added),
            **options,
        ),
        module,
        data,
    )


@pytest.fixture
def rows(tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text(data_file.read_text())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CALLBACKS)
def test_from_a_configuration(config: Path, name: str) -> None:
    assert from_yaml(config, name, CALLBACKS[name]) == 0
    folder = config.parent / "checkpoints" / "runs" / "version_0"
    assert torch.load(folder / "checkpoints" / "last.ckpt")["global_step"] == 2
    with (folder / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row.get("train/loss")]
    assert steps == ["0", "1"]
    assert not list(config.parent.rglob(".lr_find*"))


@pytest.mark.parametrize("name", CALLBACKS)
def test_from_python(rows: None, name: str) -> None:
    options = CALLBACKS[name]
    options = {**options, "batch_size_fn": num_rows} if "batch_size_fn" in options else options
    trainer, module, data = trained(8, getattr(callbacks, name)(**options), rows=8, max_epochs=2)
    if name in ("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor"):
        trainer.loggers = [L.pytorch.loggers.CSVLogger(".")]
    if name == "EarlyStopping":
        data = InstructionDataModule(
            "rows.jsonl", val="rows.jsonl", batch_size=8, max_rows=8, tokenizer=tiny_tokenizer()
        )
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 2


def test_what_cannot_work_is_refused(config: Path, rows: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert from_yaml(config, "BackboneFinetuning", {}) == 1
    assert "BackboneFinetuning cannot be used here: it thaws a module's `backbone`" in capsys.readouterr().err
    budget = ["--data.init_args.batch_size", "null", "--data.init_args.tokens_per_batch", 100]
    assert from_yaml(config, "BatchSizeFinder", {}, *budget) == 1
    assert "data.tokens_per_batch=100 says how large a batch is. Leave one out." in capsys.readouterr().err
    trainer, module, data = trained(8, callbacks.BackboneFinetuning(), max_epochs=1)
    with pytest.raises(UserError, match="every layer is trained from the start"):
        trainer.fit(module, datamodule=data)


class Rates(L.Callback):
    """The learning rate and the loss of every step, as other callbacks see them."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.rates.append(float(trainer.callback_metrics["train/lr"]))
        assert float(outputs["loss"]) == pytest.approx(float(trainer.callback_metrics["train/loss"]), rel=1e-6)


def test_a_learning_rate_that_was_found_is_trained_with(rows: None) -> None:
    """By the callback and by the tuner; the search goes up until training diverges, and takes nothing along."""
    finder, rates = callbacks.LearningRateFinder(min_lr=1e-4, max_lr=1e3, num_training_steps=40), Rates()
    trainer, module, data = trained(1, rates, finder, max_epochs=2)
    trainer.fit(module, datamodule=data)
    found = finder.optimal_lr.suggestion()
    assert len(finder.optimal_lr.results["loss"]) > 20
    assert 1e-4 < found < 1e3
    assert module.lr == found
    # Warm-up over 4 of 42 steps, then down to 0: what the schedule makes of that rate.
    assert rates.rates[:5] == pytest.approx([found * step / 5 for step in range(1, 6)])
    assert rates.rates[-1] < found / 100

    rates = Rates()
    trainer, module, data = trained(1, rates, max_epochs=2)
    result = Tuner(trainer).lr_find(module, datamodule=data, min_lr=1e-4, max_lr=1e3, num_training=40)
    assert result is not None
    assert result.suggestion() == module.lr == pytest.approx(found)
    assert rates.rates == []
    trainer.fit(module, datamodule=data)
    assert max(rates.rates) == pytest.approx(found)


def test_a_batch_size_that_was_found_decides_the_length_of_the_schedule(rows: None) -> None:
    rates = Rates()
    finder = callbacks.BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=2)
    trainer, module, data = trained(7, rates, finder, max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert data.batch_size == 4
    assert trainer.global_step == len(rates.rates) == 6
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == 6


def test_changing_accumulation_counts_for_the_schedule(rows: None) -> None:
    trainer, module, data = trained(7, callbacks.GradientAccumulationScheduler({0: 1, 1: 2}), max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 5
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == 5


def test_averaged_weights_are_those_that_a_run_ends_with(rows: None) -> None:
    class Weights(L.Callback):
        seen: list[torch.Tensor]

        def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
            self.seen = []

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            self.seen.append(module.model.lm_head.weight.detach().clone())

    weights = Weights()
    trainer, module, data = trained(7, weights, callbacks.WeightAveraging(), max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert len(weights.seen) == 3
    torch.testing.assert_close(module.model.lm_head.weight.detach(), torch.stack(weights.seen).mean(0))


def test_processes_can_be_spawned(config: Path) -> None:
    words = ["--trainer.strategy", "ddp_spawn", "--trainer.devices", 2, "--data.init_args.batch_size", 4]
    assert run("fit", "--config", config, *words) == 0
    folder = config.parent / "checkpoints" / "runs" / "version_0"
    assert torch.load(folder / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["strategy"] == "ddp_spawn"


def test_callables_of_a_configuration_can_be_copied() -> None:
    from jsonargparse import ArgumentParser

    from lit_ift.modules.optim import OptimizerCallable

    parser = ArgumentParser()
    parser.add_argument("--optimizer", type=OptimizerCallable)
    words = ["--optimizer", "torch.optim.SGD", "--optimizer.lr", "0.5", "--optimizer.momentum", "0.25"]
    given = parser.instantiate(parser.parse_args(words)).optimizer
    weight = torch.nn.Parameter(torch.ones(1))
    for made in (copyable(given), copy.deepcopy(copyable(given)), pickle.loads(pickle.dumps(copyable(given)))):
        optimizer = made([weight])
        assert isinstance(optimizer, torch.optim.SGD)
        assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.5, 0.25)
    assert copyable(num_rows) is num_rows
