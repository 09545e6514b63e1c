"""Whole runs of the objectives on feedback: every kind of rows, from file to optimizer step."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rounding import NEAR32
from rowfiles import write_feedback
from tiny import tiny_model, tiny_tokenizer

from lit_ift import FeedbackDataModule, KTOModule, MixedModule, PreferenceModule, UFTModule
from lit_ift.errors import UserError
from lit_ift.modules import CausalLMModule, ObjectivePart
from lit_ift.modules.optim import ConstantSchedule

VOCABULARY = len(tiny_tokenizer())


def model(seed: int = 0) -> Any:
    return tiny_model(dtype=torch.float64, seed=seed, vocab_size=VOCABULARY)


class Record(L.Callback):
    """What each step logs, and what validation does."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.val: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})

    def on_validation_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.val = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


def fit(module: CausalLMModule, files: list[str], *, accumulate: int = 1, **data: Any) -> Record:
    source = FeedbackDataModule(files, val=files, tokenizer=tiny_tokenizer(), **{"batch_size": 4, **data})
    record = Record()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[record],
    )
    trainer.fit(module, datamodule=source)
    return record


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


PARTS = {
    "instruction": ObjectivePart("IFTModule", {"lam": 0.2}),
    "preference": ObjectivePart("PreferenceModule", {"options": {"beta": 0.2}}, weight=0.5),
}
MPO = [{"name": "dpo", "weight": 0.8, "beta": 0.2}, {"name": "bco", "weight": 0.2}, {"name": "sft"}]
OBJECTIVES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...], set[str]]] = {
    "dpo": (PreferenceModule, {"loss": "dpo"}, ("preference",), {"rewards/accuracies", "logps/chosen", "kl"}),
    "simpo": (PreferenceModule, {"loss": "simpo"}, ("preference",), {"rewards/margins", "logps/rejected"}),
    "mpo": (PreferenceModule, {"loss": MPO}, ("preference",), {"dpo/rewards/accuracies", "sft/loss", "log_ratio"}),
    "tdpo": (PreferenceModule, {"loss": "tdpo"}, ("preference",), {"rewards/accuracies"}),
    "kto": (KTOModule, {}, ("unpaired", "preference"), {"rewards/chosen", "rewards/accuracies", "kl"}),
    "bco": (KTOModule, {"variant": "bco"}, ("unpaired", "preference"), {"rewards/chosen", "log_ratio"}),
    "uft": (
        UFTModule,
        {"beta": 0.1},
        ("instruction", "preference", "unpaired", "scored"),
        {"loss/scored", "rewards/mean", "rewards/accuracies", "score_error"},
    ),
    "mixed": (
        MixedModule,
        {"parts": PARTS},
        ("instruction", "preference"),
        {"instruction/loss", "instruction/sft_loss", "preference/loss", "preference/rewards/accuracies"},
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("packing", [False, True])
def test_every_objective_trains(name: str, packing: bool, tmp_path: Path) -> None:
    cls, options, kinds, metrics = OBJECTIVES[name]
    files = write_feedback(tmp_path, **dict.fromkeys(kinds, 6))
    record = fit(cls(model(), optimizer=sgd, **options), [files[kind] for kind in kinds], packing=packing)
    losses = [step["train/loss"] for step in record.steps]
    assert torch.tensor(losses).isfinite().all()
    seen = set().union(*(set(step) for step in record.steps))
    assert {f"train/{metric}" for metric in metrics} <= seen
    assert {f"val/{metric}" for metric in metrics} <= set(record.val)


@pytest.mark.parametrize("name", ["dpo", "mpo", "bco", "uft", "mixed"])
def test_a_step_does_not_depend_on_its_split(name: str, tmp_path: Path) -> None:
    cls, options, kinds, _ = OBJECTIVES[name]
    # One step an epoch, so that all splits step on the same rows whatever their order.
    files = write_feedback(tmp_path, **dict.fromkeys(kinds, 8 // len(kinds)))
    weights = []
    for batch_size, accumulate in ((8, 1), (4, 2), (1, 8)):
        policy = model()
        module = cls(policy, optimizer=sgd, **options)
        fit(
            module,
            [files[kind] for kind in kinds],
            accumulate=accumulate,
            batch_size=batch_size,
            cache=False,
        )
        weights.append(torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    assert (weights[0] - start).abs().max() > 1e-5
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-12)


def test_parts_take_turns_and_a_run_goes_on_between_them(tmp_path: Path) -> None:
    """Three steps on instructions, then one on pairs; each has the losses of its own part alone."""
    files = write_feedback(tmp_path, instruction=12, preference=4)
    parts = {"instruction": ObjectivePart("SFTModule"), "preference": ObjectivePart("PreferenceModule")}

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "three.ckpt")

    def run(
        ckpt_path: Path | None = None, batch_size: int = 2, accumulate: int = 1
    ) -> tuple[Any, list[dict[str, int]]]:
        policy, steps = model(), []

        class Watched(MixedModule):
            def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                super().optimizer_step(*args, **kwargs)
                logged = {name for name in self.trainer.logged_metrics if name.endswith("/loss")}
                assert logged >= {"train/loss", *(f"train/{name}/loss" for name in self.latest)}
                steps.append(self.latest)

            def example_losses(self, batch: Any) -> Any:
                losses, metrics = super().example_losses(batch)
                self.latest = {name: len(part["row_ids"]) for name, part in batch.items() if part["row_ids"] != [""]}
                return losses, metrics

        module = Watched(policy, parts=parts, optimizer=sgd, lr_scheduler=ConstantSchedule)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulate, logger=False,
            enable_progress_bar=False, enable_checkpointing=False, callbacks=[] if ckpt_path else [Save()],
        )  # fmt: skip
        data = FeedbackDataModule(
            list(files.values()), tokenizer=tiny_tokenizer(), batch_size=batch_size, interleave_parts=True, cache=False
        )
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
        return policy, steps

    whole, steps = run()
    turn = [{"instruction": 2}] * 3 + [{"preference": 2}]
    assert steps == turn * 2
    rest, steps = run(tmp_path / "three.ckpt")
    assert steps == (turn * 2)[3:]
    split, _ = run(batch_size=1, accumulate=2)
    for one, other, third in zip(whole.parameters(), rest.parameters(), split.parameters(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(third, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dpo", "mpo", "mixed"])
def test_a_checkpoint_holds_plain_values_and_goes_on(name: str, tmp_path: Path) -> None:
    cls, options, kinds, _ = OBJECTIVES[name]
    files = write_feedback(tmp_path, **dict.fromkeys(kinds, 4))
    paths = [files[kind] for kind in kinds]
    data = {"tokenizer": tiny_tokenizer(), "batch_size": 2}
    plain = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}

    class SaveHalf(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = model()
    L.Trainer(**plain, max_epochs=2, enable_checkpointing=False, callbacks=[SaveHalf()]).fit(
        cls(whole, optimizer=sgd, **options), datamodule=FeedbackDataModule(paths, **data)
    )
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert set(saved["hyper_parameters"]) >= set(options)
    assert saved["hyper_parameters"].get("loss", "dpo") == options.get("loss", "dpo")
    cut = model()
    L.Trainer(**plain, max_epochs=2, enable_checkpointing=False).fit(
        cls(cut, optimizer=sgd, **options),
        datamodule=FeedbackDataModule(paths, **data),
        ckpt_path=tmp_path / "half.ckpt",
    )
    for left, right in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_the_first_rewards_are_zero(tmp_path: Path) -> None:
    """The reference is the policy that training begins from."""
    files = write_feedback(tmp_path, preference=6)
    record = fit(PreferenceModule(model(), optimizer=sgd), [files["preference"]])
    first = record.steps[0]
    assert abs(first["train/rewards/chosen"]) < NEAR32
    assert first["train/loss"] == pytest.approx(math.log(2), rel=NEAR32)


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (lambda: KTOModule(model()), "scored", "KTOModule"),
        (lambda: PreferenceModule(model(), loss="tpo"), "preference", "gold"),
        (lambda: MixedModule(model(), parts={"instruction": ObjectivePart("SFTModule")}), "preference", "preference"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_training(module: Any, kind: str, message: str, tmp_path: Path) -> None:
    files = write_feedback(tmp_path, **{kind: 4})
    with pytest.raises(UserError, match=message):
        fit(module(), [files[kind]])
