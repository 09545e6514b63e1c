"""A LoRA run from the configuration to the adapter folder and the merged model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_ift.cli import main
from lit_ift.errors import UserError
from lit_ift.export import export_model, verify_export
from lit_ift.export.merge import merge_adapter
from lit_ift.models import load_model
from lit_ift.models.lora import add_lora

IDS = torch.arange(3, 20)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS.to(model.device)).logits.detach()


@pytest.fixture
def trained(model_folder: Path) -> Any:
    model = add_lora(load_model(str(model_folder)), {"r": 4})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 if parameter.requires_grad else 0.0)
    return model


@pytest.fixture
def adapter(trained: Any, tmp_path: Path) -> Path:
    options: Any = {"tokenizer": tiny_tokenizer(), "tokenizer_source": None, "metadata": {"stop_token_ids": [2, 5]}}
    return export_model(trained, tmp_path / "adapter", **options)


def test_the_adapter_folder_is_standard(trained: Any, adapter: Path, model_folder: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    figures = verify_export(trained, adapter, tiny_tokenizer())
    assert figures["max_abs_logit_diff"] == 0.0
    assert figures["dtype"] == "float32"
    again = AutoPeftModelForCausalLM.from_pretrained(adapter)
    assert torch.equal(logits(again), logits(trained))
    assert not torch.equal(logits(again), logits(load_model(str(model_folder))))
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_folder)
    assert not (adapter / "model.safetensors").exists()
    card = (adapter / "README.md").read_text()
    assert "library_name: peft" in card
    assert "AutoPeftModelForCausalLM.from_pretrained(folder)" in card
    assert trained.peft_config["default"].inference_mode is False


def test_another_adapter_in_the_folder_is_noticed(trained: Any, adapter: Path) -> None:
    with torch.no_grad():
        next(p for p in trained.parameters() if p.requires_grad).add_(1.0)
    with pytest.raises(UserError, match="not the trained one"):
        verify_export(trained, adapter, tiny_tokenizer())


def test_an_adapter_in_another_dtype(trained: Any, tmp_path: Path) -> None:
    options: Any = {"tokenizer": tiny_tokenizer(), "tokenizer_source": None, "metadata": {}, "dtype": "bfloat16"}
    folder = export_model(trained, tmp_path / "half", **options)
    assert verify_export(trained, folder, tiny_tokenizer())["dtype"] == "bfloat16"
    export_model(trained, folder, **options, overwrite=True)


def test_an_adapter_on_a_nameless_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no name to load it by"):
        export_model(
            add_lora(tiny_model(), {}),
            tmp_path / "out",
            tokenizer=tiny_tokenizer(),
            tokenizer_source=None,
            metadata={},
        )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_merge(trained: Any, adapter: Path, tmp_path: Path, dtype: str | None, capsys: Any) -> None:
    output = tmp_path / "merged"
    assert main(["merge", str(adapter), str(output), *(["--dtype", dtype] if dtype else [])]) == 0
    assert f"{dtype or 'float32'} weights" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    assert merged.dtype == getattr(torch, dtype or "float32")
    gap = (logits(merged).float() - logits(trained)).abs().max() / logits(trained).abs().max()
    assert gap < (0.1 if dtype else 1e-5)
    assert AutoTokenizer.from_pretrained(output).chat_template == tiny_tokenizer().chat_template
    assert (output / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    assert set(json.loads((output / "generation_config.json").read_text())["eos_token_id"]) == {2, 5}


def test_merge_with_another_base(adapter: Path, tmp_path: Path, model_folder: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(str(model_folder), str(tmp_path / "gone")))
    with pytest.raises(UserError, match="gone"):
        merge_adapter(adapter, tmp_path / "merged")
    merge_adapter(adapter, tmp_path / "merged", base=str(model_folder))
    tiny_model(hidden_size=32, dtype=torch.float32).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="does not fit its base model"):
        merge_adapter(adapter, tmp_path / "merged2", base=str(tmp_path / "wide"))
    assert not (tmp_path / "merged2").exists()


def test_what_cannot_be_merged(adapter: Path, tmp_path: Path, model_folder: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in [
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "not an adapter"),
        (model_folder, "nothing to merge"),
    ]:
        assert main(["merge", str(folder), str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert main(["merge", str(adapter), str(model_folder)]) == 1
    assert "not empty" in capsys.readouterr().err
    (adapter / "adapter_model.safetensors").unlink()
    assert main(["merge", str(adapter), str(tmp_path / "out")]) == 1
    assert "incomplete" in capsys.readouterr().err


def test_fit_with_lora_from_the_command_line(tmp_path: Path, model_folder: Path, data_file: Path) -> None:
    words = ["fit", "--model", "IFTModule", "--model.init_args.model", str(model_folder)]
    words += ["--model.init_args.lora.r", "4", "--model.init_args.lora.lora_alpha", "8"]
    words += ["--data", "InstructionDataModule", "--data.init_args.train", str(data_file)]
    words += ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--samples.enabled", "false"]
    words += ["--trainer.default_root_dir", str(tmp_path), "--export.dirpath", str(tmp_path / "adapter")]
    assert main(words) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
