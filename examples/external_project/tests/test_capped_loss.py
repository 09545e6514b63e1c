"""The capped loss by hand, and a run of the configuration up to its first step."""

import pytest
import torch
from capped_loss import CappedModule
from transformers import LlamaConfig, LlamaForCausalLM


def module(**options: float) -> CappedModule:
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return CappedModule(LlamaForCausalLM(config), **options)


def test_tokens_above_the_cap_count_as_the_cap_and_give_no_gradient() -> None:
    nll = torch.tensor([[1.0, 9.0, 0.0], [2.0, 3.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    losses, metrics = module(cap=3.5).per_example_loss(nll, mask)
    assert losses.tolist() == pytest.approx([(1 + 3.5) / 2, (2 + 3 + 3.5) / 3])
    assert metrics["capped_share"].tolist() == pytest.approx([1 / 2, 1 / 3])
    losses.sum().backward()
    assert nll.grad is not None
    assert nll.grad[0, 1] == nll.grad[1, 2] == 0
    assert nll.grad[0, 0] == pytest.approx(1 / 2)


def test_a_row_without_trained_tokens_is_zero() -> None:
    losses, _ = module().per_example_loss(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert losses.tolist() == [0]


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="cap=0"):
        module(cap=0)
