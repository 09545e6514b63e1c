import errno
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny import tiny_tokenizer

from lit_ift.errors import UserError
from lit_ift.export import export_model, verify_export
from lit_ift.export.card import model_card
from lit_ift.models import load_model, load_tokenizer
from lit_ift.staging import staged_folder

METADATA: Any = {
    "base_model": "someone/base",
    "base_model_origin": "someone/base on the hub",
    "objective": "ift",
    "license": "apache-2.0",
    "datasets": ["someone/data"],
    "config": {"lr": 1e-5, "path": Path("a/b"), "nested": {"list": (1, 2)}},
    "metrics": {"val/nll": torch.tensor(1.25), "steps": 3},
    "data_report": {"rows": 10, "dropped": 1},
    "stop_token_ids": [2],
}


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path: Path, llama: Callable[..., Any], tokenizer: Any, tied: bool) -> None:
    source = tmp_path / "source"
    llama(tie_word_embeddings=tied, attention_dropout=0.25).save_pretrained(source)
    tokenizer.save_pretrained(source)
    original = {file.name: file.read_bytes() for file in source.iterdir()}
    model, loaded_tokenizer = load_model(str(source)), load_tokenizer(str(source))
    loaded_tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=3)  # leaves its mark in the backend
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    config = dict(model.config.__dict__)
    generation_config = model.generation_config

    folder = export_model(
        model,
        tmp_path / "deep" / "out",
        tokenizer=loaded_tokenizer,
        tokenizer_source=str(source),
        metadata=METADATA,
    )
    figures = verify_export(model, folder, loaded_tokenizer, tokenizer_source=str(source))

    assert figures == {
        "max_abs_logit_diff": 0.0,
        "logit_tolerance": 0.0,
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "text_ids_equal": True,
        "template_ids_equal": True,
        "tokenizer_files_identical": ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"],
        "tokenizer_files_differing": [],
    }
    assert model.training
    assert model.config.__dict__ == config
    assert model.generation_config is generation_config
    written = json.loads((folder / "config.json").read_text())
    assert written == json.loads(original["config.json"])
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) == (not tied)  # noqa: SIM118


@pytest.mark.parametrize("tied", [True, False])
def test_other_dtype(tmp_path: Path, llama: Callable[..., Any], tokenizer: Any, tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    folder = export_model(
        model, tmp_path / "out", tokenizer=tokenizer, tokenizer_source=None, metadata={}, dtype="bfloat16"
    )
    figures = verify_export(model, folder, tokenizer)
    assert figures["dtype"] == "bfloat16"
    assert 0 < figures["max_abs_logit_diff"] <= figures["logit_tolerance"]
    assert figures["tokenizer_files_identical"] == []
    assert model.dtype == torch.float32
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert ("lm_head.weight" in names) == (not tied)


def test_given_state_dict_is_written(tmp_path: Path, llama: Callable[..., Any], tokenizer: Any) -> None:
    model, other = llama(), llama(initializer_range=1.0)
    folder = export_model(
        model,
        tmp_path / "out",
        tokenizer=tokenizer,
        tokenizer_source=None,
        metadata={},
        state_dict=other.state_dict(),
    )
    assert verify_export(other, folder, tokenizer)["max_abs_logit_diff"] == 0.0
    with pytest.raises(UserError, match="not the trained one"):
        verify_export(model, folder, tokenizer)


@pytest.mark.parametrize("change", ["template", "token"])
def test_changed_tokenizer_is_saved_anew(
    llama_folder: Path, tmp_path: Path, llama: Callable[..., Any], change: str
) -> None:
    tokenizer = load_tokenizer(str(llama_folder))
    model = llama()
    if change == "template":
        tokenizer.chat_template = tokenizer.chat_template.replace("user", "User") + "{# changed #}"
    else:
        tokenizer.add_tokens(["<new>"])
        model.resize_token_embeddings(len(tokenizer))
    folder = export_model(model, tmp_path / "out", tokenizer=tokenizer, tokenizer_source=str(llama_folder), metadata={})
    figures = verify_export(model, folder, tokenizer, tokenizer_source=str(llama_folder))
    changed_file = "chat_template.jinja" if change == "template" else "tokenizer.json"
    assert changed_file in figures["tokenizer_files_differing"]
    again = load_tokenizer(str(folder))
    assert again.chat_template == tokenizer.chat_template
    assert len(again) == len(tokenizer)


def test_verify_notices_another_tokenizer(llama_folder: Path, llama: Callable[..., Any]) -> None:
    tokenizer = load_tokenizer(str(llama_folder))
    tokenizer.chat_template = "{{ messages[0].content }}"
    model = load_model(str(llama_folder))
    with pytest.raises(UserError, match="other token ids"):
        verify_export(model, llama_folder, tokenizer)


def test_unreadable_export(llama_folder: Path, llama: Callable[..., Any], tokenizer: Any) -> None:
    (llama_folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded again"):
        verify_export(llama(), llama_folder, tokenizer)


def test_stop_tokens_are_joined(tmp_path: Path, llama: Callable[..., Any], tokenizer: Any) -> None:
    model = llama()
    model.generation_config.eos_token_id = [0, 2]
    folder = export_model(
        model, tmp_path / "out", tokenizer=tokenizer, tokenizer_source=None, metadata={"stop_token_ids": [5]}
    )
    written = json.loads((folder / "generation_config.json").read_text())
    assert written["eos_token_id"] == [5, 2, 0]
    assert not written.get("_from_model_config")
    assert load_model(str(folder)).generation_config.eos_token_id == [5, 2, 0]


CONTRADICTIONS: list[tuple[dict[str, Any], set[str]]] = [
    ({"do_sample": False, "temperature": 0.5}, {"temperature"}),
    ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}, {"temperature", "top_p", "top_k", "min_p"}),
    ({"do_sample": True, "temperature": 0.6, "length_penalty": 0.5}, {"length_penalty"}),
    ({"num_beams": 4, "length_penalty": 0.5, "top_p": 0.9}, {"top_p"}),
    ({"num_return_sequences": 3}, {"num_return_sequences"}),
    ({"do_sample": True, "temperature": 0.6}, set()),
]
MINE = {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "max_new_tokens": 77, "my_own_field": "kept"}


@pytest.mark.parametrize(("fields", "dropped"), CONTRADICTIONS)
def test_a_contradictory_generation_config_loses_what_contradicts(
    fields: dict[str, Any],
    dropped: set[str],
    tmp_path: Path,
    llama: Callable[..., Any],
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = llama()
    for name, value in {**fields, **MINE}.items():
        setattr(model.generation_config, name, value)
    folder = export_model(model, tmp_path / "out", tokenizer=tokenizer, tokenizer_source=None, metadata={})
    written = json.loads((folder / "generation_config.json").read_text())
    assert ("contradictory" in caplog.text) == bool(dropped)
    assert all(f"{name}={fields[name]}" in caplog.text for name in dropped)
    expected = {**MINE, **{name: value for name, value in fields.items() if name not in dropped}}
    assert {name: written.get(name) for name in {**fields, **MINE}} == {**dict.fromkeys(dropped), **expected}
    assert written["eos_token_id"] == [2]


def test_existing_folder(tmp_path: Path, llama: Callable[..., Any], tokenizer: Any) -> None:
    def export(overwrite: bool = False) -> Path:
        return export_model(
            llama(),
            tmp_path / "out",
            tokenizer=tokenizer,
            tokenizer_source=None,
            metadata={},
            overwrite=overwrite,
        )

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty"):
            export(overwrite)
    (tmp_path / "out" / "notes.txt").unlink()
    export()
    (tmp_path / "out" / "stale.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        export()
    export(overwrite=True)
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_file_in_the_way(tmp_path: Path, llama: Callable[..., Any], tokenizer: Any) -> None:
    (tmp_path / "out").touch()
    for folder in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(UserError, match=str(folder)):
            export_model(llama(), folder, tokenizer=tokenizer, tokenizer_source=None, metadata={})


def test_full_disk_leaves_nothing(
    tmp_path: Path, llama: Callable[..., Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lit_ift.export.write.write_tokenizer", full)
    with pytest.raises(UserError, match=r"out: the export cannot be written: .*No space left"):
        export_model(llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=None, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path: Path, llama: Callable[..., Any], tokenizer: Any) -> None:
    common: Any = {"tokenizer": tokenizer, "tokenizer_source": None}
    with pytest.raises(ValueError, match="objektive"):
        export_model(llama(), tmp_path / "out", metadata={"objektive": "ift"}, **common)  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ValueError, match="fp8"):
        export_model(llama(), tmp_path / "out", metadata={}, dtype="fp8", **common)


def test_model_card() -> None:
    card = model_card(METADATA, folder_name="out", chat_example=True)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lit-ift", "ift"],
        "base_model": "someone/base",
        "license": "apache-2.0",
        "datasets": ["someone/data"],
    }
    headings = ["How to load", "How to serve", "Configuration", "Metrics", "Data", "Versions"]
    assert [line.removeprefix("## ") for line in body.splitlines() if line.startswith("## ")] == headings
    assert "| val/nll | 1.25 |" in body
    block = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == {"lr": 1e-5, "path": "a/b", "nested": {"list": [1, 2]}}


def commands_of(card: str) -> list[list[str]]:
    """The words of each command that a card shows."""
    (block,) = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_model_card_says_how_to_serve() -> None:
    commands = commands_of(model_card(METADATA, folder_name="my model", chat_example=True))
    assert commands[0] == ["vllm", "serve", "my model"]
    assert commands[1][:3] == ["python", "llama.cpp/convert_hf_to_gguf.py", "my model"]
    adapter = commands_of(model_card(METADATA, folder_name="my model", chat_example=True, is_adapter=True))
    assert adapter[0][:3] == ["vllm", "serve", METADATA["base_model"]]
    assert adapter[0][-1] == "my model=my model"
    assert adapter[1] == ["lit-ift", "merge", "my model", "merged"]


def test_model_card_without_facts() -> None:
    card = model_card({}, folder_name="out", chat_example=False)
    assert "## Metrics" not in card
    assert "apply_chat_template" not in card


def test_example_of_the_card_runs(
    tmp_path: Path, llama: Callable[..., Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_model(llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=None, metadata={})
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_staging_keeps_the_old_folder_on_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()

    def fail() -> None:
        with staged_folder(tmp_path / "a", replace=True) as stage:
            (stage / "new").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.model
def test_real_model_round_trip(tmp_path: Path, smollm2: str) -> None:
    model, tokenizer = load_model(smollm2), load_tokenizer(smollm2)
    folder = export_model(model, tmp_path / "out", tokenizer=tokenizer, tokenizer_source=smollm2, metadata=METADATA)
    figures = verify_export(model, folder, tokenizer, tokenizer_source=smollm2)
    assert figures["max_abs_logit_diff"] == 0.0
    assert figures["tokenizer_files_differing"] == []
    assert "tokenizer.json" in figures["tokenizer_files_identical"]


TOOL_TEMPLATE = "{{ messages[0].content }} with {{ tools }}"
RAG_TEMPLATE = "{{ documents | length }} documents"
OF_A_PROCESSOR = {"preprocessor_config.json": '{"size": 224}', "processor_config.json": "{}", "tekken.json": "{}"}


def with_everything(folder: Path) -> dict[str, bytes]:
    """Named templates, a processor and the vocabulary in the forms of other programs; all of the folder's files."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_TEMPLATE)
    (folder / "additional_chat_templates" / "rag.jinja").write_text(RAG_TEMPLATE)
    for name, text in {**OF_A_PROCESSOR, "qwen.tiktoken": "IQ== 0\n", "tokenizer.model.v3": "m"}.items():
        (folder / name).write_text(text)
    (folder / "notes.txt").write_text("not of the tokenizer")
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_all_that_belongs_to_the_tokenizer_is_kept(
    llama_folder: Path, tmp_path: Path, llama: Callable[..., Any]
) -> None:
    files = with_everything(llama_folder)
    tokenizer = load_tokenizer(str(llama_folder))
    assert set(tokenizer.chat_template) == {"default", "tool_use", "rag"}
    source = str(llama_folder)
    folder = export_model(llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=source, metadata={})
    figures = verify_export(llama(), folder, tokenizer, tokenizer_source=source)
    assert figures["tokenizer_files_differing"] == []
    others = {"config.json", "generation_config.json", "model.safetensors", "notes.txt"}
    assert set(figures["tokenizer_files_identical"]) == set(files) - others
    for name in figures["tokenizer_files_identical"]:
        assert (folder / name).read_bytes() == files[name]
    assert load_tokenizer(str(folder)).chat_template == tokenizer.chat_template
    assert not (folder / "notes.txt").exists()


def test_what_another_template_leaves_as_it_was(llama_folder: Path, tmp_path: Path, llama: Callable[..., Any]) -> None:
    with_everything(llama_folder)
    tokenizer = load_tokenizer(str(llama_folder))
    tokenizer.chat_template = tokenizer.chat_template | {"tool_use": "{{ tools }}"}
    folder = export_model(
        llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=str(llama_folder), metadata={}
    )
    verify_export(llama(), folder, tokenizer, tokenizer_source=str(llama_folder))
    assert {name: (folder / name).read_text() for name in OF_A_PROCESSOR} == OF_A_PROCESSOR
    assert load_tokenizer(str(folder)).chat_template["tool_use"] == "{{ tools }}"
    # Other programs would read an old vocabulary.
    tokenizer.add_tokens(["<new>"])
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    folder = export_model(model, tmp_path / "2", tokenizer=tokenizer, tokenizer_source=str(llama_folder), metadata={})
    assert {path.name for path in folder.glob("*.json")} >= {"preprocessor_config.json", "processor_config.json"}
    assert not (folder / "tekken.json").exists()


def test_every_named_template_is_compared(llama_folder: Path, tmp_path: Path, llama: Callable[..., Any]) -> None:
    with_everything(llama_folder)
    tokenizer = load_tokenizer(str(llama_folder))
    folder = export_model(
        llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=str(llama_folder), metadata={}
    )
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    with pytest.raises(UserError, match="chat template"):
        verify_export(llama(), folder, tokenizer)


def test_links_out_of_the_folder_are_refused(llama_folder: Path, tmp_path: Path, llama: Callable[..., Any]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the one who exports")
    (llama_folder / "tokenizer.model").symlink_to(secret)
    tokenizer = load_tokenizer(str(llama_folder))
    with pytest.raises(UserError, match=r"tokenizer.model is a link to .*secret, outside of the model's folder"):
        export_model(llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=str(llama_folder), metadata={})
    assert not (tmp_path / "out").exists()
    (llama_folder / "tokenizer.model").unlink()
    (llama_folder / "tokenizer.model").symlink_to(llama_folder / "config.json")  # Inside, it may.
    export_model(llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=str(llama_folder), metadata={})


def test_snapshots_of_the_hub_are_links(llama_folder: Path, tmp_path: Path, llama: Callable[..., Any]) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for file in llama_folder.iterdir():
        file.rename(blobs / f"{file.name}.blob")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}.blob")
    tokenizer = load_tokenizer(str(snapshot))
    folder = export_model(llama(), tmp_path / "out", tokenizer=tokenizer, tokenizer_source=str(snapshot), metadata={})
    assert (folder / "tokenizer.json").read_bytes() == (blobs / "tokenizer.json.blob").read_bytes()
    assert not any(file.is_symlink() for file in folder.iterdir())
