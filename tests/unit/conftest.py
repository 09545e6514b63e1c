"""Small tokenizers and models."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # tests of the mathematics alone do not wait for it
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "hello world, the answer to the question is a word. user system assistant",
    "the cat sat on the mat and said hello to the world: what is the answer?",
] * 4


def build_tokenizer(**special: str) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer in the manner of SmolLM2: ChatML, and padding equal to end of sequence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", **special}
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def build_llama(**options: Any) -> "LlamaForCausalLM":
    import torch
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


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    """Shared by all tests, so not to be changed."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., "PreTrainedTokenizerFast"]:
    """Builds a tokenizer that a test may change."""
    return build_tokenizer


@pytest.fixture
def llama() -> Callable[..., "LlamaForCausalLM"]:
    """Builds a two-layer Llama with random weights; options go to its config."""
    return build_llama


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """Such a Llama with the byte-level tokenizer of ``tiny.py``, saved."""
    from tiny import tiny_tokenizer

    folder = tmp_path / "llama"
    build_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
