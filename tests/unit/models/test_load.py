import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rounding import CLOSE32
from safetensors.torch import load_file, save_file
from tiny import GPT2_SIZES, SIZES, tiny_tokenizer
from torch import nn

from lit_ift.errors import UserError
from lit_ift.models import load_model, load_tokenizer, set_dropout_off
from lit_ift.models.hub import must_use_cache
from lit_ift.models.load_errors import explain_load_error
from lit_ift.models.source import ModelSource

IDS = torch.arange(8)[None]
WITH_DROPOUT = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, attention_dropout=0.5)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT2_SIZES, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    ),
    "phi": lambda: transformers.PhiForCausalLM(
        transformers.PhiConfig(**SIZES, attention_dropout=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    ),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, attention_dropout=0.5)),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=40,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            dropout=0.5,
            attention_dropout=0.5,
            layerdrop=0.5,
        )
    ),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_off(name: str, attention: str) -> None:
    torch.manual_seed(0)
    model = WITH_DROPOUT[name]().train()
    model.set_attn_implementation(attention)
    config = model.config.to_dict()
    assert not torch.equal(logits(model), logits(model)), "the model has no dropout to begin with"
    set_dropout_off(model)
    assert torch.equal(logits(model), logits(model))
    assert model.config.to_dict() == config


def test_dropout_from_the_config_is_refused() -> None:
    class Stubborn(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = nn.functional.dropout(output.logits, self.config.attention_dropout, self.training)
            return output

    model = Stubborn(transformers.LlamaConfig(**SIZES, attention_dropout=0.5))
    state = torch.get_rng_state()
    with pytest.raises(UserError, match="attention_dropout"):
        load_model(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert load_model(model, disable_dropout=False) is model


def test_folder_loads_exactly_in_training_mode(llama_folder: Path) -> None:
    model = load_model(str(llama_folder))
    assert model.training
    assert model.dtype == torch.float32
    stored = load_file(llama_folder / "model.safetensors")
    assert stored
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
    assert model.config.use_cache


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float64", torch.float64), ("auto", torch.float32)],
)
def test_dtypes(llama_folder: Path, dtype: str, expected: torch.dtype) -> None:
    assert load_model(str(llama_folder), dtype=dtype).dtype == expected


def test_unknown_dtype(llama_folder: Path) -> None:
    with pytest.raises(UserError, match="Unknown dtype 'fp32'"):
        load_model(str(llama_folder), dtype="fp32")


def test_ready_model_keeps_its_dtype(llama: Callable[..., Any]) -> None:
    model = llama().to(torch.bfloat16).eval()
    assert load_model(model) is model
    assert model.dtype == torch.bfloat16
    assert model.training
    assert load_model(model, dtype="float32").dtype == torch.float32


def test_ready_model_refuses_what_has_no_meaning(llama: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="revision"):
        load_model(llama(), revision="v1")
    with pytest.raises(UserError, match="auto"):
        load_model(llama(), dtype="auto")
    with pytest.raises(UserError, match="not Linear"):
        load_model(nn.Linear(1, 1))


def test_attention_of_ready_model(llama: Callable[..., Any]) -> None:
    assert load_model(llama(), attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(UserError, match="cannot be set"):
        load_model(llama(), attn_implementation="nope")


def test_attention_of_folder(llama_folder: Path) -> None:
    model = load_model(str(llama_folder), attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="Choose another attn_implementation"):
        load_model(str(llama_folder), attn_implementation="nope")


def test_gradient_checkpointing_gives_equal_gradients(llama: Callable[..., Any]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_model(llama(), gradient_checkpointing=checkpointing)
        assert any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules()) == checkpointing
        embedded = model.get_input_embeddings()(IDS).detach()  # needs no gradient, as in IFT
        model(inputs_embeds=embedded, use_cache=False).logits.square().sum().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients, **CLOSE32)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize(("every", "chosen"), [(1, [True, True]), (2, [True, False])])
def test_gradient_checkpointing_of_some_layers(llama: Callable[..., Any], every: int, chosen: list[bool]) -> None:
    model = load_model(llama(), gradient_checkpointing=every)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == chosen
    assert model.is_gradient_checkpointing


def test_gradient_checkpointing_of_too_few_layers(llama: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"gradient_checkpointing=5 .*has 2 to choose from"):
        load_model(llama(), gradient_checkpointing=5)


def test_meta_tensors_are_refused(llama: Callable[..., Any]) -> None:
    with torch.device("meta"):
        model = llama()
    with pytest.raises(UserError, match="meta device"):
        load_model(model)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_and_left_over_weights(llama_folder: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.norm.weight"]
        weights["extra.weight"] = torch.zeros(2)

    edit_weights(llama_folder, change)
    with pytest.raises(UserError, match=r"1 missing: model\.norm\.weight; 1 not part of the model: extra\.weight"):
        load_model(str(llama_folder))


def test_head_of_tied_model_may_be_missing(tmp_path: Path, llama: Callable[..., Any]) -> None:
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_model(str(tmp_path))
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_weight_of_another_shape(llama_folder: Path) -> None:
    edit_weights(llama_folder, lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match="another shape"):
        load_model(str(llama_folder))


@pytest.mark.parametrize("size", [200, -50])
def test_damaged_weights(llama_folder: Path, size: int) -> None:
    file = llama_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_model(str(llama_folder))


def test_folder_without_weights(llama_folder: Path) -> None:
    (llama_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="complete model"):
        load_model(str(llama_folder))


@pytest.mark.parametrize(
    ("file", "hint"), [(None, "save_pretrained"), ("adapter_config.json", "merge"), ("m.gguf", "m.gguf")]
)
def test_folder_without_config(tmp_path: Path, file: str | None, hint: str) -> None:
    if file:
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=rf"no config\.json.*{hint}"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("text", ["{bad", "{}", '{"model_type": "zzz"}'])
def test_broken_config(llama_folder: Path, text: str) -> None:
    (llama_folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json cannot be loaded"):
        load_model(str(llama_folder))


@pytest.mark.parametrize(
    "config",
    [transformers.T5Config(), transformers.BertConfig(architectures=["BertForMaskedLM"]), transformers.ViTConfig()],
    ids=["t5", "bert", "vit"],
)
def test_other_kinds_of_model(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a causal language model"):
        load_model(str(tmp_path))


def test_broken_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF but not really, only as long as a header has to be")
    with pytest.raises(UserError, match=r"m\.gguf"):
        load_model(str(tmp_path / "m.gguf"))
    with pytest.raises(UserError, match=r"m\.gguf"):
        load_tokenizer(str(tmp_path / "m.gguf"))
    with pytest.raises(UserError, match="'auto' has no meaning"):
        load_model(str(tmp_path / "m.gguf"), dtype="auto")


def test_tokenizer_loads_unchanged(llama_folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    again = load_tokenizer(str(llama_folder))
    assert again("Hello é")["input_ids"] == tokenizer("Hello é")["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert again.pad_token == "<|im_end|>"


def test_folder_without_tokenizer(tmp_path: Path, llama: Callable[..., Any]) -> None:
    llama().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="tokenizer cannot be loaded"):
        load_tokenizer(str(tmp_path))


HUB = ModelSource(path="someone/model", gguf_file=None, origin="", revision="v1")


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("GatedRepoError", "HF_TOKEN"),
        ("RevisionNotFoundError", "revision 'v1'"),
        ("RepositoryNotFoundError", "No such repository"),
        ("LocalEntryNotFoundError", "HF_HUB_OFFLINE=1"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set"),
    ],
)
def test_hub_errors_say_what_to_do(kind: str, hint: str) -> None:
    from huggingface_hub import errors

    cause = getattr(errors, kind).__new__(getattr(errors, kind))
    error = OSError("transformers' own words")
    error.__cause__ = cause
    assert hint in str(explain_load_error(HUB, error, what="model"))


class FakeApi:
    """Answers a question about a model with an error, or with nothing."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def model_info(self, *args: Any, **kwargs: Any) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "cached", "expected"),
    [
        (None, False, False),
        (ConnectionError("no route"), True, True),
        (ConnectionError("no route"), False, ConnectionError),
        ("HfHubHTTPError", False, False),
        ("RepositoryNotFoundError", True, "RepositoryNotFoundError"),
    ],
)
def test_hub_or_cache(
    error: Any, cached: bool, expected: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    if isinstance(error, str):
        error = getattr(huggingface_hub.errors, error).__new__(getattr(huggingface_hub.errors, error))
    if isinstance(expected, str):
        expected = getattr(huggingface_hub.errors, expected)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeApi(error))
    found = "/some/config.json" if cached else None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: found)
    if isinstance(expected, bool):
        assert must_use_cache("someone/model", None) == expected
        assert ("cached copy" in caplog.text) == expected
    else:
        with pytest.raises(expected):
            must_use_cache("someone/model", None)


def test_offline_makes_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert must_use_cache("someone/model", None)


def test_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeApi(ConnectionError("no route")))
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=r"no route.*name its folder"):
            load("someone/model-that-is-not-cached")
