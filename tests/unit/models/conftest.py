"""A tiny tokenizer and tiny random models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer


def build_llama(**options: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    values = {
        "vocab_size": 259,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**values | options))


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def llama() -> Callable[..., Any]:
    """Builds a two-layer Llama with random weights; options go to its config."""
    return build_llama


@pytest.fixture
def llama_folder(tmp_path: Any, tokenizer: Any) -> Any:
    folder = tmp_path / "llama"
    build_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
