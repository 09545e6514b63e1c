"""LoRA through peft: options, what trains, and the objectives on top of it."""

import sys
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch.utils.data import DataLoader

from lit_ift.errors import UserError
from lit_ift.models import base_model, check_hidden_state_path
from lit_ift.models.load import load_model
from lit_ift.models.lora import add_lora, is_adapted
from lit_ift.modules import IFTModule, SFTModule


def test_a_fresh_adapter_changes_nothing_and_alone_trains() -> None:
    batch = tiny_batch()
    plain, lora = SFTModule(tiny_model()), SFTModule(tiny_model(), lora={"r": 2})
    assert is_adapted(lora.model)
    assert not is_adapted(plain.model)
    torch.testing.assert_close(lora.example_losses(batch)[0], plain.example_losses(batch)[0], rtol=1e-12, atol=1e-12)
    trainable = [name for name, parameter in lora.model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 7 * 2  # A and B of seven linear layers in each of two blocks
    assert all("lora_" in name for name in trainable)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"r": 2, "lora_alpha": 8, "use_rslora": True}])
def test_the_hidden_state_path_holds(name: str, options: dict[str, Any]) -> None:
    attention = "eager" if name == "gemma2" else "sdpa"
    model = add_lora(tiny_model(name, attn_implementation=attention), options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 if parameter.requires_grad else 0.0)
    check_hidden_state_path(model)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_ift_trains_the_adapter_and_nothing_else(tied: bool, checkpointing: bool) -> None:
    module = IFTModule(tiny_model(tied=tied), lam=0.3, lora={"r": 2}, gradient_checkpointing=checkpointing)
    before = {name: value.clone() for name, value in base_model(module.model).state_dict().items()}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader([tiny_batch(), tiny_batch(first=4), tiny_batch(first=8)], batch_size=None))
    assert not [w for w in caught if "input embeddings" in str(w.message)]
    changed = {n for n, v in base_model(module.model).state_dict().items() if not torch.equal(v, before[n])}
    assert len(changed) == 28
    assert all("lora_" in name for name in changed)
    in_optimizer = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in module.parameters() if p.requires_grad}


def test_dropout_that_is_asked_for_stays() -> None:
    module = SFTModule(tiny_model(attention_dropout=0.5), lora={"lora_dropout": 0.5})
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.05 if parameter.requires_grad else 0.0)
    batch = tiny_batch()
    assert not torch.equal(module.example_losses(batch)[0], module.example_losses(batch)[0])
    module.eval()
    assert torch.equal(module.example_losses(batch)[0], module.example_losses(batch)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 8}, "no option 'rank'"),
        ({"lora_alhpa": 8}, "Did you mean 'lora_alpha'"),
        ({"inference_mode": True}, "no option 'inference_mode'"),
        ({"target_modules": ["query"]}, r"query.*linear layers are .*q_proj"),
        ({"r": 0}, "`r` should be a positive integer"),
        (8, "must be a mapping"),
    ],
)
def test_options_that_do_not_fit(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SFTModule(tiny_model(), lora=options)


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(UserError, match="has an adapter already"):
        add_lora(add_lora(tiny_model(), {}), {})


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'lit-ift\[lora\]'"):
        SFTModule("a/model", lora={})


def test_quantization_needs_bitsandbytes_and_an_adapter(monkeypatch: pytest.MonkeyPatch, model_folder: Any) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for call in (
        lambda: SFTModule("a/model", lora={}, quantization="nf4"),
        lambda: load_model(str(model_folder), quantization="int8"),
    ):
        with pytest.raises(UserError, match=r"pip install 'lit-ift\[quantization\]'"):
            call()
    with pytest.raises(ValueError, match="set lora"):
        SFTModule("a/model", quantization="nf4")
    with pytest.raises(ValueError, match="quantization='nf8' must be one of 'nf4', 'fp4', 'int8'"):
        SFTModule("a/model", lora={}, quantization="nf8")  # type: ignore[arg-type]
