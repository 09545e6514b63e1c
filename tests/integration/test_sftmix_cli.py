"""SFTMix from the command line: record the confidence in a run of SFT, then mix by it, half of the model at a time."""

import csv
from pathlib import Path

import yaml
from commands import run

from lit_ift.modules.sftmix import read_confidence


def test_record_then_mix(tmp_path: Path, model_folder: Path, data_file: Path) -> None:
    path = tmp_path / "confidence.jsonl"
    recorder = {"class_path": "lit_ift.callbacks.ConfidenceRecorder", "init_args": {"path": str(path)}}
    half = {"class_path": "lit_ift.callbacks.HalfFineTuning", "init_args": {"every_n_steps": 2}}
    runs = [
        ("SFTModule", {}, recorder),
        ("SFTMixModule", {"confidence": str(path), "mu": 0.5, "generation": {"prior": "b", "max_new_tokens": 4}}, half),
    ]
    for i, (name, options, callback) in enumerate(runs):
        content = {
            "model": {"class_path": name, "init_args": {"model": str(model_folder), **options}},
            "data": {
                "class_path": "InstructionDataModule",
                "init_args": {"train": str(data_file), "val_fraction": 0.0, "batch_size": 4, "max_length": 64},
            },
            "trainer": {
                "accelerator": "cpu",
                "default_root_dir": str(tmp_path / "out"),
                "enable_progress_bar": False,
                "callbacks": [callback],
            },
        }
        (tmp_path / f"{i}.yaml").write_text(yaml.safe_dump(content))
        assert run("fit", "--config", tmp_path / f"{i}.yaml") == 0
    assert len(read_confidence(path)) == 21
    with (tmp_path / "out" / "runs" / "version_1" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The last of 6 batches has one row, hence no pair: its line repeats the value before.
    mixup = [float(row["train/mixup_loss"]) for row in rows if row["train/mixup_loss"]]
    assert len(set(mixup)) == 5
    assert min(mixup) > 0
    shares = [float(row["hft/trainable_share"]) for row in rows if row["hft/trainable_share"]]
    assert len(shares) == 6
    assert all(0.5 < share < 0.9 for share in shares)
