"""Rows of all kinds under a Trainer: the batches that a module sees, resuming, and the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from commands import run
from lightning.pytorch.callbacks import ModelCheckpoint
from rowfiles import write_feedback
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from lit_ift import CausalLMModule, FeedbackDataModule
from lit_ift.data.rows import ROW_KINDS
from lit_ift.errors import UserError
from lit_ift.losses.logprobs import target_mask
from lit_ift.modules import SFTModule
from lit_ift.modules.packed import unpacked

COUNTS = {"instruction": 5, "preference": 4, "unpaired": 8, "scored": 6}
ANSWERS = 5 + 2 * 4 + 8 + 6


class AnyFeedback(CausalLMModule):
    """Trains every answer alike, and remembers what it saw."""

    kinds = frozenset(ROW_KINDS)
    needs_gold = False
    needs_mismatched = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: dict[int, list[list[str]]] = {}
        self.answers = 0

    def check_batch(self, batch: dict[str, Any]) -> None:
        assert len(batch["row_ids"]) == len(batch["row_kinds"])

    def example_weights(self, batch: dict[str, Any]) -> Tensor:
        return torch.ones(len(batch["row_kinds"]))

    def example_losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        labels = unpacked(batch)["labels"]
        assert batch["answer_rows"].shape == batch["answer_sides"].shape == batch["reference_logps"].shape
        assert len(labels) == len(batch["answer_rows"])
        nll = self.score(self.hidden_states(self.embed(batch["input_ids"]), batch), batch).nll
        assert nll.shape == target_mask(labels).shape
        per_row = nll.new_zeros(len(batch["row_kinds"])).index_add(0, batch["answer_rows"], nll.sum(1))
        if self.trainer.training:
            self.seen.setdefault(self.trainer.current_epoch, []).append(batch["row_ids"])
        self.answers += len(labels)
        return per_row, {"reference": per_row.detach() * 0}


class References(L.Callback):
    """Sets them when training starts, when Lightning has started the workers of the loader already."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for dataset in trainer.datamodule.datasets.values():  # type: ignore[attr-defined]
            dataset.reference_logps = np.arange(dataset.num_answers, dtype=np.float32)


def data(paths: dict[str, str], **options: Any) -> FeedbackDataModule:
    return FeedbackDataModule(list(paths.values()), cache=False, **{"batch_size": 4, **options})


def fit(
    tmp_path: Path,
    source: FeedbackDataModule,
    *,
    ckpt_path: str | None = None,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> AnyFeedback:
    module = AnyFeedback(tiny_model("llama"))
    module.tokenizer = tiny_tokenizer()
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[References(), *callbacks],
        enable_checkpointing=bool(callbacks),
        **options,
    )
    trainer.fit(module, datamodule=source, ckpt_path=ckpt_path, weights_only=ckpt_path is not None or None)
    return module


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    return write_feedback(tmp_path, **COUNTS)


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"batch_size": None, "tokens_per_batch": 900}])
def test_a_run_on_rows_of_all_kinds(tmp_path: Path, paths: dict[str, str], options: dict[str, Any]) -> None:
    module = fit(tmp_path, data(paths, **options), max_epochs=2)
    assert set(module.seen) == {0, 1}
    assert module.seen[0] != module.seen[1]
    for batches in module.seen.values():
        rows = [row for batch in batches for row in batch]
        assert len(rows) == len(set(rows)) == sum(COUNTS.values())
    assert module.answers == 2 * (ANSWERS + COUNTS["unpaired"] + COUNTS["preference"])


def test_packing_changes_no_loss(tmp_path: Path, paths: dict[str, str]) -> None:
    losses = []
    for packing in (False, True):
        source = data(paths, packing=packing, group_by_length=False)
        losses.append(fit(tmp_path, source, max_epochs=1).trainer.callback_metrics["train/loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_goes_on_inside_an_epoch(tmp_path: Path, paths: dict[str, str], packing: bool, num_workers: int) -> None:
    options = {"packing": packing, "num_workers": num_workers}
    whole = fit(tmp_path, data(paths, **options), max_epochs=2)
    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=3)
    first = fit(tmp_path, data(paths, **options), max_steps=3, callbacks=[saver])
    second = fit(tmp_path, data(paths, **options), max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert first.seen[0] == whole.seen[0][:3]
    assert second.seen == {0: whole.seen[0][3:], 1: whole.seen[1]}
    pairs_only = {kind: paths[kind] for kind in ("preference", "unpaired")}
    with pytest.raises(UserError, match="number of training rows 23"):
        fit(tmp_path, data(pairs_only, **options), max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt"))


def test_validation_rows_are_set_aside_by_their_questions(tmp_path: Path, paths: dict[str, str]) -> None:
    source = data(paths, val_fraction=0.3)
    module = fit(tmp_path, source, max_epochs=1)
    train = {row for batch in module.seen[0] for row in batch}
    val = {row.row_id for row in source.datasets["val"].rows}
    assert val
    assert not train & val
    assert len(train | val) == sum(COUNTS.values())
    assert float(module.trainer.callback_metrics["val/loss"]) > 0


class OnlyPairs(SFTModule):
    kinds = frozenset({"preference"})


def test_the_wrong_rows_end_the_run_before_training(tmp_path: Path, paths: dict[str, str]) -> None:
    module = OnlyPairs(tiny_model("llama"))
    module.tokenizer = tiny_tokenizer()
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"data.train: OnlyPairs trains on preference rows, but 5 rows are instruction"):
        trainer.fit(module, datamodule=data(paths))
    assert trainer.global_step == 0


def written(folder: Path, loss: Any) -> Path:
    """A configuration of a run on pairs with a model that is not there."""
    config = folder / "run.yaml"
    model = {"class_path": "PreferenceModule", "init_args": {"model": "nowhere", "loss": loss}}
    train = write_feedback(folder, preference=2)["preference"]
    data = {"class_path": "FeedbackDataModule", "init_args": {"train": str(train)}}
    config.write_text(yaml.safe_dump({"model": model, "data": data}))
    return config


@pytest.mark.parametrize(
    "loss", ["ipo", "[{name: dpo, weight: 0.8}, {name: sft, weight: 0.2}]", "[{name: propagation, gamma: 0.9}]"]
)
def test_one_loss_or_a_list_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str) -> None:
    config = written(tmp_path, [{"name": "tdpo"}])
    with pytest.raises(SystemExit, match="0"):
        run("fit", "--config", config, "--model.init_args.loss", loss, "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["loss"] == yaml.safe_load(loss)


def test_a_bad_list_of_losses_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, [{"name": "dpo"}, {"name": "sft", "weight": 0}])
    assert run("fit", "--config", config, "--trainer.default_root_dir", tmp_path) == 1
    assert "loss[1]: weight=0 must be above 0" in capsys.readouterr().err
