"""A whole model from a LoRA adapter and its base model."""

import logging
from pathlib import Path
from typing import Any

from lit_ift.errors import UserError, needing, told_as
from lit_ift.export.card import ExportMetadata
from lit_ift.export.tokenizer_files import original_files
from lit_ift.export.verify import check_logits, load_adapter, verify_export
from lit_ift.export.write import check_free, export_model
from lit_ift.models.load import load_tokenizer
from lit_ift.models.obtain import obtain_model
from lit_ift.models.tying import tell_ties, untie_adapted

logger = logging.getLogger("lit_ift")


def merge_adapter(adapter: Path, output: Path, *, base: str | None = None, dtype: str | None = None) -> dict[str, Any]:
    """Merge an adapter into its base model and write the whole as a Hugging Face model.

    It is merged in float32 (float64 for such weights) and rounded once, when it is written. The tokenizer is the
    adapter's, or that of the base model where the folder has none.

    Args:
        adapter: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        output: folder to create.
        base: folder, file or hub id of the base model; what the adapter names by default.
        dtype: of the written weights; that of the base model's checkpoint by default.

    Returns:
        Figures of ``verify_export``, but ``max_abs_logit_diff`` and ``logit_tolerance`` are those of the merged model
        against the adapter on its base model, before the weights are stored.

    Raises:
        UserError: the adapter or its base cannot be loaded, the adapter cannot be merged, or the merged model is not
            the adapter on its base model.
    """
    import torch

    adapter, output = Path(adapter).expanduser(), Path(output).expanduser()
    name = adapter_base(adapter, base)
    check_free(output, overwrite=False)
    stored = dtype or _checkpoint_dtype(name)
    model = open_adapter(adapter, name, dtype="float64" if stored == "float64" else "float32")
    generation = adapter_generation_config(adapter)
    expected = check_logits(model)
    untie_adapted(model)
    merged = model.merge_and_unload()
    tell_ties(merged)
    gap = (check_logits(merged).double() - expected.double()).abs().max().item()
    # Other order of the same sums, through all layers.
    tolerance = 256 * torch.finfo(expected.dtype).eps * max(1.0, expected.abs().max().item())
    if not gap <= tolerance:
        raise UserError(
            f"{adapter}: the merged model is not the adapter on its base model: logits differ by {gap:.3g} "
            f"(allowed {tolerance:.3g}). Nothing was written."
        )
    if generation is not None:
        merged.generation_config = generation
    source = adapter_tokenizer(adapter, name)
    tokenizer = load_tokenizer(source)
    metadata: ExportMetadata = {"base_model": name, "name": output.name}
    files = source if not source.endswith(".gguf") else None
    export_model(merged, output, tokenizer=tokenizer, tokenizer_source=files, metadata=metadata, dtype=stored)
    figures = verify_export(merged, output, tokenizer, tokenizer_source=files)
    return {**figures, "max_abs_logit_diff": gap, "logit_tolerance": tolerance}


def open_adapter(adapter: Path, base: str, *, dtype: str) -> Any:
    """An adapter on its base model.

    Args:
        adapter: its folder, as ``adapter_base`` has checked it.
        base: folder, file or hub id of the base model.
        dtype: of the base model's weights.

    Raises:
        UserError: the base model is not found or cannot be loaded, or the adapter does not fit it.
    """
    try:
        return load_adapter(adapter, dtype=dtype, base=base)
    except UserError:
        raise
    except Exception as error:  # peft's loader raises whatever its files make it stumble over.
        raise UserError(
            f"{adapter}: the adapter does not fit its base model {base}: {type(error).__name__}: {error} "
            "Name the model that it was trained on with --model."
        ) from error


def adapter_tokenizer(adapter: Path, base: str) -> str:
    """Where the tokenizer of an adapter is: in its folder, or with its base model where the folder has none."""
    return str(adapter) if original_files(str(adapter)) else base


def adapter_base(adapter: Path, base: str | None = None) -> str:
    """What the base model of an adapter is called: ``base``, or what the folder says.

    Raises:
        UserError: the folder holds no whole LoRA adapter, it does not say so, or peft is not installed.
    """
    if not adapter.is_dir():
        raise UserError(f"{adapter}: there is no such folder. Name the folder of an adapter.")
    if not (adapter / "adapter_config.json").is_file():
        what = "it holds a whole model: there is nothing to merge" if (adapter / "config.json").is_file() else ""
        raise UserError(
            f"{adapter}: the folder has no adapter_config.json, so it is not an adapter"
            f"{'; ' + what if what else '. Name the folder that a run with model.lora exported'}."
        )
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter}: adapter_model.safetensors is missing: the adapter is incomplete.")
    with needing("peft", "lora", "An adapter"):
        from peft import PeftConfig
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{adapter / 'adapter_config.json'}: cannot be read: {error}") from error
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise UserError(f"{adapter}: the adapter is of the kind {config.peft_type}; only LoRA adapters are merged.")
    name = base or config.base_model_name_or_path
    if not name:
        raise UserError(f"{adapter}: the adapter does not say what its base model is. Name it with --model.")
    return str(name)


def _checkpoint_dtype(base: str) -> str:
    """The dtype that the base model is stored in; float32 for a GGUF file."""
    from transformers import AutoConfig

    source = obtain_model(base)
    if source.gguf_file is not None:
        return "float32"
    with told_as((OSError, ValueError), lambda error: UserError(f"{base}: the base model cannot be read: {error}")):
        found = AutoConfig.from_pretrained(source.path).dtype
    return str(found).removeprefix("torch.") if found is not None else "float32"


def adapter_generation_config(adapter: Path) -> Any:
    """What the adapter's folder says of generation, with the tokens that end a turn; None if nothing."""
    from transformers import GenerationConfig

    if not (adapter / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(str(adapter))
