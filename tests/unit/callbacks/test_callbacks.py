"""What the callbacks write, and when they stay quiet."""

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny import tiny_batch, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader

from lit_ift.callbacks import HuggingFaceExport, LossCurves, RunCheckpoint, Samples
from lit_ift.callbacks.panels import filled_panels
from lit_ift.chat import Conversation, Example
from lit_ift.data import EncodedRow, ReportBuilder, Row, TaskItem, TasksDataModule
from lit_ift.data.modules.verifiable import VerifiableDataModule
from lit_ift.errors import UserError
from lit_ift.export.card import run_metadata
from lit_ift.modules import IFTModule, SFTModule

pytestmark = pytest.mark.slow


def loader(batches: int = 3) -> DataLoader:
    return DataLoader([tiny_batch(2, first=2 * i) for i in range(batches)], batch_size=None)


def trainer(tmp_path: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "logger": CSVLogger(tmp_path),
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            **options,
        },
    )


def test_curves_have_one_point_a_step(tmp_path: Path) -> None:
    curves = LossCurves()
    run = trainer(tmp_path, curves, accumulate_grad_batches=2)
    run.fit(IFTModule(tiny_model()), loader(), loader(1))
    assert [step for step, _ in curves.points["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in curves.points["val/loss"]] == [2, 4]
    folder = Path(run.log_dir)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "curves.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "train/loss"]
    assert [float(row["value"]) for row in rows] == [value for _, value in curves.points["train/loss"]]
    again = LossCurves()
    again.load_state_dict(json.loads(json.dumps(curves.state_dict())))
    assert again.points == curves.points


def test_curves_show_what_each_objective_logs() -> None:
    def drawn(*names: str) -> list[list[str]]:
        return filled_panels({**{name: [(1, 0.5)] for name in names}, "train/kl": []}, LossCurves().panels)

    assert drawn("train/loss", "val/loss", "train/lam") == [["train/loss", "val/loss"], ["train/lam"]]
    assert drawn("val/rewards/accuracies", "train/rewards/rejected", "train/rewards/chosen", "train/kl") == [
        ["val/rewards/accuracies"],
        ["train/rewards/chosen", "train/rewards/rejected"],
    ]
    assert drawn("train/loss", "train/a/loss", "train/b/loss", "val/b/loss", "train/a/sft_loss") == [
        ["train/loss"],
        ["train/a/loss", "train/b/loss", "val/b/loss"],
        ["train/a/sft_loss"],
    ]


def test_curves_are_drawn_when_training_breaks(tmp_path: Path) -> None:
    class Breaks(SFTModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 2:
                raise RuntimeError("broken on purpose")
            return super().training_step(batch, batch_idx)

    run = trainer(tmp_path, LossCurves())
    with pytest.raises(RuntimeError, match="on purpose"):
        run.fit(Breaks(tiny_model()), loader())
    assert (Path(run.log_dir) / "curves.png").is_file()


def test_checkpoint_without_validation_keeps_the_newest(tmp_path: Path) -> None:
    checkpoint = RunCheckpoint()
    run = trainer(tmp_path, checkpoint, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="No validation data"):
        run.fit(SFTModule(tiny_model()), loader())
    names = sorted(path.name for path in Path(checkpoint.dirpath).iterdir())
    assert names == ["last.ckpt", "step=6.ckpt"]


def test_checkpoint_waits_for_a_validation_some_epochs_off(tmp_path: Path) -> None:
    checkpoint = RunCheckpoint(save_last=False)
    options = {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0, "max_epochs": 4}
    run = trainer(tmp_path, checkpoint, enable_checkpointing=True, **options)
    run.fit(SFTModule(tiny_model()), loader(), loader(1))
    assert checkpoint.monitor == "val/loss"
    assert checkpoint.best_model_score == pytest.approx(float(run.callback_metrics["val/loss"]), abs=0.5)
    assert len(list(Path(checkpoint.dirpath).iterdir())) == 1


def test_checkpoint_keeps_the_best(tmp_path: Path) -> None:
    checkpoint = RunCheckpoint(save_last=False)
    run = trainer(tmp_path, checkpoint, enable_checkpointing=True, max_epochs=3)
    run.fit(SFTModule(tiny_model()), loader(), loader(1))
    (name,) = (path.name for path in Path(checkpoint.dirpath).iterdir())
    assert name == Path(checkpoint.best_model_path).name
    assert len(list(Path(checkpoint.dirpath).iterdir())) == 1


class Addition(TasksDataModule):
    """Two questions whose answers are scored without a verifier: 1 for a 'b', 0.5 for anything else."""

    def eval_items(self, limit_per_task: int | None = None) -> list[TaskItem]:
        question = [{"role": "user", "content": "1 + 1 = ? [a list] [/b]"}]
        items = [TaskItem(task, question, "2", f"{task}#{i}") for task in ("one", "two") for i in range(2)]
        return items[:limit_per_task] if limit_per_task == 1 else items

    def score(self, item: TaskItem, answer: str) -> float:
        return 1.0 if item.row_id in ("one#0", "two#0", "two#1") else 0.5


def test_accuracy_counts_full_scores_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = Addition(
        {"spell_backward": {"min_word_len": 3, "max_word_len": 5}}, train_size=4, val_size=2, tokenizer=tiny_tokenizer()
    )
    assert isinstance(data, VerifiableDataModule)
    accuracy = Samples(items_per_task=2, max_new_tokens=2)
    run = trainer(tmp_path, accuracy)
    module = SFTModule(tiny_model(dtype=torch.float32))
    run.fit(module, datamodule=data)
    assert accuracy.accuracies() == {
        "one": {"before": 0.5, "after": 0.5},
        "two": {"before": 1.0, "after": 1.0},
        "mean": {"before": 0.75, "after": 0.75},
    }
    assert module.training  # Generation leaves the mode as it was.
    printed = capsys.readouterr().out
    assert "75.0 %" in printed
    assert "1 + 1 = ? [a list] [/b]" in printed.replace("\n", "")
    content = json.loads((Path(run.log_dir) / "answers.json").read_text())
    assert [answer["score"] for answer in content["after"]] == [1.0, 0.5, 1.0, 1.0]


def test_a_resumed_run_knows_the_answers_from_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(path: Path | None, **options: Any) -> Samples:
        tasks = {"spell_backward": {"min_word_len": 3, "max_word_len": 5}}
        data = Addition(tasks, train_size=4, val_size=2, batch_size=2, tokenizer=tiny_tokenizer())
        accuracy = Samples(items_per_task=2, max_new_tokens=2)
        checkpoint = RunCheckpoint(dirpath=tmp_path / "c", every_n_train_steps=1)
        run = trainer(tmp_path, accuracy, checkpoint, enable_checkpointing=True, **options)
        run.fit(SFTModule(tiny_model(dtype=torch.float32)), datamodule=data, ckpt_path=path)
        return accuracy

    fit(None, max_steps=1)
    monkeypatch.setattr(Addition, "score", lambda *_: 0.0)  # The model has unlearnt everything.
    resumed = fit(tmp_path / "c" / "last.ckpt", max_steps=2)
    assert resumed.accuracies()["mean"] == {"before": 0.75, "after": 0.0}


def test_accuracy_does_nothing_without_tasks(tmp_path: Path) -> None:
    accuracy = Samples()
    trainer(tmp_path, accuracy).fit(SFTModule(tiny_model()), loader())
    assert accuracy.accuracies() == {}


def test_export_of_a_ready_model_with_user_data(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    module = SFTModule(tiny_model(tied=True, dtype=torch.float32))
    module.tokenizer = tiny_tokenizer()
    export = HuggingFaceExport(dirpath=tmp_path / "model")
    trainer(tmp_path, export).fit(module, loader())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again.get_input_embeddings().weight, module.model.get_input_embeddings().weight)


def test_export_can_be_switched_off(tmp_path: Path) -> None:
    export = HuggingFaceExport(dirpath=tmp_path / "model", enabled=False)
    trainer(tmp_path, export).fit(SFTModule(tiny_model()), loader())
    assert not (tmp_path / "model").exists()


def test_callbacks_start_afresh_in_a_second_fit(tmp_path: Path) -> None:
    curves, checkpoint = LossCurves(), RunCheckpoint(dirpath=tmp_path / "checkpoints")
    with pytest.warns(UserWarning, match="No validation data"):
        trainer(tmp_path, curves, checkpoint, enable_checkpointing=True).fit(SFTModule(tiny_model()), loader())
    first = dict(curves.points)
    assert checkpoint.monitor is None
    run = trainer(tmp_path, curves, checkpoint, enable_checkpointing=True, max_epochs=1)
    run.fit(SFTModule(tiny_model(seed=1)), loader(), loader(1))
    assert checkpoint.monitor == "val/loss"
    assert [step for step, _ in curves.points["train/loss"]] == [1, 2, 3]
    assert curves.points["train/loss"] != first["train/loss"][:3]


def test_an_export_in_the_way_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    run = trainer(tmp_path, HuggingFaceExport(dirpath=tmp_path / "model"))
    with pytest.raises(UserError, match="the folder exists and is not empty"):
        run.fit(SFTModule(tiny_model()), loader())
    assert run.global_step == 0


def test_exports_of_one_run_folder_stand_side_by_side(tmp_path: Path) -> None:
    for _ in range(2):
        module = SFTModule(tiny_model(dtype=torch.float32))
        module.tokenizer = tiny_tokenizer()
        trainer(tmp_path, HuggingFaceExport(), logger=False, default_root_dir=tmp_path).fit(module, loader())
    assert (tmp_path / "model" / "config.json").is_file()
    assert (tmp_path / "model-1" / "config.json").is_file()


def test_control_tokens_that_end_trained_turns_are_stop_tokens() -> None:
    builder = ReportBuilder("train", tiny_tokenizer(), max_length=9, truncation="right")
    conversation = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    for ids in ([5, 6, 2], [5, 6, 1], [5, 6, 7]):
        example = Example(ids, [-100, *ids[1:]], "f:1")
        builder.keep(
            Row("instruction", "f:1", {"answer": conversation}), EncodedRow("instruction", "f:1", {"answer": example})
        )
    summary = builder.build().summary()
    for split, expected in (("train", [1, 2]), ("val", [])):
        metadata = run_metadata(
            module_class="SFTModule",
            base_model=None,
            source=None,
            config={},
            metrics={},
            reports={split: summary},
            tokenizer=tiny_tokenizer(),
        )
        assert metadata["stop_token_ids"] == expected
