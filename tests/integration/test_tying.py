"""Models whose head and embedding are one matrix or two, where configuration, files and adapters disagree."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors import safe_open
from tiny import tiny_batch, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lit_ift.callbacks import RunCheckpoint
from lit_ift.distributed.load import load_skeleton
from lit_ift.export import export_model, verify_export
from lit_ift.export.from_checkpoint import export_checkpoint
from lit_ift.export.merge import merge_adapter
from lit_ift.models import is_tied, load_model
from lit_ift.modules import SFTModule

IDS = torch.arange(3, 20)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.detach()


def saved(folder: Path, *, tied: bool, says: bool) -> Path:
    tiny_model(tied=tied, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": says}))
    return folder


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return saved(tmp_path / "tied", tied=True, says=True)


@pytest.fixture
def misnamed(tmp_path: Path) -> Path:
    """Its configuration ties, and its file holds another head."""
    return saved(tmp_path / "misnamed", tied=False, says=True)


def trained(folder: Path, checkpoints: Path, **options: Any) -> SFTModule:
    module = SFTModule(str(folder), optimizer=partial(torch.optim.SGD, lr=0.1), **options)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RunCheckpoint(dirpath=checkpoints)],
    )
    trainer.fit(module, DataLoader([tiny_batch()] * 2, batch_size=None))
    return module


def says_tied(folder: Path) -> bool:
    return bool(json.loads((folder / "config.json").read_text())["tie_word_embeddings"])


def write(module: SFTModule, folder: Path) -> Path:
    options: Any = {"tokenizer": tiny_tokenizer(), "tokenizer_source": None, "metadata": {}}
    export_model(module.model, folder, **options)
    assert verify_export(module.model, folder, tiny_tokenizer())["max_abs_logit_diff"] == 0.0
    return folder


def test_an_export_says_that_there_are_two(misnamed: Path, tmp_path: Path) -> None:
    module = trained(misnamed, tmp_path / "checkpoints")
    assert not is_tied(module.model)
    folder = write(module, tmp_path / "out")
    assert not says_tied(folder)
    with safe_open(folder / "model.safetensors", "pt") as content:
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(content.keys())
    figures = export_checkpoint(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "later")
    assert figures["max_abs_logit_diff"] == 0.0
    assert not says_tied(tmp_path / "later")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "later")
    assert torch.equal(logits(again), logits(module.model))


def test_an_export_says_that_there_is_one(tied: Path, tmp_path: Path) -> None:
    module = trained(tied, tmp_path / "checkpoints")
    assert is_tied(module.model)
    assert says_tied(write(module, tmp_path / "out"))
    export_checkpoint(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "later")
    assert says_tied(tmp_path / "later")


@pytest.mark.parametrize("kind", ["tied", "misnamed"])
def test_a_model_that_is_read_in_parts(kind: str, request: Any) -> None:
    folder = request.getfixturevalue(kind)
    found = load_skeleton(str(folder))
    assert found is not None
    model, files = found
    model.to_empty(device="cpu")
    model.tie_weights()
    files.read_into(model)
    assert is_tied(model) == (kind == "tied")
    assert model.config.tie_word_embeddings == (kind == "tied")
    assert torch.equal(model.get_output_embeddings().weight, load_model(str(folder)).get_output_embeddings().weight)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
        {"target_modules": ["q_proj"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["tied", "misnamed"])
def test_adapters_of_head_and_embedding_are_merged(
    kind: str, lora: dict[str, Any], tmp_path: Path, request: Any
) -> None:
    module = trained(request.getfixturevalue(kind), tmp_path / "checkpoints", lora={"r": 4, **lora})
    adapter = write(module, tmp_path / "adapter")
    figures = merge_adapter(adapter, tmp_path / "merged")
    assert figures["max_abs_logit_diff"] <= figures["logit_tolerance"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(module.model), rtol=1e-4, atol=1e-4)
    assert is_tied(merged) == says_tied(tmp_path / "merged")
    if lora == {"target_modules": ["q_proj"]}:
        assert is_tied(merged) == (kind == "tied")
