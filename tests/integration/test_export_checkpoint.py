"""What `lit-ift export` makes of a run's checkpoint is what the run itself exported at its end."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Job
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from torch.distributed.checkpoint import save
from transformers import AutoModelForCausalLM

from lit_ift import SFTModule
from lit_ift.cli import main
from lit_ift.errors import UserError
from lit_ift.export.from_checkpoint import export_checkpoint
from lit_ift.models import load_model

LORA = ["--model.init_args.lora.r", "4", "--model.init_args.lora.lora_alpha", "8"]


def words(folder: Path, model: Path, data: Path, *more: str) -> list[str]:
    """A run of two steps with a checkpoint after the last."""
    start = ["fit", "--model", "IFTModule", "--model.init_args.model", str(model)]
    start += ["--data", "InstructionDataModule", "--data.init_args.train", str(data)]
    start += ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--samples.enabled", "false"]
    return [*start, "--trainer.default_root_dir", str(folder), *more]


def checkpoint_of(folder: Path) -> Path:
    (found,) = folder.glob("runs/version_0/checkpoints/last*.ckpt")
    return found


@pytest.fixture(scope="module", params=["full", "lora", "tied template"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory, model_folder: Path, data_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    if request.param == "full":
        assert main(words(folder, model_folder, data_file)) == 0
    elif request.param == "lora":
        assert main(words(folder, model_folder, data_file, *LORA)) == 0
    else:
        tiny_model(tied=True, dtype=torch.float32).save_pretrained(folder / "tied")
        tiny_tokenizer().save_pretrained(folder / "tied")
        assert main(words(folder, folder / "tied", data_file, "--data.init_args.chat_template", "zephyr")) == 0
    return folder


def as_shards(checkpoint: Path, folder: Path) -> Path:
    """A file as a folder of shards, as one rank would have written it."""
    content = torch.load(checkpoint, weights_only=True)
    shards = {"state_dict": content.pop("state_dict"), "optimizer_0": content.pop("optimizer_states")[0]}
    save(shards, checkpoint_id=folder, no_dist=True)
    torch.save(content, folder / "meta.pt")
    return folder


def assert_same_folder(ours: Path, expected: Path) -> None:
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in expected.iterdir())
    for file in expected.iterdir():
        mine = ours / file.name
        if file.suffix == ".safetensors":
            found, wanted = load_file(mine), load_file(file)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        elif file.name == "adapter_config.json":  # peft writes sets in any order.
            both = [json.loads(path.read_text()) for path in (mine, file)]
            for values in both:
                values["target_modules"] = sorted(values["target_modules"])
            assert both[0] == both[1]
        elif file.name == "README.md":
            name = re.compile(rf'folder = ".*"|\b({ours.name}|{expected.name})\b')  # Its commands name the folder.
            assert name.sub("", mine.read_text()) == name.sub("", file.read_text())
        else:
            assert mine.read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_it_is_what_fit_exports(run: Path, kind: str, tmp_path: Path, capsys: Any) -> None:
    checkpoint = checkpoint_of(run)
    output = tmp_path / "out"
    if kind == "shards":
        (tmp_path / "copy" / "checkpoints").mkdir(parents=True)
        for name in ("config.yaml", "metrics.csv"):
            shutil.copy(run / "runs" / "version_0" / name, tmp_path / "copy")
        checkpoint = as_shards(checkpoint, tmp_path / "copy" / "checkpoints" / "last.ckpt")
    assert main(["export", str(checkpoint), str(output)]) == 0
    said = capsys.readouterr().out
    assert (
        "of step 2, float32 weights (loaded again: logits differ by at most 0.0e+00, template ids equal: True)" in said
    )
    assert_same_folder(output, run / "runs" / "version_0" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"out", *(["copy"] if kind == "shards" else [])})


def test_of_a_sharded_run(tmp_path: Path, model_folder: Path, data_file: Path) -> None:
    command = words(tmp_path, model_folder, data_file, "--trainer.strategy", "fsdp2", "--trainer.devices", "2")
    job = Job(tmp_path, command, ranks=2)
    assert job.run() == [0, 0], job.log()
    checkpoint = checkpoint_of(tmp_path)
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    export_checkpoint(checkpoint, tmp_path / "out")
    assert_same_folder(tmp_path / "out", tmp_path / "runs" / "version_0" / "model")
    hidden = {path.name for path in (tmp_path / "runs" / "version_0").glob(".*")}
    assert hidden <= {".lock"}


def test_dtype_and_files_of_a_size(run: Path, tmp_path: Path) -> None:
    if (run / "runs/version_0/model/adapter_config.json").is_file():
        figures = export_checkpoint(checkpoint_of(run), tmp_path / "half", dtype="bfloat16")
        assert figures["dtype"] == "bfloat16"
        return
    figures = export_checkpoint(checkpoint_of(run), tmp_path / "half", dtype="bfloat16", max_shard_size="10KB")
    assert figures["dtype"] == "bfloat16"
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 1
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").state_dict()
    expected = AutoModelForCausalLM.from_pretrained(run / "runs/version_0/model").bfloat16().state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_merge(run: Path, tmp_path: Path, capsys: Any) -> None:
    done = main(["export", str(checkpoint_of(run)), str(tmp_path / "whole"), "--merge"])
    if not (run / "runs/version_0/model/adapter_config.json").is_file():
        assert done == 1
        assert "nothing to merge" in capsys.readouterr().err
        return
    assert done == 0
    assert main(["merge", str(run / "runs/version_0/model"), str(tmp_path / "merged")]) == 0
    ours, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "merged"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["merged", "whole"]


def plain_checkpoint(path: Path, trained: Any, **hyper_parameters: Any) -> Path:
    """What a run without the command line leaves."""
    state = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    rest = {"loops": {}, "global_step": 7, "hyper_parameters": hyper_parameters}
    torch.save({"state_dict": state, **rest}, path)
    return path


def test_a_model_that_was_given_ready_made(model_folder: Path, tmp_path: Path) -> None:
    trained = tiny_model(dtype=torch.float32, seed=5)
    checkpoint = plain_checkpoint(tmp_path / "a.ckpt", trained)
    with pytest.raises(UserError, match=r"does not say which model.*--model"):
        export_checkpoint(checkpoint, tmp_path / "out")
    figures = export_checkpoint(checkpoint, tmp_path / "out", model=str(model_folder))
    assert (figures["step"], figures["max_abs_logit_diff"]) == (7, 0.0)
    again = load_model(str(tmp_path / "out")).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in trained.state_dict().items())
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{class_path: lit_ift.SFTModule, init_args: {{model: {model_folder}}}}}")
    export_checkpoint(checkpoint, tmp_path / "named", config=config)
    assert "objective `sft`" in (tmp_path / "named" / "README.md").read_text()


def test_weights_of_another_model(model_folder: Path, tmp_path: Path) -> None:
    wide = plain_checkpoint(tmp_path / "wide.ckpt", tiny_model(hidden_size=32), model=str(model_folder))
    with pytest.raises(UserError, match=r"of another shape: .*weight \(259, 32\) instead of .* --model"):
        export_checkpoint(wide, tmp_path / "out")
    deep = plain_checkpoint(tmp_path / "deep.ckpt", tiny_model(num_hidden_layers=3), model=str(model_folder))
    with pytest.raises(UserError, match=r"9 not part of the model: model.layers.2.*and 4 more"):
        export_checkpoint(deep, tmp_path / "out")
    flat = plain_checkpoint(tmp_path / "flat.ckpt", tiny_model(num_hidden_layers=1), model=str(model_folder))
    with pytest.raises(UserError, match=r"9 missing: model.layers.1"):
        export_checkpoint(flat, tmp_path / "out")
    adapted = SFTModule(str(model_folder), lora={"r": 2})
    adapted.configure_model()
    lora = plain_checkpoint(tmp_path / "lora.ckpt", adapted.model, model=str(model_folder))
    with pytest.raises(UserError, match="those of an adapter, whose options"):
        export_checkpoint(lora, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".ckpt"]


def test_what_is_in_the_way(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint = plain_checkpoint(tmp_path / "a.ckpt", tiny_model(), model=str(model_folder))
    assert main(["export", str(checkpoint), str(model_folder)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["export", str(model_folder), str(tmp_path / "out")]) == 1
    assert "Hugging Face folder already" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--max_shard_size", "much"]) == 1
    assert "no size such as" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--config", str(tmp_path / "none.yaml")]) == 2
    assert "There is neither a file nor a recipe" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["weights", "model"])
def test_a_full_disk(part: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = plain_checkpoint(tmp_path / "a.ckpt", tiny_model(), model=str(model_folder))
    content = torch.load(checkpoint, weights_only=True) | {"optimizer_states": [{"state": {}}]}
    torch.save(content, checkpoint)
    shards = as_shards(checkpoint, tmp_path / "shards.ckpt")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = "checkpoint_model.memory_mapped" if part == "weights" else "write.write_tokenizer"
    monkeypatch.setattr(f"lit_ift.export.{name}", full)
    with pytest.raises(UserError, match=r"No space left on device.*Nothing was left behind"):
        export_checkpoint(shards, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "shards.ckpt"}
