"""Load a causal language model and its tokenizer, ready for training."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lit_ift.errors import UserError, told_as
from lit_ift.models.gguf import load_gguf_model, load_gguf_tokenizer
from lit_ift.models.hub import must_use_cache
from lit_ift.models.load_errors import explain_load_error
from lit_ift.models.obtain import obtain_model
from lit_ift.models.source import ModelSource
from lit_ift.models.weight_names import in_words, listed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lit_ift.models.quantized import Quantization

logger = logging.getLogger("lit_ift")

DTYPES: Final = ("float32", "bfloat16", "float16", "float64", "auto")


def load_model(
    model: "str | ModelSource | PreTrainedModel",
    *,
    revision: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    gradient_checkpointing: bool | int = False,
    disable_dropout: bool = True,
    trust_remote_code: bool = False,
    quantization: "Quantization | None" = None,
) -> "PreTrainedModel":
    """Load a model, or prepare a ready one, for training.

    The cache of keys and values is not switched off in the configuration, which is exported: pass
    ``use_cache=False`` when calling the model.

    Args:
        model: local folder, ``.gguf`` file or hub id; a source; or a ready model, which is changed in place.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights: float32, bfloat16, float16, float64, or auto for the checkpoint's own. None
            means float32, and for a ready model its own.
        attn_implementation: eager, sdpa, flash_attention_2 and so on; None for the model's default.
        gradient_checkpointing: recompute activations in the backward pass (not re-entrant); a number n does so in
            every n-th layer only.
        disable_dropout: switch dropout off; see ``set_dropout_off``.
        trust_remote_code: run the code that a model repository brings.
        quantization: of the linear layers but the output head, by bitsandbytes; they cannot be trained.

    Returns:
        The model in training mode.

    Raises:
        UserError: the model cannot be obtained, is damaged or is not a causal language model; a weight is missing
            or left over; or an option does not suit it.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"Unknown dtype '{dtype}'. Use one of: {', '.join(DTYPES)}.")
    if quantization is not None:
        # Imported here because it needs torch.
        from lit_ift.models.quantized import check_quantization

        check_quantization(quantization, dtype)
    source = obtain_model(model, revision=revision) if isinstance(model, str) else model
    if isinstance(source, ModelSource):
        loaded = _load_source(source, dtype or "float32", attn_implementation, trust_remote_code, quantization)
    else:
        loaded = _prepare_ready(source, revision, dtype, attn_implementation)
    _check_materialised(loaded)
    # Imported here because they need torch.
    from lit_ift.models.limits import damage_of
    from lit_ift.models.quantized import make_trainable
    from lit_ift.models.tying import tell_ties

    if damage := damage_of(loaded, source.origin if isinstance(source, ModelSource) else type(loaded).__name__):
        raise UserError(damage)
    tell_ties(loaded)
    make_trainable(loaded)
    make_ready(loaded, gradient_checkpointing=gradient_checkpointing, disable_dropout=disable_dropout)
    if disable_dropout:
        from lit_ift.models.dropout import check_dropout_is_off

        check_dropout_is_off(loaded)
    return loaded


def make_ready(model: Any, *, gradient_checkpointing: bool | int, disable_dropout: bool) -> None:
    """Set a model up for training, in place; its parameters need no values yet.

    Raises:
        UserError: the model cannot recompute activations, or not of chosen layers.
    """
    model.train()
    if disable_dropout:
        # Imported here because it needs torch.
        from lit_ift.models.dropout import set_dropout_off

        set_dropout_off(model)
    if gradient_checkpointing:
        _checkpoint_gradients(model, every=int(gradient_checkpointing))


def load_tokenizer(
    spec: str | ModelSource, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model, unchanged.

    Args:
        spec: as for ``load_model``.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run the code that a model repository brings.

    Returns:
        The tokenizer. Its padding token may be None where the model defines none.

    Raises:
        UserError: there is no tokenizer, or it cannot be obtained.
    """
    from transformers import AutoTokenizer

    source = obtain_model(spec, revision=revision) if isinstance(spec, str) else spec
    if source.gguf_file is not None:
        return load_gguf_tokenizer(source.path, source.gguf_file)
    with told_as(Exception, lambda error: explain_load_error(source, error, what="tokenizer")):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path,
            trust_remote_code=trust_remote_code,
            **where(source),
        )
    return tokenizer


def where(source: ModelSource) -> dict[str, Any]:
    """What ``from_pretrained`` is to be told besides the source's path."""
    if source.is_local:
        return {"local_files_only": True}
    return {"revision": source.revision or "main", "local_files_only": must_use_cache(source.path, source.revision)}


def _load_source(
    source: ModelSource,
    dtype: str,
    attn_implementation: str | None,
    trust_remote_code: bool,
    quantization: "Quantization | None",
) -> Any:
    logger.info("Loading %s.", source.origin)
    if source.config is not None:
        return _without_weights(source, dtype, attn_implementation, trust_remote_code)
    if source.gguf_file is not None:
        if quantization is not None:
            raise UserError(f"{source.origin}: quantization is not for GGUF files. Name the original model instead.")
        return _load_gguf(source, dtype, attn_implementation)
    check_folder(source)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with told_as(Exception, lambda error: explain_load_error(source, error, what="config.json")):
        common = {"trust_remote_code": trust_remote_code, **where(source)}
        config = AutoConfig.from_pretrained(source.path, **common)
    check_causal_lm(source, config)
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization is not None:
        from lit_ift.models.quantized import load_options

        options |= load_options(quantization, options["dtype"])
    with told_as(Exception, lambda error: explain_load_error(source, error, what="model")):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            source.path, output_loading_info=True, **options, **common
        )
    _check_report(source, report)
    return loaded


def _without_weights(source: ModelSource, dtype: str, attn_implementation: str | None, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": source.config.dtype if dtype == "auto" else getattr(torch, dtype)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with told_as(Exception, lambda error: explain_load_error(source, error, what="model")):
        return AutoModelForCausalLM.from_config(source.config, trust_remote_code=trust_remote_code, **options)


def _load_gguf(source: ModelSource, dtype: str, attn_implementation: str | None) -> Any:
    import torch

    if dtype == "auto":
        raise UserError(
            f"{source.origin}: dtype 'auto' has no meaning for a GGUF file, whose weights are quantised. "
            "Name one, such as float32."
        )
    with told_as((ValueError, ImportError), lambda error: explain_load_error(source, error, what="model")):
        loaded = load_gguf_model(
            source.path,
            source.gguf_file or "",
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
        )
    # The folder alone does not say which file; an adapter names its base by this.
    loaded.config._name_or_path = str(Path(source.path) / (source.gguf_file or ""))
    return loaded


def check_folder(source: ModelSource) -> None:
    folder = Path(source.path)
    if not source.is_local or (folder / "config.json").is_file():
        return
    remedy = "Name a folder that save_pretrained wrote, such as a run's model/ folder."
    if (folder / "adapter_config.json").is_file():
        remedy = f"It holds an adapter. Merge it into its base model: lit-ift merge {source.path} OUTPUT"
    elif gguf_files := sorted(folder.glob("*.gguf")):
        remedy = f"It holds a GGUF file: name {gguf_files[0]} instead."
    raise UserError(f"{source.path}: the folder has no config.json, so it is not a Hugging Face model. {remedy}")


def check_causal_lm(source: ModelSource, config: Any) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    brings_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    # BERT and its kin have a causal variant, but are encoders unless told otherwise.
    encoder = getattr(config, "is_decoder", None) is False and any(
        name.endswith(("ForMaskedLM", "ForPreTraining")) for name in config.architectures or []
    )
    if encoder_decoder or encoder or not (known or brings_code):
        raise UserError(
            f"{source.path}: '{config.model_type}' ({', '.join(config.architectures or ['no architecture named'])}) "
            "is not a causal language model. lit-ift trains decoder-only models such as Llama, Qwen or Mistral."
        )


def _check_report(source: ModelSource, report: dict[str, Any]) -> None:
    faults = {
        "missing": sorted(report["missing_keys"]),
        "not part of the model": sorted(report["unexpected_keys"]),
        "of another shape": sorted(str(key) for key in report["mismatched_keys"]),
    }
    problems = [*([in_words(faults)] if any(faults.values()) else []), *map(str, report["error_msgs"])]
    if problems:
        raise UserError(
            f"{source.path}: the weights do not fit config.json ({'; '.join(problems)}). Missing weights would "
            "be random. The checkpoint is incomplete, or belongs to another architecture."
        )


def _prepare_ready(model: Any, revision: str | None, dtype: str | None, attn_implementation: str | None) -> Any:
    import torch

    if not (hasattr(model, "config") and hasattr(model, "get_input_embeddings")):
        raise UserError(f"A model must be a folder, a hub id or a Hugging Face model, not {type(model).__name__}.")
    if revision is not None:
        raise UserError(f"revision='{revision}' has no meaning for a model that is already loaded.")
    if dtype == "auto":
        raise UserError("dtype='auto' has no meaning for a model that is already loaded; leave dtype out.")
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    if attn_implementation is not None:
        _set_attention(model, attn_implementation)
    return model


def _set_attention(model: Any, attn_implementation: str) -> None:
    reason = "its architecture has a fixed one"
    try:
        model.set_attn_implementation(attn_implementation)
    except (ValueError, ImportError, AttributeError) as error:
        reason = str(error)
    in_use = getattr(model.config, "_attn_implementation", None)
    if in_use != attn_implementation:
        raise UserError(
            f"attn_implementation='{attn_implementation}' cannot be set on {type(model).__name__}, which uses "
            f"'{in_use}': {reason}"
        )


def _check_materialised(model: Any) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in named if tensor.is_meta]
    if empty:
        raise UserError(f"{type(model).__name__}: weights without values (meta device): {listed(empty)}.")


def _checkpoint_gradients(model: Any, *, every: int) -> None:
    # The re-entrant kind gives the first layer no gradient when its inputs need none, without an error.
    options = {"use_reentrant": False}
    try:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:  # its name in earlier releases of transformers 5
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        raise UserError(f"{type(model).__name__} does not support gradient_checkpointing: {error}") from error
    if every == 1:
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if len(layers) < every:
        raise UserError(
            f"gradient_checkpointing={every} recomputes every {every}th layer, but {type(model).__name__} has "
            f"{len(layers)} to choose from. Set true for all of them."
        )
    for i, layer in enumerate(layers):
        layer.gradient_checkpointing = i % every == 0
