"""LoRA adapters through peft, which is needed only where one is asked for."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from lit_ift.errors import UserError, did_you_mean, needing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_OPTIONS: Final = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    "inference_mode",
}
"""Fields of ``LoraConfig`` that describe the model, not the adapter, or would keep it from training."""


def add_lora(model: "PreTrainedModel", options: Mapping[str, Any], *, fresh: bool = False) -> Any:
    """Put a trainable LoRA adapter on a model, whose own weights are frozen.

    Dropout that ``lora_dropout`` asks for is kept, also where that of the model was switched off.

    Args:
        model: changed in place.
        options: as ``peft.LoraConfig`` takes them, such as ``r``, ``lora_alpha``, ``lora_dropout``,
            ``target_modules``, ``use_dora``. Left out, ``target_modules`` is ``all-linear``: every linear layer but
            the output head. ``from`` names the folder of an adapter, which is trained on with options of its own.
        fresh: leave the weights of ``from`` alone; others are about to take their place.

    Returns:
        The ``PeftModel``, in training mode.

    Raises:
        UserError: peft is not installed, the model has an adapter already, an option is unknown or does not suit the
            model, or ``from`` is no adapter of it.
    """
    check_lora(options)
    from peft import LoraConfig, get_peft_model

    if is_adapted(model):
        raise UserError("The model has an adapter already; leave lora out, or merge the adapter first.")
    folder = adapter_folder(options)
    given = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    if options.get("target_parameters") is not None and "target_modules" not in options:
        del given["target_modules"]
    try:
        adapted = get_peft_model(model, LoraConfig(**given) if folder is None else _config_in(folder))
        if folder is not None and not fresh:
            _read_adapter(adapted, folder)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(
            f"lora={dict(options)} does not suit {type(model).__name__}: {error} "
            f"Its linear layers are {', '.join(_linear_layers(model))}."
        ) from error
    return adapted.train()


def check_lora(options: Mapping[str, Any]) -> None:
    """Check what can be known of the options before a model is loaded.

    Raises:
        UserError: peft is not installed, or an option is unknown.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"lora={options!r} must be a mapping of options, such as {{r: 16, lora_alpha: 32}}.")
    with needing("peft", "lora", "lora"):
        from peft import LoraConfig
    if adapter_folder(options) is not None:
        return
    known = {field.name for field in fields(LoraConfig)} - NOT_OPTIONS
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"lora has no option '{name}'.{hint} It takes those of peft.LoraConfig: {_listed(known)}.")


def adapter_folder(options: Mapping[str, Any]) -> Path | None:
    """The adapter that training goes on with: the folder that ``from`` names, or ``model`` in that of a run.

    Raises:
        UserError: no LoRA adapter is there, or there are options besides.
    """
    if "from" not in options:
        return None
    if others := sorted(set(options) - {"from"}):
        raise UserError(f"lora.from goes on with an adapter, which brings its own {', '.join(others)}. Leave that out.")
    named = Path(str(options["from"])).expanduser()
    for folder in (named, named / "model"):
        if (folder / "adapter_config.json").is_file():
            if not _config_in(folder).peft_type == "LORA":
                raise UserError(f"lora.from={named}: the adapter there is not LoRA, so it cannot be trained on.")
            return folder
    raise UserError(
        f"lora.from={named}: there is no adapter_config.json. Name the folder that a run with model.lora exported, "
        "such as checkpoints/runs/version_0/model."
    )


def _config_in(folder: Path) -> Any:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False
    return config


def _read_adapter(model: Any, folder: Path) -> None:
    """Put the weights of an adapter's folder into the adapter of a model.

    Raises:
        ValueError: they are of another adapter.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(folder), device="cpu")
    found = set_peft_model_state_dict(model, weights)
    missing = [name for name in found.missing_keys if is_adapter_weight(name) and ".lora_" in name]
    if missing or found.unexpected_keys:
        raise ValueError(f"{folder} has other weights: {', '.join([*missing, *found.unexpected_keys][:3])}.")


def is_adapted(module: nn.Module) -> bool:
    """Whether there are adapter layers in a module."""
    return any(True for _ in adapter_layers(module))


def adapter_layers(module: nn.Module) -> Iterator[Any]:
    """The layers that adapt others, and those trained in the place of others (``modules_to_save``)."""
    if "peft" not in sys.modules:  # Then nothing can have come from it.
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield layer


def is_adapter_weight(name: str) -> bool:
    """Whether an entry of a ``PeftModel``'s state dict belongs to the adapter rather than to its base model."""
    return any(word in name for word in (".lora_", ".modules_to_save.", ".trainable_tokens_")) or name.endswith(".bias")


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The base model alone: every adapter is switched off, and on again afterwards. Both is checked.

    Raises:
        UserError: the model has no adapter that is active.
        RuntimeError: an adapter stayed on, or off.
    """
    layers = list(adapter_layers(model))
    if not layers or not hasattr(model, "disable_adapter"):
        raise UserError(
            "reference=adapter switches the policy's adapter off, but the policy has none. Set lora, or "
            "reference=cached or reference=model."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise UserError("The adapter is merged into the base model, so it cannot be switched off. Unmerge it first.")
    if not any(_is_on(layer) for layer in layers):
        raise UserError("The policy's adapter is switched off, so nothing would train. Switch it on first.")
    was_on = [_is_on(layer) for layer in layers]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    with model.disable_adapter():
        if any(_is_on(layer) for layer in layers):
            raise RuntimeError("an adapter stayed on while the reference was computed")
        yield
    for parameter, requires_grad in zip(model.parameters(), trained, strict=True):
        # peft makes all of an active adapter trainable, also what the caller has frozen.
        parameter.requires_grad_(requires_grad)
    if [_is_on(layer) for layer in layers] != was_on:
        raise RuntimeError("an adapter stayed off after the reference was computed")


def adds_nothing(model: nn.Module) -> bool:
    """Whether the adapters leave the base model's function as it is, as fresh ones do."""
    for layer in adapter_layers(model):
        factors = [*getattr(layer, "lora_B", {}).values(), *getattr(layer, "lora_embedding_B", {}).values()]
        for factor in factors:
            weights = factor.parameters() if isinstance(factor, nn.Module) else [factor]
            if any(bool(torch.any(weight != 0)) for weight in weights):
                return False
    return True


def _is_on(layer: Any) -> bool:
    return bool(layer.active_adapters) and not layer.disable_adapters


def _linear_layers(model: nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer.

    kinds = (nn.Linear, Conv1D)
    return sorted({name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, kinds)})


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
