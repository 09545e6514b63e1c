"""Predictions that are kept from before training, or from one epoch to the next."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch.optim import SGD

from lit_ift.checkpoints.random_state import RandomState
from lit_ift.data import InstructionDataModule
from lit_ift.errors import UserError
from lit_ift.modules import IFTModule, SFTModule
from lit_ift.modules.kept_predictions import KeptPredictions
from lit_ift.modules.optim import ConstantSchedule


class Watched(L.Callback):
    """Remembers losses, and how often the decoder ran in each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.passes: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.count = 0
        self.hook = module.model.model.register_forward_hook(lambda *_: setattr(self, "count", self.count + 1))

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.hook.remove()
        self.losses.append(float(outputs["loss"]))
        self.passes.append(self.count)


def module_of(kind: str | None, *, rate: float = 0.5, **options: Any) -> IFTModule:
    module = IFTModule(
        tiny_model(),
        optimizer=lambda params: SGD(params, lr=rate),
        lr_scheduler=partial(ConstantSchedule, warmup=0),
        reuse_predictions=kind,
        lam=0.5,
        **options,
    )
    module.tokenizer = tiny_tokenizer()
    return module


def fit(
    module: Any,
    data_file: Path,
    folder: Path,
    *,
    epochs: int = 1,
    packing: bool = False,
    ckpt: Path | None = None,
    stop_after: int = -1,
    watched: Watched | None = None,
    **options: Any,
) -> tuple[Watched, L.Trainer]:
    data = InstructionDataModule(
        train=str(data_file), batch_size=4, packing=packing, cache_dir=str(folder / "data"), max_length=128
    )
    watched = watched or Watched()
    trainer = L.Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=epochs,
        max_steps=stop_after,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watched, RandomState()],
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=None if ckpt is None else str(ckpt), weights_only=True)
    return watched, trainer


@pytest.mark.parametrize("packing", [False, True])
def test_initial_predictions_are_those_of_the_first_step(data_file: Path, tmp_path: Path, packing: bool) -> None:
    usual, _ = fit(module_of(None), data_file, tmp_path, packing=packing)
    kept, _ = fit(module_of("initial"), data_file, tmp_path, packing=packing)
    assert usual.losses[0] == pytest.approx(kept.losses[0], rel=1e-12)
    assert usual.losses[-1] != pytest.approx(kept.losses[-1], rel=1e-9), "later the policy predicts something else"
    # Before the first packed batch the model proves that it keeps packed examples apart.
    assert (set(usual.passes[1:]), set(kept.passes[1:])) == ({2}, {1})


@pytest.mark.parametrize("options", [{}, {"prediction": "top-k", "top_k": 2}])
def test_a_policy_that_stays_predicts_the_same(data_file: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    usual, _ = fit(module_of(None, rate=0.0, **options), data_file, tmp_path, epochs=2)
    initial, _ = fit(module_of("initial", rate=0.0, **options), data_file, tmp_path, epochs=2)
    epoch, _ = fit(module_of("epoch", rate=0.0, **options), data_file, tmp_path, epochs=2)
    assert initial.losses == pytest.approx(usual.losses, rel=1e-12)
    assert epoch.losses == pytest.approx(usual.losses, rel=1e-12)
    steps = len(usual.losses) // 2
    assert epoch.passes == [2] * steps + [1] * steps


def test_predictions_are_found_on_disk_by_the_next_run(
    data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = fit(module_of("initial"), data_file, tmp_path)
    (file,) = (tmp_path / "data" / "predictions").glob("*.npy")
    assert np.load(file).min() >= 0
    monkeypatch.setattr("lit_ift.modules.reuse.pass_over_answers", None)
    second, _ = fit(module_of("initial"), data_file, tmp_path)
    assert second.losses == first.losses
    monkeypatch.undo()
    fit(module_of("initial", prediction="top-k", top_k=3), data_file, tmp_path)
    assert len(list((tmp_path / "data" / "predictions").glob("*.npy"))) == 2


@pytest.mark.parametrize("step", [3, 6, 8])  # 6 steps an epoch.
def test_a_resumed_run_goes_on_with_them(data_file: Path, tmp_path: Path, step: int) -> None:
    class Saves(Watched):
        def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
            super().on_train_batch_end(trainer, *rest)
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    whole, _ = fit(module_of("epoch"), data_file, tmp_path, epochs=3, watched=Saves())
    rest, _ = fit(module_of("epoch"), data_file, tmp_path, epochs=3, ckpt=tmp_path / "stopped.ckpt")
    assert len(whole.losses) == 18
    assert rest.losses == whole.losses[step:]


def test_rows_that_an_epoch_left_out_are_predicted_at_its_end(data_file: Path, tmp_path: Path) -> None:
    module = module_of("epoch", rate=0.0)
    watched, _ = fit(module, data_file, tmp_path, epochs=2, limit_train_batches=2)
    usual, _ = fit(module_of(None, rate=0.0), data_file, tmp_path, epochs=2, limit_train_batches=2)
    assert watched.losses == pytest.approx(usual.losses, rel=1e-12)


def test_a_second_fit_begins_anew(data_file: Path, tmp_path: Path) -> None:
    module = module_of("epoch", rate=0.0)
    first, _ = fit(module, data_file, tmp_path, epochs=2)
    predicted: list[Any] = []
    module.token_input.reused._predict = lambda *args: predicted.append(args)
    second, _ = fit(module, data_file, tmp_path, epochs=2)
    assert not predicted, "all rows were seen, so none is predicted beside the steps"
    assert second.passes == first.passes


def test_own_tokens_may_be_kept_too(data_file: Path, tmp_path: Path) -> None:
    def losses(**options: Any) -> Watched:
        module = SFTModule(
            tiny_model(),
            input="own_tokens",
            input_options={"lam": 1.0, **options},
            optimizer=lambda params: SGD(params, lr=0.0),
            lr_scheduler=partial(ConstantSchedule, warmup=0),
        )
        module.tokenizer = tiny_tokenizer()
        return fit(module, data_file, tmp_path)[0]

    usual, kept = losses(), losses(reuse_predictions="initial")
    assert kept.losses == pytest.approx(usual.losses, rel=1e-12)
    assert set(kept.passes) == {1}


def test_what_makes_no_sense_is_refused(data_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no effect with lam=0"):
        IFTModule(tiny_model(), lam=0.0, reuse_predictions="initial")
    with pytest.raises(ValueError, match="'sampled' draws them at each step"):
        IFTModule(tiny_model(), prediction="sampled", reuse_predictions="initial")
    with pytest.raises(ValueError, match="reuse_predictions='always' must be one of 'initial', 'epoch'"):
        IFTModule(tiny_model(), reuse_predictions="always")
    with pytest.raises(UserError, match="training ends with the first one"):
        fit(module_of("epoch"), data_file, tmp_path)
    with pytest.raises(UserError, match="training ends with the first one"):
        fit(module_of("epoch"), data_file, tmp_path, epochs=-1, stop_after=6)
    with pytest.raises(UserError, match="two training rows are a:1"):
        KeptPredictions(["a:1", "b:1", "a:1"], np.array([1, 2, 1]))


def test_they_stand_where_they_belong() -> None:
    kept = KeptPredictions(["a", "b", "c"], np.array([2, 0, 3]))
    kept.keep(["c", "", "a"], torch.tensor([7, 8, 9, 1, 2]))
    assert kept.tokens.tolist() == [1, 2, 7, 8, 9]
    assert kept.of(["a", "b", "c"]).tolist() == [1, 2, 7, 8, 9]
    assert kept.of(["c", ""]).tolist() == [7, 8, 9]
    kept.tokens[3] = -1
    assert kept.unknown_rows() == [2]
