"""QLoRA runs, from the command line to an adapter that any copy of the base model takes."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from killing import Job
from rounding import NEAR32
from rowfiles import write_feedback
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lit_ift import FeedbackDataModule, IFTModule, KTOModule, MixedModule, PreferenceModule, SFTModule, UFTModule
from lit_ift.callbacks import HuggingFaceExport
from lit_ift.cli import main
from lit_ift.models.quantized import quantized_layers
from lit_ift.modules import ObjectivePart

pytest.importorskip("bitsandbytes", reason="quantized weights need bitsandbytes: pip install 'lit-ift[quantization]'")

PARTS = {
    "instruction": ObjectivePart("IFTModule", {"lam": 0.2}),
    "preference": ObjectivePart("PreferenceModule", {"options": {"beta": 0.2}}),
}
OBJECTIVES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "sft": (SFTModule, {}, ("instruction",)),
    "ift": (IFTModule, {}, ("instruction",)),
    "dpo, adapter": (PreferenceModule, {"reference": "adapter"}, ("preference",)),
    "dpo, cached": (PreferenceModule, {"reference": "cached"}, ("preference",)),
    "tdpo, model": (PreferenceModule, {"loss": "tdpo", "reference": "model"}, ("preference",)),
    "kto": (KTOModule, {}, ("unpaired",)),
    "uft": (UFTModule, {"beta": 0.1}, ("instruction", "scored")),
    "mixed": (MixedModule, {"parts": PARTS}, ("instruction", "preference")),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model wide enough for blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    tiny_model(dtype=torch.float32, **sizes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def words(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    start = ["fit", "--model", "IFTModule", "--model.init_args.model", str(base)]
    start += ["--model.init_args.quantization", "nf4", "--model.init_args.lora.r", "4"]
    start += ["--data", "InstructionDataModule", "--data.init_args.train", str(data)]
    start += [
        "--trainer.max_epochs",
        "2",
        "--trainer.accelerator",
        "cpu",
        "--trainer.log_every_n_steps",
        "1",
        "--samples.enabled",
        "false",
    ]
    return [*start, "--trainer.default_root_dir", str(out), *more]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 20)[None]).logits
        return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns(name: str, base: Path, tmp_path: Path) -> None:
    cls, options, kinds = OBJECTIVES[name]
    files = write_feedback(tmp_path, **dict.fromkeys(kinds, 8))
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-2)

    module = cls(str(base), lora={"r": 4}, quantization="nf4", optimizer=adam, **options)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=4,
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[Record(), HuggingFaceExport(dirpath=tmp_path / "adapter")],
    )
    source = FeedbackDataModule([files[kind] for kind in kinds], batch_size=4, cache=False)
    trainer.fit(module, datamodule=source)
    steps = len(losses) // 4
    assert sum(losses[-steps:]) < 0.95 * sum(losses[:steps])
    assert len(list(quantized_layers(module.model))) == 2 * 7
    assert all("lora_" in name for name, p in module.named_parameters() if p.requires_grad)
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()


@pytest.fixture(scope="module")
def run(base: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert main(words(base, data_file, folder, "--trainer.max_steps", "4")) == 0
    return folder / "runs" / "version_0"


def test_the_folder_opens_with_peft_alone(run: Path, base: Path) -> None:
    from peft import PeftModel

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    small = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=config)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(whole)
    far, near = (logits(PeftModel.from_pretrained(model, run / "model")) for model in (small, whole))
    assert not torch.equal(near, before)
    assert not torch.equal(near, far)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    saved = load_file(run / "model" / "adapter_model.safetensors")
    assert len(state) == len(saved)
    assert all(torch.equal(state[f"model.{n.replace('.weight', '.default.weight')}"], t) for n, t in saved.items())


def test_merge_and_export_of_the_checkpoint(run: Path, base: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert main(["merge", str(run / "model"), str(tmp_path / "merged")]) == 0
    assert main(["export", checkpoint, str(tmp_path / "adapter")]) == 0
    assert main(["export", checkpoint, str(tmp_path / "whole"), "--merge"]) == 0
    assert "of step 4" in capsys.readouterr().out
    pairs = [
        (run / "model" / "adapter_model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors"),
        (tmp_path / "merged" / "model.safetensors", tmp_path / "whole" / "model.safetensors"),
    ]
    for expected, ours in pairs:
        wanted, found = load_file(expected), load_file(ours)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.float32
    assert not list(quantized_layers(merged))
    assert not torch.equal(logits(merged), logits(AutoModelForCausalLM.from_pretrained(base)))


def test_export_tells_a_checkpoint_of_another_adapter(run: Path, tmp_path: Path, capsys: Any) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["state_dict"][next(iter(content["state_dict"]))]
    torch.save(content, tmp_path / "less.ckpt")
    assert main(["export", str(tmp_path / "less.ckpt"), str(tmp_path / "out")]) == 1
    assert "1 missing" in capsys.readouterr().err


def table(run: Path) -> list[dict[str, str]]:
    """What was logged, without the times."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.endswith("per_s")} for row in csv.DictReader(file)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_repeats_the_losses(base: Path, data_file: Path, tmp_path: Path, precision: str) -> None:
    options = ["--trainer.max_steps", "6", "--trainer.precision", precision]
    options += ["--model.init_args.lora.lora_dropout", "0.1"]
    options += ["--checkpoint.every_n_train_steps", "2", "--checkpoint.keep_last", "3"]
    assert main(words(base, data_file, tmp_path, *options)) == 0
    whole = tmp_path / "runs" / "version_0"
    second = [*options, "--ckpt_path", str(whole / "checkpoints" / "last-step=4.ckpt")]
    assert main(words(base, data_file, tmp_path, *second)) == 0
    resumed = tmp_path / "runs" / "version_1"
    expected = [row for row in table(whole) if int(row["step"]) >= 4]
    assert len(expected) >= 2
    assert [row for row in table(resumed) if int(row["step"]) >= 4] == expected
    ours, other = (load_file(path / "model" / "adapter_model.safetensors") for path in (resumed, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in other.items())


def test_two_ranks_equal_one(base: Path, data_file: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--trainer.max_steps", "3", "--seed_everything", "3"]
    assert main(words(base, data_file, one, *more, "--data.init_args.batch_size", "8")) == 0
    more += ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.init_args.batch_size", "4"]
    two.mkdir()
    job = Job(two, words(base, data_file, two, *more), ranks=2)
    assert job.run() == [0, 0], job.log()
    expected, found = (load_file(out / "runs/version_0/model/adapter_model.safetensors") for out in (one, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=NEAR32)
    assert all(bool(tensor.any()) for tensor in expected.values())
