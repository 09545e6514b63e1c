"""`lit-ift chat` and `lit-ift generate`: all that may be named as a model answers alike, and what goes wrong."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import run as lit_ift
from rowfiles import jsonl
from tiny import tiny_base_tokenizer, tiny_model, tiny_tokenizer
from torch.distributed.checkpoint import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_ift.errors import printable
from lit_ift.generation.answer_file import answer_all
from lit_ift.generation.terminal import HELP
from lit_ift.generation.transformers_engine import TransformersEngine

PAGE = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")
SHORT = ("--max_new_tokens", 5, "--device", "cpu")
QUESTIONS = ["Hello", "What is the capital of France?", "b"]


@pytest.fixture(scope="module", params=["full", "lora"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory, model_folder: Path, data_file: Path) -> Path:
    """A run whose training changed the answers."""
    folder = tmp_path_factory.mktemp("run")
    words = ["fit", "--model", "SFTModule", "--model.init_args.model", model_folder, "--data", "InstructionDataModule"]
    words += ["--data.init_args.train", data_file, "--trainer.max_steps", 3, "--trainer.accelerator", "cpu"]
    words += ["--samples.enabled", "false", "--trainer.default_root_dir", folder]
    words += ["--model.init_args.optimizer", "torch.optim.AdamW", "--model.init_args.optimizer.init_args.lr", 0.05]
    words += ["--data.init_args.chat_template", "chatml"]
    if request.param == "lora":
        words += ["--model.init_args.lora.r", 4]
    assert lit_ift(*words) == 0
    (found,) = (folder / "runs").iterdir()
    return found


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_bytes(jsonl([{"prompt": question} for question in QUESTIONS]))
    return tmp_path / "in.jsonl"


def generate(model: Any, questions: Path, output: Path, *more: Any) -> list[dict[str, Any]]:
    assert lit_ift("generate", model, questions, output, *SHORT, *more) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def by_hand(folder: Path) -> list[str]:
    """Greedy answers, a question at a time, as the model card says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (folder / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model: Any = AutoPeftModelForCausalLM.from_pretrained(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def test_all_that_may_be_named_answers_alike(run: Path, questions: Path, tmp_path: Path, model_folder: Path) -> None:
    wanted = by_hand(run / "model")
    assert wanted != by_hand(model_folder)
    (checkpoint,) = (run / "checkpoints").glob("last*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    shards = tmp_path / "copy" / "checkpoints" / "last.ckpt"
    save({"state_dict": content.pop("state_dict")}, checkpoint_id=shards, no_dist=True)
    content.pop("optimizer_states")
    torch.save(content, shards / "meta.pt")
    shutil.copy(run / "config.yaml", tmp_path / "copy")
    for number, named in enumerate((run, run / "model", checkpoint, shards, tmp_path / "copy")):
        rows = generate(named, questions, tmp_path / f"{number}.jsonl", "--batch_size", 2)
        assert [row["completion"] for row in rows] == wanted, named
        assert [row["prompt"][0]["content"] for row in rows] == QUESTIONS
    assert [row["row_id"] for row in rows] == [f"{questions}:{line}" for line in (1, 2, 3)]


def test_compare_finds_the_base(
    run: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = (run / "checkpoints").glob("last*.ckpt")
    for named in (run, checkpoint):
        texts = iter([QUESTIONS[1], "/compare", "/quit"])
        monkeypatch.setattr("builtins.input", lambda _, texts=texts: next(texts))
        monkeypatch.setenv("COLUMNS", "300")
        assert lit_ift("chat", named, *SHORT) == 0
        shown = capsys.readouterr().out
        assert f"base: {model_folder}" in shown
        for answer in (by_hand(run / "model")[1], by_hand(model_folder)[1]):
            assert printable(answer).splitlines()[0] in shown


def test_the_template_of_another_run_is_refused(
    run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lit_ift("generate", run, questions, tmp_path / "a.jsonl", *SHORT, "--chat_template", "zephyr") == 1
    assert "is not the chat template of" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["init_args"]["chat_template"] = "zephyr"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert lit_ift("chat", copy / "model", *SHORT) == 1
    assert "another chat template than the one that" in capsys.readouterr().err


def test_sampled_answers_and_alpaca_eval(model_folder: Path, questions: Path, tmp_path: Path) -> None:
    sampled = ("--num_answers", 3, "--temperature", 1.5, "--top_k", 50, "--seed", 4)
    rows = generate(model_folder, questions, tmp_path / "a.jsonl", *sampled)
    assert rows == generate(model_folder, questions, tmp_path / "b.jsonl", *sampled)
    assert [row["sample"] for row in rows] == [0, 1, 2] * 3
    assert len({row["completion"] for row in rows}) > 3
    output = tmp_path / "eval.json"
    assert lit_ift("generate", model_folder, questions, output, *SHORT, "--format", "alpaca_eval") == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [set(row) for row in found] == [{"instruction", "output", "generator"}] * 3
    assert [row["output"] for row in found] == by_hand(model_folder)
    assert found[0]["generator"] == "tiny"


def test_a_stopped_call_goes_on(
    model_folder: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("lit_ift.generation.run.answer_all", partial(answer_all, chunk=1))
    plain: Callable[..., Iterator[Any]] = TransformersEngine.generate
    asked: list[Any] = []

    def stopping(self: Any, prompts: Any, options: Any) -> Iterator[Any]:
        if len(asked) == 2:
            asked.append(None)
            raise KeyboardInterrupt
        asked.append(prompts)
        yield from plain(self, prompts, options)

    monkeypatch.setattr(TransformersEngine, "generate", stopping)
    output = tmp_path / "out.jsonl"
    words = ("generate", model_folder, questions, output, *SHORT)
    assert lit_ift(*words) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not output.exists()
    assert lit_ift(*words) == 0
    assert len(asked) == 4  # Two answers, the stop, and the third one.
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["completion"] for row in rows] == by_hand(model_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert lit_ift(*words) == 1
    assert "exists: name another file, or say --overwrite" in capsys.readouterr().err
    assert lit_ift(*words, "--overwrite") == 0


def test_a_base_model(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "base"
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    tiny_base_tokenizer().save_pretrained(folder)
    assert lit_ift("chat", folder, *SHORT) == 1
    assert "has no chat template: it is that of a base model" in capsys.readouterr().err
    assert lit_ift("generate", folder, questions, tmp_path / "a.jsonl", *SHORT) == 1
    assert "--chat_template chatml" in capsys.readouterr().err
    (tmp_path / "texts.jsonl").write_bytes(jsonl([{"text": "Once upon"}]))
    (row,) = generate(folder, tmp_path / "texts.jsonl", tmp_path / "b.jsonl")
    model, ids = AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer()("Once upon", return_tensors="pt")
    output = model.generate(ids["input_ids"], max_new_tokens=5, do_sample=False)
    text = tiny_base_tokenizer().decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert (row["prompt"], row["completion"]) == ("Once upon", text)
    assert generate(folder, questions, tmp_path / "c.jsonl", "--chat_template", "chatml")


def test_bad_input(model_folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"

    def fails(*words: Any, code: int = 1) -> str:
        assert lit_ift("generate", *words[:3], *SHORT, *words[3:]) == code
        assert not output.exists()
        return capsys.readouterr().err

    assert "there is no such file or folder" in fails(tmp_path / "none", questions, output)
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl" in fails(model_folder, tmp_path / "empty.jsonl", output)
    (tmp_path / "bad.jsonl").write_bytes(jsonl([{"prompt": "a"}, {"completion": "b"}]))
    assert "bad.jsonl:2" in fails(model_folder, tmp_path / "bad.jsonl", output)
    (tmp_path / "long.jsonl").write_bytes(jsonl([{"prompt": "a"}, {"prompt": "b" * 300}]))
    assert "long.jsonl:2: the prompt has 3" in fails(model_folder, tmp_path / "long.jsonl", output)
    assert "--format alpaca_eval" in fails(model_folder, questions, output, "--generator", "x", code=2)
    assert "greedy answers would be the same" in fails(model_folder, questions, output, "--num_answers", 2)
    assert "--temperature" in fails(model_folder, questions, output, "--temperatur", 1, code=2)
    assert "device=nope cannot be used" in fails(model_folder, questions, output, "--device", "nope")
    assert "pip install 'lit-ift[vllm]'" in fails_without_device(model_folder, questions, output, capsys)


def fails_without_device(model: Path, questions: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    for name, value in (("--batch_size", 16), ("--device", "cpu")):
        assert lit_ift("generate", model, questions, output, "--engine", "vllm", name, value) == 2
        assert f"{name} is for transformers" in capsys.readouterr().err
    assert lit_ift("generate", model, questions, output, "--engine", "vllm") == 1
    return capsys.readouterr().err


def test_the_page_has_the_commands_of_the_chat() -> None:
    for name in HELP:
        assert f"`{name}`" in PAGE.replace("`/help`, `/quit`", "`/help` `/quit`")
