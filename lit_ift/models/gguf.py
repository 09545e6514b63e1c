"""Read a GGUF file into an ordinary model that can be trained and saved."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_ift.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def require_gguf() -> None:
    """Check that the packages that read GGUF files are installed.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"Reading a GGUF file needs the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}. "
            "Install with: pip install 'lit-ift[gguf]'"
        )


def load_gguf_model(
    folder: str, gguf_file: str, *, dtype: "torch.dtype", attn_implementation: str | None = None
) -> "PreTrainedModel":
    """Load and dequantise a GGUF file.

    The model that transformers returns carries a quantization config, with which ``save_pretrained``
    fails. The weights are therefore moved into a model built from a config without it.

    Args:
        folder: the folder that holds the file.
        gguf_file: name of the file.
        dtype: of the loaded weights.
        attn_implementation: as for ``from_pretrained``; None for the default of the architecture.

    Returns:
        A model in eval mode with tied weights tied.

    Raises:
        UserError: gguf or accelerate is not installed, or the file cannot be read.
    """
    require_gguf()
    import torch
    from transformers import AutoModelForCausalLM

    try:
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=dtype)
    except (ValueError, OSError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(
            f"{Path(folder) / gguf_file}: the GGUF file cannot be read: {error}. It may be damaged, or its "
            "architecture or quantisation is not supported by the installed transformers and gguf."
        ) from error
    config = _clean_config(quantised.config)
    options: dict[str, Any] = {"dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    # Building a model draws initial weights that are overwritten at once: keep the caller's random state.
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, **options)
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    clean: PreTrainedModel = model.eval()
    return clean


def load_gguf_tokenizer(folder: str, gguf_file: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer and chat template that a GGUF file carries.

    Raises:
        UserError: gguf or accelerate is not installed, or the file cannot be read.
    """
    require_gguf()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    except (ValueError, OSError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(f"{Path(folder) / gguf_file}: no tokenizer can be read from the GGUF file: {error}") from error
    return tokenizer


def _clean_config(config: Any) -> Any:
    values = config.to_dict()
    values.pop("quantization_config", None)
    values.pop("_name_or_path", None)
    # The converter's free text name of the file, of no use as a path.
    values.pop("_model_name_or_path", None)
    return type(config).from_dict(values)
