"""The vLLM engine against a stand-in for the module: vLLM itself has not been run."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_tokenizer

from lit_ift.errors import UserError
from lit_ift.export import export_model
from lit_ift.generation.engine import GenerationOptions
from lit_ift.generation.find import find_model
from lit_ift.generation.opened import LoadOptions
from lit_ift.generation.prompts import Prompt
from lit_ift.generation.run import answered
from lit_ift.generation.vllm_engine import VllmEngine
from lit_ift.models.load import load_model
from lit_ift.models.lora import add_lora


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keeps what it was told, and answers each prompt by its ids and a number."""
    module: Any = ModuleType("vllm")
    module.told = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            module.told.append(options)

        def generate(self, prompts: Any, parameters: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
            module.told.append({"parameters": parameters, "lora": lora_request})
            many = parameters.get("n", 1)
            texts = [[f"{prompt['prompt_token_ids'][0]} {n}" for n in range(many)] for prompt in prompts]
            return [SimpleNamespace(outputs=[SimpleNamespace(text=text) for text in of]) for of in texts]

    module.LLM, module.SamplingParams = LLM, dict
    request: Any = ModuleType("vllm.lora.request")
    request.LoRARequest = lambda name, number, path: (name, number, path)
    for name, found in (("vllm", module), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, found)
    return module


def test_what_vllm_is_told(vllm: Any, model_folder: Path) -> None:
    engine = VllmEngine(find_model(str(model_folder)), LoadOptions(dtype="bfloat16"))
    folder = str(model_folder)
    wanted = {"model": folder, "tokenizer": folder, "dtype": "bfloat16", "trust_remote_code": False}
    assert vllm.told == [wanted]
    sampled = GenerationOptions(temperature=0.7, top_p=0.9, num_answers=2, seed=5, max_new_tokens=9)
    assert dict(engine.generate([[4, 5], [6]], sampled)) == {0: ["4 0", "4 1"], 1: ["6 0", "6 1"]}
    common = {"max_tokens": 9, "skip_special_tokens": True}
    sampling = {**common, "n": 2, "seed": 5, "temperature": 0.7, "top_p": 0.9}
    assert vllm.told[1:] == [{"parameters": sampling, "lora": None}]
    assert dict(engine.generate([[4]], GenerationOptions(max_new_tokens=9))) == {0: ["4 0"]}
    assert vllm.told[2]["parameters"] == {**common, "n": 1, "seed": 0, "temperature": 0.0}


def test_an_adapter_is_put_on_its_base(vllm: Any, model_folder: Path, tmp_path: Path) -> None:
    adapted = add_lora(load_model(str(model_folder)), {"r": 4})
    tokenizer: Any = tiny_tokenizer()
    folder = export_model(adapted, tmp_path / "a", tokenizer=tokenizer, tokenizer_source=None, metadata={})
    engine = VllmEngine(find_model(str(folder)), LoadOptions())
    told = {name: vllm.told[0][name] for name in ("model", "tokenizer", "enable_lora", "max_lora_rank")}
    assert told == {"model": str(model_folder), "tokenizer": str(folder), "enable_lora": True, "max_lora_rank": 4}
    list(engine.generate([[4]], GenerationOptions()))
    assert vllm.told[1]["lora"] == ("adapter", 1, str(folder))


def test_prompts_are_written_by_the_models_template(vllm: Any, model_folder: Path, tmp_path: Path) -> None:
    from lit_ift.chat import Conversation

    messages = [{"role": "user", "content": "Hello"}]
    prompts = [Prompt("a:1", Conversation(messages, num_prompt_messages=1), None)]
    output = tmp_path / "a.jsonl"
    load = LoadOptions()
    place = find_model(str(model_folder))
    answers = answered(place, prompts, output, options=GenerationOptions(), load=load, engine="vllm")
    assert answers == [["1 0"]]  # The first token of ChatML.


def test_it_is_missing_or_cannot_read_the_model(
    vllm: Any, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(UserError, match=r"vLLM does not read checkpoints. Export it first: lit-ift export .*a\.ckpt"):
        VllmEngine(find_model(str(tmp_path / "a.ckpt")), LoadOptions())
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'lit-ift\[vllm\]'"):
        VllmEngine(find_model(str(model_folder)), LoadOptions())
