"""``trainer.strategy: fsdp``, as users of Lightning write it, becomes FSDP2."""

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from inspect import signature
from typing import Any, Final

import yaml
from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch.strategies import FSDPStrategy

from lit_ift.distributed import FSDP2Strategy

NAMES: Final[dict[str, dict[str, Any]]] = {"fsdp": {}, "fsdp_cpu_offload": {"offload": True}}
"""Names of Lightning for FSDP, and what they ask of FSDP2."""

ELSEWHERE: Final = {
    "activation_checkpointing": "Set model.gradient_checkpointing",
    "activation_checkpointing_policy": "Set model.gradient_checkpointing",
    "sharding_strategy": "Set trainer.strategy=ddp to shard nothing",
    "auto_wrap_policy": "Leave it out: the layers that the model names are sharded one by one",
    "device_mesh": "Set replicas of FSDP2Strategy",
    "mixed_precision": "Set trainer.precision",
    "precision_plugin": "Set trainer.precision",
    "use_orig_params": "Leave it out: FSDP2 always keeps the original parameters",
    "sync_module_states": "Leave it out: all ranks begin with the same weights",
}
"""Options of ``FSDPStrategy`` without a meaning here, and what to do."""

RESHARDS: Final = {"FULL_SHARD": True, "SHARD_GRAD_OP": False, "HYBRID_SHARD": True, "_HYBRID_SHARD_ZERO2": False}
"""Whether a way to shard frees a layer's gathered parameters after its forward pass."""


def fsdp2_instead(strategy: Any, num_nodes: int) -> Namespace | None:
    """FSDP2 in place of a configured strategy, with what its options mean there; None for any other strategy.

    Args:
        strategy: a name, or ``class_path`` with ``init_args``; as text where the parser refused these.
        num_nodes: of the run; hybrid sharding keeps a whole copy of the model on each.

    Raises:
        ValueError: an option has no meaning for FSDP2.
    """
    described = _described(strategy)
    path = described.get("class_path") if isinstance(described, Namespace | Mapping) else described
    if path in NAMES:
        options = NAMES[path]
    elif str(path).split(".")[-1] == "FSDPStrategy":
        options = _translated({} if isinstance(described, str) else _given(described), num_nodes)
    else:
        return None
    defaults = {name: p.default for name, p in signature(FSDP2Strategy).parameters.items()}
    new_path = f"{FSDP2Strategy.__module__}.{FSDP2Strategy.__qualname__}"
    fsdp2: Namespace = dict_to_namespace({"class_path": new_path, "init_args": defaults | options})
    return fsdp2


def _described(strategy: Any) -> Any:
    """A strategy, read where it is text: the parser takes for a name what its check of FSDPStrategy refuses."""
    try:
        return yaml.safe_load(strategy) if isinstance(strategy, str) else strategy
    except yaml.YAMLError:
        return strategy


def _given(strategy: Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults of ``FSDPStrategy``."""
    defaults = {name: p.default for name, p in signature(FSDPStrategy).parameters.items()}
    options = {
        name: value for part in ("init_args", "dict_kwargs") for name, value in (strategy.get(part) or {}).items()
    }
    plain = {name: value.name if isinstance(value, Enum) else value for name, value in options.items()}
    return {name: value for name, value in plain.items() if name not in defaults or value != defaults[name]}


def _translated(given: Mapping[str, Any], num_nodes: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name == "cpu_offload" and isinstance(value, bool | None):
            options["offload"] = bool(value)
        elif name == "process_group_backend":
            options[name] = value
        elif name == "timeout" and isinstance(value, timedelta):
            options["timeout_minutes"] = value.total_seconds() / 60
        elif name == "state_dict_type":
            options["save_distributed_checkpoint"] = value == "sharded"
        elif name == "sharding_strategy" and value in RESHARDS:
            options["reshard_after_forward"] = RESHARDS[value]
            options["replicas"] = num_nodes if "HYBRID" in value else 1
        else:
            remedy = ELSEWHERE.get(name, "Leave it out, or set trainer.strategy=fsdp2 with options of its own")
            raise ValueError(f"trainer.strategy.{name}={value!r} has no meaning for FSDP2. {remedy}.")
    return options
