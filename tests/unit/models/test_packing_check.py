"""The check that a model keeps packed examples apart."""

from typing import Any

import pytest
import torch
from tiny import IMPLEMENTATIONS, called_with, tiny_model

from lit_ift.errors import UserError
from lit_ift.models.packing_check import check_packing, packs_into_one_row


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_architectures_pass(name: str, implementation: str, dtype: torch.dtype) -> None:
    check_packing(tiny_model(name, dtype=dtype, attn_implementation=implementation))


def test_passes_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check_packing(tiny_model(dtype=torch.float32))


def ones(kwargs: dict[str, Any]) -> torch.Tensor:
    return torch.ones(kwargs["inputs_embeds"].shape[:2], dtype=torch.long)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_model_that_mixes_examples_is_refused(name: str, dtype: torch.dtype) -> None:
    # Both switch off what transformers does for packed rows, without an error.
    for changes in ({"attention_mask": ones}, {"use_cache": True}):
        model = called_with(tiny_model(name, dtype=dtype), **changes)
        with pytest.raises(UserError, match=r"with attn_implementation='sdpa' does not keep packed examples apart"):
            check_packing(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_is_a_freshly_drawn_one_in_which_attention_hardly_matters(dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.div_(8.0)
    check_packing(model)
    with pytest.raises(UserError, match="does not keep packed examples apart"):
        check_packing(called_with(model, attention_mask=ones))


def test_a_leak_below_rounding_is_seen_by_changing_the_other_examples() -> None:
    """In bfloat16 two per cent would pass for rounding, but rounding does not depend on another example's tokens."""
    model = tiny_model(dtype=torch.bfloat16)

    def leak(module: Any, args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        return type(output)(last_hidden_state=hidden + 0.015 * hidden[:, :1])

    model.get_decoder().register_forward_hook(leak)
    with pytest.raises(UserError, match="does not keep packed examples apart"):
        check_packing(model)


def test_a_model_that_counts_positions_its_own_way_is_refused() -> None:
    own = {"position_ids": lambda kwargs: kwargs["position_ids"] * 2 if "position_ids" in kwargs else None}
    with pytest.raises(UserError, match="does not keep packed examples apart"):
        check_packing(called_with(tiny_model("gpt2", dtype=torch.float32), **own))


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    model = tiny_model(dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(UserError, match="does not keep packed examples apart"):
        check_packing(model)


def test_nothing_else_changes() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    check_packing(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_flash_attention_takes_one_row() -> None:
    model = tiny_model()
    assert not packs_into_one_row(model)
    for name in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"):
        model.config._attn_implementation_internal = name
        assert packs_into_one_row(model)
    model.config._attn_implementation_internal = "flex_attention"
    assert not packs_into_one_row(model)
