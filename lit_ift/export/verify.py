"""Load an export again and compare it with the model it was written from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lit_ift.errors import UserError
from lit_ift.export.tokenizer_files import named_templates, original_files
from lit_ift.models.load import load_model
from lit_ift.models.lora import is_adapted
from lit_ift.models.quantized import Quantization, compute_dtype_of, compute_in, quantization_of

_NUM_CHECK_TOKENS: Final = 16
_MESSAGES: Final = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]


@dataclass(frozen=True)
class ShardedWeights:
    """What a sharded model is, gathered on one rank.

    Attributes:
        weights: its state dict, or of an adapter its own part, on the host or in a file that is mapped.
        logits: what ``check_logits`` gave, on the host.
        compute_dtype: that layers compute in, where it is not that of the weights.
        on_other_device: whether the logits were computed on another device than the host.
    """

    weights: Mapping[str, Any]
    logits: Any
    compute_dtype: Any
    on_other_device: bool


def verify_export(
    model: Any,
    folder: Path,
    tokenizer: Any,
    *,
    tokenizer_source: str | None = None,
    sharded: "ShardedWeights | None" = None,
) -> dict[str, Any]:
    """Reload an exported folder and compare logits, rendered template and tokenizer files.

    An adapter is put on its base model, which is loaded once more.

    Args:
        model: that was exported; its mode and weights are left as they are.
        folder: the export.
        tokenizer: that was exported.
        tokenizer_source: folder or hub id whose files the export should hold unchanged; None skips that.
        sharded: what was exported, where the model is sharded. Every tensor must be in the export as it was gathered;
            the logits are compared on the host.

    Returns:
        ``max_abs_logit_diff``, ``logit_tolerance``, ``dtype`` (as stored), ``attn_implementation``,
        ``template_ids_equal`` (None without a chat template), ``text_ids_equal``, and
        ``tokenizer_files_identical`` and ``tokenizer_files_differing`` (names).

    Raises:
        UserError: the export cannot be loaded, its logits deviate (at all, when the dtype is the model's
            float32 or float64), a gathered tensor is not in it, or its tokenizer gives other ids.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    attn = model.config._attn_implementation
    try:
        if is_adapted(model):
            again: Any = load_adapter(
                folder, dtype=_name(model.dtype), attn_implementation=attn, quantization=quantization_of(model)
            )
            if (compute_dtype := compute_dtype_of(model)) is not None:
                compute_in(again, compute_dtype)
        else:
            again = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation=attn)
        tokenizer_again = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise UserError(f"{folder}: the export cannot be loaded again: {type(error).__name__}: {error}") from error

    expected = check_logits(model) if sharded is None else sharded.logits
    actual = check_logits(again.to(expected.device))
    stored = _stored_dtype(folder) if is_adapted(model) else again.dtype
    computed = model.dtype if sharded is None else sharded.compute_dtype or model.dtype
    if sharded is not None:
        _compare_weights(again, sharded.weights, folder)
    gap = (actual.double() - expected.double()).abs().max().item()
    tolerance = _tolerance(computed, stored, expected)
    if sharded is not None and sharded.on_other_device and tolerance == 0.0:
        tolerance = _rounding(computed, expected)
    if not gap <= tolerance:  # also when it is NaN
        raise UserError(
            f"{folder}: the exported model is not the trained one: logits differ by {gap:.3g} "
            f"(allowed {tolerance:.3g}; trained in {model.dtype}, stored in {stored})."
        )
    return {
        "max_abs_logit_diff": gap,
        "logit_tolerance": tolerance,
        "dtype": _name(stored),
        "attn_implementation": attn,
        **_compare_tokenizers(tokenizer, tokenizer_again, folder),
        **_compare_files(folder, tokenizer_source),
    }


def load_adapter(
    folder: Path,
    *,
    dtype: str,
    attn_implementation: str | None = None,
    base: str | None = None,
    quantization: Quantization | None = None,
) -> Any:
    """Open an adapter folder on its base model.

    Args:
        folder: with an adapter_config.json.
        dtype: of the base model's weights.
        attn_implementation: see ``load_model``.
        base: folder, file or hub id of the base model; what the adapter names by default.
        quantization: see ``load_model``.

    Raises:
        UserError: the base model cannot be obtained.
    """
    from peft import PeftConfig, PeftModel

    name = base or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not name:
        raise UserError(f"{folder}: the adapter does not say what its base model is. Name it.")
    model = load_model(
        name, dtype=dtype, attn_implementation=attn_implementation, disable_dropout=False, quantization=quantization
    )
    return PeftModel.from_pretrained(model, str(folder))


def check_logits(model: Any) -> Any:
    """Logits of a few random tokens, always the same ones, in eval mode."""
    import torch

    from lit_ift.models.eval_mode import evaluating

    embedding = model.get_input_embeddings().weight
    ids = torch.randint(embedding.shape[0], (1, _NUM_CHECK_TOKENS), generator=torch.Generator().manual_seed(0))
    with evaluating(model), torch.no_grad():
        return model(input_ids=ids.to(embedding.device), use_cache=False).logits


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _stored_dtype(folder: Path) -> Any:
    """The dtype of an adapter's weights."""
    from safetensors.torch import load_file

    return next(iter(load_file(folder / "adapter_model.safetensors").values())).dtype


def _tolerance(trained: Any, stored: Any, logits: Any) -> float:
    """Zero for the same full-precision dtype; else rounding of the coarser one through the whole network."""
    import torch

    if trained == stored and trained in (torch.float32, torch.float64):
        return 0.0
    return max(_rounding(trained, logits), _rounding(stored, logits))


def _rounding(dtype: Any, logits: Any) -> float:
    import torch

    return float(16 * torch.finfo(dtype).eps * max(1.0, logits.abs().max().item()))


def _compare_weights(again: Any, weights: Mapping[str, Any], folder: Path) -> None:
    import torch

    entries = again.state_dict()
    wrong = [
        name
        for name, tensor in weights.items()
        if name not in entries or not torch.equal(entries[name].cpu(), tensor.to(entries[name].dtype))
    ]
    if wrong:
        raise UserError(f"{folder}: {len(wrong)} tensors are not those of the trained model, such as {wrong[0]}.")


def _compare_tokenizers(tokenizer: Any, again: Any, folder: Path) -> dict[str, bool | None]:
    text = " ".join(message["content"] for message in _MESSAGES)
    same_text = tokenizer(text)["input_ids"] == again(text)["input_ids"]
    same_template: bool | None = None
    if "default" in named_templates(tokenizer):
        render = {"tokenize": True, "return_dict": False}
        before = tokenizer.apply_chat_template(_MESSAGES, **render)
        same_template = before == again.apply_chat_template(_MESSAGES, **render) if again.chat_template else False
    # Others, such as those for tools and for documents, take other inputs.
    if not same_text or same_template is False or named_templates(tokenizer) != named_templates(again):
        raise UserError(
            f"{folder}: the exported tokenizer or chat template gives other token ids than the trained one."
        )
    return {"text_ids_equal": same_text, "template_ids_equal": same_template}


def _compare_files(folder: Path, tokenizer_source: str | None) -> dict[str, list[str]]:
    originals = original_files(tokenizer_source)
    same = {
        name: (folder / name).is_file() and (folder / name).read_bytes() == file.read_bytes()
        for name, file in originals.items()
    }
    return {
        "tokenizer_files_identical": sorted(name for name, equal in same.items() if equal),
        "tokenizer_files_differing": sorted(name for name, equal in same.items() if not equal),
    }
