"""The check that a model reads shared prompts as it reads them whole."""

from typing import Any

import pytest
import torch
from tiny import IMPLEMENTATIONS, called_with, tiny_model
from transformers import AutoModelForCausalLM, BloomConfig, GPTNeoConfig, MambaConfig

from lit_ift.errors import UserError
from lit_ift.models.shared_prompts_check import check_shared_prompts


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_architectures_pass(name: str, implementation: str, dtype: torch.dtype) -> None:
    check_shared_prompts(tiny_model(name, dtype=dtype, attn_implementation=implementation))


def test_passes_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check_shared_prompts(tiny_model(dtype=torch.float32))


SIZES = {"vocab_size": 99, "hidden_size": 16}
OTHERS = {
    "bloom": BloomConfig(n_layer=2, n_head=2, **SIZES),  # ALiBi
    "gpt_neo": GPTNeoConfig(
        num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=4, **SIZES
    ),
    "mamba": MambaConfig(num_hidden_layers=2, state_size=4, **SIZES),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_ways_to_tell_positions_are_refused(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OTHERS[name])
    with pytest.raises(UserError, match=r"cannot share prompts: .* Or set model.share_prompts=false"):
        check_shared_prompts(model)


def sees_all(kwargs: dict[str, Any]) -> Any:
    mask = kwargs.get("attention_mask")
    return None if mask is None else torch.ones_like(mask)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_mask": sees_all},
        {"position_ids": lambda kwargs: kwargs["position_ids"] * 2 if "position_ids" in kwargs else None},
        {"past_key_values": lambda _: None},
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_that_does_otherwise_is_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot share prompts"):
        check_shared_prompts(called_with(tiny_model(name, dtype=torch.float32), **changes))


def test_a_window_longer_than_the_check_is_tried_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mistral", sliding_window=64)
    check_shared_prompts(model)
    assert model.config.sliding_window == 64
    from lit_ift.models import shared_prompts

    sees = shared_prompts._sees
    monkeypatch.setattr(shared_prompts, "_sees", lambda *given: sees(*given[:-1], None))
    with pytest.raises(UserError, match="its hidden states are not those that it has without"):
        check_shared_prompts(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_attn_implementation_internal": "flash_attention_2"},
            "attn_implementation='flash_attention_2' takes no mask",
        ),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layers of the kind chunked_attention"),
        ({"output_router_logits": True}, "balancing loss"),
    ],
)
def test_what_is_known_to_fail_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    model = tiny_model()
    for name, value in changes.items():
        setattr(model.config, name, value)
    with pytest.raises(UserError, match=message):
        check_shared_prompts(model)


def test_nothing_else_changes() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    check_shared_prompts(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
