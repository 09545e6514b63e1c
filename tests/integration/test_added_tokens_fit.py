"""ChatML on a base model that lacks its tokens: checked, trained, resumed and exported with them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from rowfiles import jsonl, write
from safetensors.torch import load_file
from tiny import VOCABULARY_SIZE, tiny_base_tokenizer, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lit_ift.cli import main


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a run on eight rows, from a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit-ift"])
    tiny_model("llama", dtype=torch.float32).save_pretrained("base")
    tiny_base_tokenizer().save_pretrained("base")
    write(tmp_path / "rows.jsonl", jsonl([{"prompt": f"{i}?", "completion": f"{i}!"} for i in range(8)]))
    schedule = {"class_path": "lit_ift.modules.optim.ConstantSchedule", "init_args": {"warmup": 0}}
    config = {
        "model": {
            "class_path": "SFTModule",
            "init_args": {"model": "base", "added_tokens": ["<|im_start|>", "<|im_end|>"], "lr_scheduler": schedule},
        },
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train": "rows.jsonl", "chat_template": "chatml", "batch_size": 4},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 2},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return ["--config", "config.yaml"]


def test_check_fit_resume_and_export(words: list[str]) -> None:
    assert main(["data", "check", *words, "--json", "report.json"]) == 0
    report = json.loads(Path("report.json").read_text())["splits"]["train"]
    assert [end["token"] for end in report["turn_ends"]] == ["<|im_end|>"]
    assert main(["fit", *words, "--trainer.default_root_dir", "whole"]) == 0
    model = Path("whole/runs/version_0/model")
    end = VOCABULARY_SIZE + 1
    assert AutoTokenizer.from_pretrained(model).encode("<|im_end|>") == [end]
    assert AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight.shape[0] == end + 1
    assert end in GenerationConfig.from_pretrained(model).eos_token_id
    rows = load_file(model / "model.safetensors")["model.embed_tokens.weight"][end - 1 :]
    assert not torch.equal(rows[0], rows[1])  # They began alike and were trained.

    assert main(["fit", *words, "--trainer.default_root_dir", "parts", "--trainer.max_steps", "2"]) == 0
    last = "parts/runs/version_0/checkpoints/last.ckpt"
    assert main(["fit", *words, "--trainer.default_root_dir", "parts", "--ckpt_path", last]) == 0
    resumed = load_file("parts/runs/version_1/model/model.safetensors")
    for name, value in load_file(model / "model.safetensors").items():
        assert torch.equal(resumed[name], value), name

    assert main(["export", "whole/runs/version_0/checkpoints/last.ckpt", "again"]) == 0
    again = load_file("again/model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in load_file(model / "model.safetensors").items())
    assert AutoTokenizer.from_pretrained("again").encode("<|im_end|>") == [end]


def test_a_sharded_run_trains_the_same_rows(words: list[str]) -> None:
    steps = ["--trainer.max_steps", "2", "--checkpoint.save_last", "false"]
    assert main(["fit", *words, *steps, "--trainer.default_root_dir", "one"]) == 0
    sharded = ["--trainer.strategy", "fsdp2", "--trainer.devices", "1", "--trainer.default_root_dir", "sharded"]
    assert main(["fit", *words, *steps, *sharded]) == 0
    one, other = (load_file(f"{root}/runs/version_0/model/model.safetensors") for root in ("one", "sharded"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, msg=name)
