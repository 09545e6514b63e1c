"""Loggers of a user's own come besides those of the run's folder."""

import csv
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Its log handler keeps the stderr that there is at the first import, which must not be that of a single test.
import lightning.pytorch  # noqa: F401
import pytest
import yaml
from commands import run


@pytest.fixture
def words(tmp_path: Path, model_folder: Path, data_file: Path) -> list[str]:
    content = {
        "model": {"class_path": "SFTModule", "init_args": {"model": str(model_folder)}},
        "data": {"class_path": "InstructionDataModule", "init_args": {"train": str(data_file), "batch_size": 7}},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "default_root_dir": str(tmp_path / "out"),
            "enable_progress_bar": False,
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return ["fit", "--config", str(tmp_path / "run.yaml")]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb-cache"),
        "WANDB_DATA_DIR": str(tmp_path / "wandb-data"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path / 'mlruns'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # Where both write unless told otherwise.


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def of_wandb(root: Path) -> list[float]:
    """The losses in the file of an offline run, in the order in which they were logged."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.finish()
    (path,) = root.glob("wandb/offline-run-*/run-*.wandb")
    found = []
    for data in leveldb_records(path.read_bytes()):
        for item in Record.FromString(data).history.item:
            if (item.key or "/".join(item.nested_key)) == "train/loss":
                found.append(float(item.value_json))
    return found


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of a log in the form of LevelDB: blocks of 32 KiB, in which parts follow a header each."""
    position, parts = 7, b""  # The header of the file counts as part of the first block.
    while position + 7 <= len(log):
        if (left := 2**15 - position % 2**15) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, position)  # kind: 1 whole, 2 first, 3 middle, 4 last
        parts += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def of_mlflow(root: Path) -> list[float]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{root / 'mlruns'}")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "lit"]
    (found,) = client.search_runs([experiment])
    return [metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")]


def of_tensorboard(root: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "tb" / "lightning_logs" / "version_0"))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]


LOGGERS: dict[str, tuple[list[str], Any]] = {
    "wandb": (["WandbLogger", "--trainer.logger.project", "lit"], of_wandb),
    "mlflow": (["MLFlowLogger", "--trainer.logger.experiment_name", "lit"], of_mlflow),
    "tensorboard": (["TensorBoardLogger", "--trainer.logger.save_dir", "tb"], of_tensorboard),
}


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_comes_besides(words: list[str], tmp_path: Path, name: str) -> None:
    (logger, *options), read = LOGGERS[name]
    assert run(*words, "--run_name", "mine", "--trainer.logger", logger, *options) == 0
    folder = tmp_path / "out" / "runs" / "mine"
    left = {path.name for path in folder.iterdir() if not path.name.startswith("events.out")}
    assert left == {"checkpoints", "config.yaml", "curves.csv", "curves.png", "hparams.yaml", "metrics.csv", "model"}
    assert list(folder.glob("events.out.*"))
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"last.ckpt"}
    assert len(losses(folder)) == 3
    assert read(tmp_path) == pytest.approx(losses(folder), rel=1e-6)


def test_loggers_are_appended_and_may_change_when_a_run_goes_on(words: list[str], tmp_path: Path) -> None:
    words += ["--trainer.logger+", *LOGGERS["tensorboard"][0], "--checkpoint.every_n_train_steps", "2"]
    assert run(*words) == 0
    folder = tmp_path / "out" / "runs" / "version_0"
    first = losses(folder)
    store = ["--trainer.logger.tracking_uri", f"file:{tmp_path / 'mlruns'}"]  # MLflow caches a relative one.
    assert run(*words, "--resume", "require", "--trainer.logger+", *LOGGERS["mlflow"][0], *store) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    assert losses(folder) == first
    assert of_tensorboard(tmp_path) == pytest.approx(first, rel=1e-6)
    assert (tmp_path / "mlruns").is_dir()


def test_without_loggers_there_is_no_folder_to_name(words: list[str], tmp_path: Path, capsys) -> None:
    assert run(*words, "--trainer.logger", "false", "--run_name", "mine") == 1
    assert "--run_name names the folder to which a run logs" in capsys.readouterr().err
    assert run(*words, "--trainer.logger", "false", "--resume", "auto") == 1
    assert "Set checkpoint.dirpath" in capsys.readouterr().err
    assert run(*words, "--trainer.logger", "false", "--export.enabled", "false") == 0
    assert not (tmp_path / "out" / "runs").exists()
