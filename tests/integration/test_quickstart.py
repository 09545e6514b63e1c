"""The quickstart's own configuration on the real model, cut to two steps."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_ift.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.drawing
def test_two_steps_of_the_quickstart(
    smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit-ift"])
    # The folder that the test already has stands for the hub id of the configuration.
    monkeypatch.setenv("LIT_IFT_CHECKPOINTS", str(Path(smollm2).parents[1]))
    monkeypatch.chdir(ROOT)
    options = {
        "data.init_args.train_size": 8,
        "data.init_args.val_size": 4,
        "data.init_args.batch_size": 12,
        "samples.items_per_task": 4,
        "trainer.default_root_dir": tmp_path,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["fit", "--config", "configs/quickstart.yaml", *words]) == 0
    printed = capsys.readouterr().out
    for task in ("spell_backward", "chain_sum", "letter_counting", "mean"):
        assert task in printed
    assert "Sample answers" in printed
    folder = tmp_path / "runs" / "version_0"
    answers = json.loads((folder / "answers.json").read_text())
    assert len(answers["before"]) == len(answers["after"]) == 12
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    card = (folder / "model" / "README.md").read_text()
    for words in ("# SmolLM2-135M-Instruct-ift", "tasks/mean, after", "val/loss", "lam: 0.2", "rows_kept: 12"):
        assert words in card

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.config.tie_word_embeddings
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    # Two small steps leave the model able to speak.
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
