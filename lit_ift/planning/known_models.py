"""Configurations of models that people use, for planning without the hub: sizes alone, which decide memory and work."""

from typing import Any, Final, NamedTuple


class Sizes(NamedTuple):
    """What a model's config.json says of its size.

    Attributes:
        kind: transformers' name of the architecture.
        vocabulary: rows of the embedding.
        hidden: width of the hidden states.
        inner: width of the feed-forward layers.
        layers: number of layers.
        heads: attention heads.
        key_heads: heads of keys and values.
        head_dim: width of a head.
        tied: whether embedding and output head are one.
        parameters: how many there are, in millions, as published.
    """

    kind: str
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    tied: bool
    parameters: float


KNOWN: Final = {
    "HuggingFaceTB/SmolLM2-135M": Sizes("llama", 49152, 576, 1536, 30, 9, 3, 64, True, 134.5),
    "HuggingFaceTB/SmolLM2-360M": Sizes("llama", 49152, 960, 2560, 32, 15, 5, 64, True, 361.8),
    "HuggingFaceTB/SmolLM2-1.7B": Sizes("llama", 49152, 2048, 8192, 24, 32, 32, 64, True, 1711.4),
    "HuggingFaceTB/SmolLM3-3B": Sizes("smollm3", 128256, 2048, 11008, 36, 16, 4, 128, True, 3075.1),
    "Qwen/Qwen2.5-0.5B": Sizes("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True, 494.0),
    "Qwen/Qwen3-0.6B": Sizes("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True, 596.0),
    "Qwen/Qwen3-1.7B": Sizes("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True, 1720.6),
    "Qwen/Qwen3-4B": Sizes("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True, 4022.5),
    "Qwen/Qwen3-8B": Sizes("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False, 8190.7),
    "meta-llama/Llama-3.2-1B": Sizes("llama", 128256, 2048, 8192, 16, 32, 8, 64, True, 1235.8),
    "meta-llama/Llama-3.2-3B": Sizes("llama", 128256, 3072, 8192, 28, 24, 8, 128, True, 3212.7),
    "meta-llama/Llama-3.1-8B": Sizes("llama", 128256, 4096, 14336, 32, 32, 8, 128, False, 8030.3),
    "mistralai/Mistral-7B-v0.1": Sizes("mistral", 32000, 4096, 14336, 32, 32, 8, 128, False, 7241.7),
    "mistralai/Mistral-7B-v0.3": Sizes("mistral", 32768, 4096, 14336, 32, 32, 8, 128, False, 7248.0),
    "google/gemma-3-1b-pt": Sizes("gemma3_text", 262144, 1152, 6912, 26, 4, 1, 256, True, 999.9),
}
"""By hub id; a variant of the same size, such as an -Instruct one, is found by the start of its id."""


def known_config(model: str) -> Any | None:
    """The configuration of a known model, built from its sizes; None for others."""
    fitting = [name for name in KNOWN if model == name or model.startswith((f"{name}-", f"{name[:-3]}-it"))]
    if not fitting:
        return None
    from transformers import AutoConfig

    sizes = KNOWN[max(fitting, key=len)]
    return AutoConfig.for_model(
        sizes.kind,
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        head_dim=sizes.head_dim,
        tie_word_embeddings=sizes.tied,
        max_position_embeddings=32768,
    )
