"""The command line from end to end, on a tiny model."""

import csv
import json
import os
import warnings
from pathlib import Path

# Its log handler keeps the stderr that there is at the first import, which must not be that of a single test.
import lightning.pytorch  # noqa: F401
import pytest
import torch
import yaml
from commands import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_ift.checkpoints.run_folder import Claims
from lit_ift.cli.command import command_first


@pytest.fixture
def config(tmp_path: Path, model_folder: Path, data_file: Path) -> Path:
    content = {
        "model": {
            "class_path": "IFTModule",
            "init_args": {
                "model": str(model_folder),
                "lam": 0.3,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train": str(data_file), "val_fraction": 0.3, "batch_size": 4, "max_length": 64},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path / "out"),
            "enable_progress_bar": False,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.drawing
def test_fit_leaves_everything(config: Path, tmp_path: Path, model_folder: Path) -> None:
    assert run("fit", "--config", config) == 0
    folder = tmp_path / "out" / "runs" / "version_0"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) >= 6
    assert losses[-1] < losses[0]
    assert any(row["val/loss"] for row in rows)
    assert list(folder.glob("events.out.tfevents*"))
    checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
    assert "last.ckpt" in checkpoints
    assert len(checkpoints) == 2
    hparams = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert hparams["lam"] == 0.3

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    original = AutoModelForCausalLM.from_pretrained(model_folder)
    assert not torch.equal(model.lm_head.weight, original.lm_head.weight)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.chat_template
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / "model" / name).read_bytes() == (model_folder / name).read_bytes()
    card = (folder / "model" / "README.md").read_text()
    for words in ("lam: 0.3", "val/loss", "rows_kept", "library_name: transformers", "- ift"):
        assert words in card
    assert not list((tmp_path / "out").glob("version*"))

    # The saved configuration is one that the command line takes; the second run has a folder of its own.
    assert run("fit", "--config", folder / "config.yaml", "--trainer.max_epochs", 1) == 0
    assert (folder.parent / "version_1" / "config.yaml").is_file()
    assert not (folder.parent / "version_2").exists()


def test_validate_test_and_predict(config: Path, tmp_path: Path, data_file: Path, capsys) -> None:
    assert run("fit", "--config", config) == 0
    checkpoint = tmp_path / "out" / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        assert run("validate", "--config", config, "--ckpt_path", checkpoint) == 0
    assert "val/loss" in capsys.readouterr().out
    assert not [warning for warning in caught if "add the following callbacks" in str(warning.message)]
    test_data = ["--data.init_args.test", data_file]
    assert run("test", "--config", config, "--ckpt_path", checkpoint, *test_data) == 0
    assert "test/loss" in capsys.readouterr().out
    predict_data = ["--data.init_args.predict", data_file, "--model.init_args.generation", "{max_new_tokens: 4}"]
    assert run("predict", "--config", config, "--ckpt_path", checkpoint, *predict_data) == 0
    # Evaluations have folders of their own: the next run is version_1.
    runs = {path.name for path in (tmp_path / "out" / "runs").iterdir()}
    assert runs == {"version_0", "validate_0", "test_0", "predict_0"}
    path = tmp_path / "out" / "runs" / "predict_0" / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["row_id"].rpartition(":")[2] for row in rows] == [str(i) for i in range(1, 22)]
    assert rows[1]["expected"] == "bb"
    assert rows[1]["prompt"].endswith("<|im_start|>assistant\n")
    assert "Say 1 times b" in rows[1]["prompt"]


def test_progress_shows_no_part_of_a_name(config: Path, capsys) -> None:
    assert run("fit", "--config", config, "--trainer.enable_progress_bar", "true", "--trainer.max_epochs", 1) == 0
    shown = "".join(capsys.readouterr())
    assert "train/loss=" in shown
    assert "v_num" not in shown


def test_a_start_is_quiet(config: Path, capsys, caplog) -> None:
    """Out of a terminal, progress is lines, and what other packages have for one another is left out."""
    assert run("fit", "--config", config, "--trainer.enable_progress_bar", "true", "--trainer.max_epochs", 1) == 0
    shown = "".join(capsys.readouterr()) + caplog.text
    assert "epoch 1/1, batch 1/4, train/loss=" in shown
    assert "epoch 1/1, batch 4/4, train/loss=" in shown
    assert "validation, train/loss=" in shown
    assert "Model: 12.2 K parameters" in shown
    for noise in ("litlogger", "FLOPs", "deprecat", "Warning", "\r Training"):
        assert noise not in shown


def test_a_failed_start_uses_up_no_number(config: Path, tmp_path: Path, data_file: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": 3}\n')
    assert run("fit", "--config", config, "--data.init_args.train", bad) == 1
    assert run("fit", "--config", config, "--trainer.callbacks", "nowhere.Callback") == 2
    words = ["--data.init_args.train", bad, "--run_name", "mine"]
    assert run("fit", "--config", config, *words) == 1
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_a_run_that_is_under_way_is_not_begun_twice(config: Path, tmp_path: Path, capsys) -> None:
    runs = tmp_path / "out" / "runs"
    once = ["fit", "--config", config, "--trainer.max_epochs", 1]
    assert run(*once) == 0
    assert run(*once, "--run_name", "mine") == 0
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    capsys.readouterr()
    for folder, words in (
        (runs / "version_0", ["--resume", "auto"]),
        (runs / "version_0", ["--resume", "auto", "--checkpoint.dirpath", runs / "version_0" / "checkpoints"]),
        (runs / "mine", ["--resume", "auto", "--run_name", "mine"]),
        (runs / "mine", ["--run_name", "mine"]),
        (runs / "begun", ["--run_name", "begun"]),
    ):
        with Claims() as claims:
            claims.claim(folder)
            assert run(*once, *words) == 1
            error = capsys.readouterr().err
            assert f"{folder} is in use by process {os.getpid()} on {os.uname().nodename} since 2" in error
            assert "(--run_name)" in error
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_do_not_know_of_each_other_are_refused(
    config: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    monkeypatch.setenv(launcher, "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    assert run("fit", "--config", config, "--trainer.devices", 1) == 1
    error = capsys.readouterr().err
    assert "started 4 processes, but this run is made for 1" in error
    assert "trainer.num_nodes=" in error
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_changing_one_line_changes_the_objective(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("IFTModule", "SFTModule").replace("    lam: 0.3\n", ""))
    assert run("fit", "--config", config, "--trainer.max_epochs", 1) == 0
    card = (tmp_path / "out" / "runs" / "version_0" / "model" / "README.md").read_text()
    assert "- sft" in card


def test_an_overlay_may_change_the_objective_too(config: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "sft.yaml"
    overlay.write_text("model: {class_path: SFTModule}\n")
    assert run("fit", "--config", config, "--config", overlay, "--trainer.fast_dev_run", "true") == 0


def test_the_command_line_wins_over_the_checkpoint(config: Path, tmp_path: Path) -> None:
    assert run("fit", "--config", config, "--trainer.max_epochs", 1) == 0
    checkpoint = tmp_path / "out" / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    assert run("fit", "--config", config, "--ckpt_path", checkpoint, "--model.init_args.lam", 0.7) == 0
    saved = yaml.safe_load((tmp_path / "out" / "runs" / "version_1" / "config.yaml").read_text())
    assert saved["model"]["init_args"]["lam"] == 0.7
    with (tmp_path / "out" / "runs" / "version_1" / "metrics.csv").open() as file:
        values = [float(row["train/lam"]) for row in csv.DictReader(file) if row["train/lam"]]
    assert values == pytest.approx([0.7] * len(values))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model.init_args.lamm", "0.2"], 2, "Did you mean 'lam' for 'lamm'?"),
        (["--trainer.max_epoch", "2"], 2, "Did you mean 'max_epochs' for 'max_epoch'?"),
        (["--model.init_args.lr", "1e-4"], 2, "'model.init_args.optimizer.init_args.lr' for 'lr'"),
        (["--model.init_args.batch_size", "4"], 2, "'batch_size' is an option of ConversationDataModule (data.init"),
        (["--model.class_path", "IftModule"], 2, "There is no class 'IftModule'. Did you mean 'IFTModule'?"),
        (["--model.init_args.lam", "high"], 2, "lam"),
        (["--model.init_args.gamma", "1.5"], 1, "gamma=1.5 must be at least 0 and at most 1"),
        (["--model.init_args.prediction", "best"], 2, "prediction"),
        (["--trainer.devices", "0"], 1, "devices"),
        (["--data.init_args.train", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["--model.init_args.model", "./nowhere"], 1, "./nowhere"),
        (["--ckpt_path", "nowhere.ckpt"], 1, "--ckpt_path nowhere.ckpt: no such file"),
        (["--checkpoint.monitor", "val/losss"], 1, "checkpoint.monitor=val/losss is not among the metrics"),
        (["--run_name", "../mine"], 1, "must be the name of one folder"),
        (["--trainer.default_root_dir", __file__], 1, "Set trainer.default_root_dir to a folder"),
        (["--export.dirpath", f"{__file__}/model"], 1, "Set export.dirpath"),
        (["--model.init_args.optimizer.init_args.lr", "-1"], 1, "Invalid learning rate: -1"),
        (["--model.init_args.generation", "{temperatur: 0.7}"], 1, "Did you mean 'temperature'?"),
    ],
)
def test_wrong_calls_say_what_to_mend(config: Path, capsys, words: list[str], code: int, message: str) -> None:
    assert run("fit", "--config", config, *words) == code
    error = capsys.readouterr().err
    assert message in error
    assert not any(noise in error for noise in ("Traceback", "Union subtypes", "NoneType", "Namespace("))


def test_a_checkpoint_of_another_model_is_refused(config: Path, tmp_path: Path, capsys) -> None:
    assert run("fit", "--config", config, "--trainer.max_epochs", 1, "--run_name", "a") == 0
    checkpoint = tmp_path / "out" / "runs" / "a" / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    assert run("fit", "--config", config, "--ckpt_path", checkpoint, "--model.init_args.lora.r", 2) == 1
    error = capsys.readouterr().err
    assert "The checkpoint is of another model: " in error
    assert len(error.splitlines()) < 40


def test_a_metric_that_validation_lacks_costs_no_training(config: Path, tmp_path: Path, capsys) -> None:
    words = ["--checkpoint.monitor", "val/bleu", "--run_name", "a", "--trainer.max_epochs", 1]
    assert run("fit", "--config", config, *words) == 1
    assert "checkpoint.monitor=val/bleu is not among the metrics of the validation" in capsys.readouterr().err
    assert (tmp_path / "out" / "runs" / "a" / "checkpoints" / "last.ckpt").is_file()


def test_unknown_key_in_a_file(config: Path, capsys) -> None:
    config.write_text(config.read_text().replace("max_epochs:", "max_epoch:"))
    assert run("fit", "--config", config) == 2
    error = capsys.readouterr().err
    assert "trainer.max_epoch" in error
    assert "Did you mean 'max_epochs'" in error


def test_a_bad_row_stops_before_training(config: Path, tmp_path: Path, capsys) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 3}\n')
    words = ["--data.init_args.train", bad, "--data.init_args.val_fraction", 0.0]
    assert run("fit", "--config", config, *words) == 1
    error = capsys.readouterr().err
    assert "bad.jsonl:2" in error
    assert "completion" in error
    assert not list((tmp_path / "out").glob("runs/*/metrics.csv"))


def test_the_command_may_come_after_its_options() -> None:
    assert command_first(["--config", "a.yaml", "fit", "--x", "1"]) == ["fit", "--config", "a.yaml", "--x", "1"]
    assert command_first(["fit", "--config", "fit"]) == ["fit", "--config", "fit"]
    assert command_first(["--config=a.yaml", "validate"]) == ["validate", "--config=a.yaml"]
    assert command_first(["--help"]) == ["--help"]
