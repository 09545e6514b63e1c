"""Tiny random models, tokenizers and batches for tests; nothing is downloaded."""

import json
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lit_ift.chat.example import Example
from lit_ift.data.batch.dataset import EncodedDataset

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY_SIZE = 3 + 256

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 256,
    **{name: SIZES[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
}
_PHI = {k: v for k, v in SIZES.items() if k != "head_dim"}
CONFIGS = {
    "llama": (LlamaConfig, SIZES),
    "qwen2": (Qwen2Config, SIZES),
    "qwen3": (Qwen3Config, SIZES),
    "mistral": (MistralConfig, {**SIZES, "sliding_window": 8}),
    "gemma": (GemmaConfig, SIZES),
    "gemma2": (Gemma2Config, {**SIZES, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "gemma3": (Gemma3TextConfig, {**SIZES, "query_pre_attn_scalar": 8}),
    "gpt2": (
        GPT2Config,
        GPT2_SIZES,
    ),
    "phi": (PhiConfig, {**_PHI, "num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
    "phi3": (Phi3Config, {**_PHI, "hidden_size": 16}),
}


def tiny_model(
    name: str = "llama", *, tied: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random model of a few thousand parameters, large enough weights to have confident predictions."""
    config_class, values = CONFIGS[name]
    config = config_class(**{**values, "tie_word_embeddings": tied, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0)
    return model


IMPLEMENTATIONS = [(name, kind) for name in CONFIGS for kind in ("sdpa", "eager") if (name, kind) != ("gemma2", "sdpa")]
"""Architectures with each implementation of attention that they have."""


def called_with(model: Any, **changes: Any) -> Any:
    """Let the decoder be called otherwise than it is; a callable is given the arguments as they were."""

    def change(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, **{k: v(kwargs) if callable(v) else v for k, v in changes.items()}}

    model.get_decoder().register_forward_pre_hook(change, with_kwargs=True)
    return model


QUIET_TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of a Trainer that trains and does nothing else."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a ChatML template; its padding token is its end-of-turn token."""
    specials = ["<unk>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHATML
    return fast


def tiny_base_tokenizer() -> PreTrainedTokenizerFast:
    """The same for a base model: it has neither ChatML's tokens nor a template; a text starts with nothing."""
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    spelt = {"<|im_start|>": "<s>", "<|im_end|>": "</s>"}
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {spelt.get(token, token): index for token, index in vocabulary.items()}
    state["added_tokens"] = []
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


def tiny_batch(rows: int = 4, length: int = 12, *, seed: int = 1, first: int = 0) -> dict[str, Any]:
    """Random rows of unequal length with an untrained prompt, right padding, and ids ``row <first>`` onwards.

    Row i is the same whatever ``rows``, ``length`` and ``first`` are, as long as it is part of the batch.
    """
    ids = torch.full((rows, length), 2)
    labels, attention = torch.full((rows, length), -100), torch.zeros(rows, length, dtype=torch.long)
    for row in range(rows):
        generator = torch.Generator().manual_seed(seed * 1000 + first + row)
        size = int(torch.randint(length // 2 + 1, length + 1, (), generator=generator))
        prompt = int(torch.randint(1, size // 2 + 1, (), generator=generator))
        ids[row, :size] = torch.randint(3, VOCABULARY_SIZE, (size,), generator=generator)
        labels[row, prompt:size] = ids[row, prompt:size]
        attention[row, :size] = 1
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": attention,
        "row_ids": [f"row {first + i}" for i in range(rows)],
    }


def answers(dataset: EncodedDataset) -> list[Example]:
    """The examples of instruction rows, in their order."""
    return [row.sides["answer"] for row in dataset.rows]


def num_rows(batch: dict[str, Any]) -> int:
    """Rows of a batch, as `ThroughputMonitor` asks for them."""
    return len(batch["input_ids"])
