from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tiny import GPT2_SIZES, SIZES
from torch import nn

from lit_ift.errors import UserError
from lit_ift.models import LogitTransform, check_hidden_state_path, decoder, is_tied, logit_postprocess

# A large spread makes logits large enough for the cap to show.
WIDE = {"initializer_range": 1.0}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any], LogitTransform]] = {
    "llama": ("Llama", SIZES, LogitTransform()),
    "qwen2": ("Qwen2", SIZES, LogitTransform()),
    "qwen3": ("Qwen3", SIZES, LogitTransform()),
    "mistral": ("Mistral", SIZES, LogitTransform()),
    "gemma": ("Gemma", SIZES, LogitTransform()),
    "gemma2": ("Gemma2", SIZES | WIDE | {"attn_implementation": "eager"}, LogitTransform(softcap=30.0)),
    "gemma3": ("Gemma3", SIZES, LogitTransform()),
    "gpt2": ("GPT2", GPT2_SIZES, LogitTransform()),
    "phi": ("Phi", SIZES, LogitTransform()),
    "phi3": ("Phi3", SIZES, LogitTransform()),
    "cohere": ("Cohere", SIZES | {"logit_scale": 0.0625}, LogitTransform(scale=0.0625)),
    "granite": ("Granite", SIZES | {"logits_scaling": 8.0}, LogitTransform(scale=0.125)),
}


def build(name: str, **options: Any) -> Any:
    prefix, values, _ = ARCHITECTURES[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if name == "gemma3" else f"{prefix}Config")
    model_class = getattr(transformers, "GPT2LMHeadModel" if name == "gpt2" else f"{prefix}ForCausalLM")
    torch.manual_seed(0)
    values = dict(values | options)
    attention = values.pop("attn_implementation", None)
    config = config_class(**values)
    return model_class._from_config(config, attn_implementation=attention) if attention else model_class(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_supported_architectures(name: str, tied: bool) -> None:
    model = build(name, tie_word_embeddings=tied)
    if name == "phi":  # its head has a bias, zero at first
        nn.init.normal_(model.get_output_embeddings().bias)
    check_hidden_state_path(model)
    assert logit_postprocess(model) == ARCHITECTURES[name][2]
    assert is_tied(model) == tied
    assert decoder(model) is model.get_decoder()


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_check_notices_a_missing_transform(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_ift.models.head.logit_postprocess", lambda model: LogitTransform())
    with pytest.raises(UserError, match="its logits are not those"):
        check_hidden_state_path(build(name))


def test_unknown_postprocessing_is_refused() -> None:
    class Shifted(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits - output.logits.mean(-1, keepdim=True)
            return output

    with pytest.raises(UserError, match="Shifted is not supported"):
        check_hidden_state_path(Shifted(transformers.LlamaConfig(**SIZES)))


def test_encoder_is_refused() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UserError, match="is not supported"):
        check_hidden_state_path(transformers.BertLMHeadModel(config))


def test_noncausal_model_is_refused() -> None:
    class Peeking(transformers.LlamaForCausalLM):
        def get_decoder(self) -> Any:
            inner = super().get_decoder()

            class Both(nn.Module):
                def forward(self, **kwargs: Any) -> Any:
                    hidden = inner(**kwargs).last_hidden_state
                    return SimpleNamespace(last_hidden_state=hidden + hidden.mean(1, keepdim=True))

            return Both()

        def forward(self, input_ids: Any, **kwargs: Any) -> Any:
            embedded = self.get_input_embeddings()(input_ids)
            hidden = self.get_decoder()(inputs_embeds=embedded, **kwargs).last_hidden_state
            return SimpleNamespace(logits=self.lm_head(hidden))

    with pytest.raises(UserError, match="not causal"):
        check_hidden_state_path(Peeking(transformers.LlamaConfig(**SIZES)))


def test_check_leaves_modes_and_random_state() -> None:
    model = build("llama").train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    check_hidden_state_path(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_check_in_other_dtypes(dtype: torch.dtype) -> None:
    check_hidden_state_path(build("llama").to(dtype))


def test_adapter_is_looked_into() -> None:
    inner = build("granite")
    adapter = SimpleNamespace(get_base_model=lambda: inner)
    check_hidden_state_path(adapter)
    assert decoder(adapter) is inner.model
    assert logit_postprocess(adapter).scale == 0.125


def test_transform_by_hand() -> None:
    logits = torch.tensor([0.0, 4.0])
    # 2 * tanh(0.5 * 4 / 2) = 2 * tanh(1) = 1.5231884
    torch.testing.assert_close(LogitTransform(0.5, 2.0)(logits), torch.tensor([0.0, 1.5231884]))
    assert LogitTransform()(logits) is logits
    assert LogitTransform().is_identity
    assert not LogitTransform(softcap=1.0).is_identity
