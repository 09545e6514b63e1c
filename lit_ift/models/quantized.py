"""Frozen weights in 4 or 8 bits, by bitsandbytes, which is needed only where that is asked for."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from lit_ift.errors import UserError
from lit_ift.models.lora import is_adapter_weight

Quantization = Literal["nf4", "fp4", "int8"]
"""How bitsandbytes holds weights that do not train."""

COMPUTE_DTYPES: Final = {
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
    "16-true": torch.float16,
}
"""What layers compute in under a precision of the Trainer; under others, in the dtype that the model is loaded in."""


def check_quantization(quantization: Quantization, dtype: str | None = None) -> None:
    """Check that weights can be held this way, before anything is loaded.

    Args:
        quantization: the kind.
        dtype: that the model is to be loaded in.

    Raises:
        UserError: the kind is unknown, bitsandbytes cannot be imported, or the dtype is one that it cannot compute in.
    """
    if quantization not in get_args(Quantization):
        raise UserError(f"quantization={quantization!r} is not one of {', '.join(get_args(Quantization))}.")
    if dtype == "float64":  # On a CPU it would return memory as it found it.
        raise UserError(f"quantization={quantization!r} does not compute in float64. Set dtype=float32 or bfloat16.")
    # It warns of each rounding to float16, several times a layer, and of a kernel for inference that it misses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:  # The latter two where its library does not fit the machine.
        raise UserError(
            f"quantization={quantization!r} needs bitsandbytes ({error}): pip install 'lit-ift[quantization]'"
        ) from error


def load_options(quantization: Quantization, dtype: torch.dtype | str) -> dict[str, Any]:
    """What ``from_pretrained`` is to be told; ``dtype`` is that of what is not quantized, or ``auto``."""
    from transformers import BitsAndBytesConfig

    # Quantized weights stay where they were loaded.
    device: dict[str, Any] = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    if quantization == "int8":
        # With a threshold, one token's outliers change how all others of the batch are rounded, those before it too.
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        )
    return {"quantization_config": config, **device}


def quantized_layers(model: nn.Module) -> Iterator[Any]:
    """The linear layers whose weights are quantized."""
    if "bitsandbytes" not in sys.modules:  # Then there can be none.
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for layer in model.modules():
        if isinstance(layer, Linear4bit | Linear8bitLt):
            yield layer


def is_quantized(model: nn.Module) -> bool:
    """Whether any of its weights are."""
    return any(True for _ in quantized_layers(model))


def quantization_of(model: Any) -> Quantization | None:
    """How a model was quantized when it was loaded; None if it was not, or is stored so."""
    layer = next(quantized_layers(model), None)
    if layer is None or getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False):
        return None
    kind: Quantization = getattr(layer.weight, "quant_type", "int8")
    return kind


def make_trainable(model: nn.Module) -> None:
    """Let a loaded model's quantized layers be trained through, in place.

    On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights in the first forward pass in eval mode. From then on
    layers round to bfloat16, and no gradient comes through them, in training mode either. This is switched off.

    Raises:
        UserError: the layers are of a shape that is computed wrongly here.
    """
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False
        block = getattr(layer.weight, "blocksize", 1)
        if layer.weight.device.type == "cpu" and layer.in_features % block:
            # Its kernel for AVX512 takes each row to begin with a block.
            raise UserError(
                f"The model has linear layers of {layer.in_features} inputs, no multiple of {block}. On a CPU, "
                "bitsandbytes computes wrongly with such weights in 4 bits. Use quantization=int8, a GPU, or no "
                "quantization."
            )


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Have 4-bit layers compute in a dtype, in place. Autocast does not choose it for them."""
    for layer in quantized_layers(model):
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = dtype


def compute_dtype_of(model: nn.Module) -> torch.dtype | None:
    """What 4-bit layers compute in; None if there are none."""
    return next((getattr(layer, "compute_dtype", None) for layer in quantized_layers(model)), None)


def scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What quantized weights mean besides their codes, which are parameters: the scales of their blocks or rows."""
    for number, layer in enumerate(quantized_layers(model)):
        state = layer.state_dict()
        yield from ((f"{number}.{name}", state[name]) for name in sorted(state) if name not in ("weight", "bias"))


def save_what_trains(module: nn.Module) -> None:
    """Let the state dict of a module with a quantized model hold the adapter alone, and be loaded so.

    The rest is in the model's own files already, and bitsandbytes cannot load it from a state dict.
    """
    module.register_state_dict_post_hook(_drop_what_is_frozen)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_post_hook(_miss_what_trains)  # type: ignore[no-untyped-call]


def _drop_what_is_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: dict[str, Any]) -> None:
    own = [name for name in state if name.startswith(prefix)]
    for name in set(own) - _kept(module, own, prefix):
        del state[name]


def _miss_what_trains(module: nn.Module, keys: Any) -> None:
    kept = _kept(module, keys.missing_keys)
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in kept]


def _kept(module: nn.Module, names: Iterable[str], prefix: str = "") -> set[str]:
    trained = {prefix + name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name for name in names if name in trained or is_adapter_weight(name)}
