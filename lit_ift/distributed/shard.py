"""A model whose parameters are sharded over ranks by FSDP2, and the one way to use it.

Outside of a forward pass of the sharded root, parameters are shards. Everything that a step computes must therefore
run in one such pass: ``in_root`` opens it around any function.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from lit_ift.distributed.load import materialise, parameters_on_meta
from lit_ift.errors import UserError
from lit_ift.models.head import base_model
from lit_ift.models.lora import is_adapted

T = TypeVar("T")

_HALF: Final = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sharding:
    """How a model is sharded.

    Attributes:
        mesh: of the ranks; of two dimensions, replicas come first.
        device: what this rank computes on.
        reshard_after_forward: whether a layer's gathered parameters are freed after its forward pass.
        offload: whether shards are kept in the memory of the host.
        compute_dtype: that layers are gathered and computed in; None for that of the parameters.
    """

    mesh: DeviceMesh
    device: torch.device
    reshard_after_forward: bool = True
    offload: bool = False
    compute_dtype: torch.dtype | None = None


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of a causal language model, as its architecture names them (``_no_split_modules``).

    Raises:
        UserError: it names none.
    """
    inner = base_model(model)
    names = set(getattr(inner, "_no_split_modules", None) or ())
    found = [module for module in inner.modules() if type(module).__name__ in names]
    if not found:
        raise UserError(
            f"{type(inner).__name__} does not say what its layers are (_no_split_modules), so it cannot be sharded. "
            "Use trainer.strategy=ddp."
        )
    return found


def shard_model(model: Any, sharding: Sharding, *, keep_root: bool = False) -> None:
    """Shard a model in place: each layer by itself; embeddings, last norm and head together as the root.

    With ``compute_dtype``, layers are gathered in it, which is the rounding that autocast would give them; the root is
    gathered as it is. Gradients are summed over ranks in float32 or better.

    Args:
        model: on this rank's device, the host or the meta device; trainable parameters are told by then.
        sharding: how.
        keep_root: leave the root gathered once it has been; for a frozen model, whose head is used outside of
            its forward pass.
    """
    layers = decoder_layers(model)
    is_half = any(p.dtype in _HALF for p in model.parameters())
    computed = sharding.compute_dtype
    reduced = torch.float32 if is_half or computed is not None else None
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if sharding.offload else OffloadPolicy()
    common: dict[str, Any] = {"mesh": sharding.mesh, "offload_policy": offload}
    # Activations are left to autocast, as without sharding.
    of_layers = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=reduced, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mp_policy=of_layers, reshard_after_forward=sharding.reshard_after_forward, **common)
    of_root = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
    fully_shard(model, mp_policy=of_root, reshard_after_forward=False, **common)
    model._sharding, model._keep_root, model._in_root = sharding, keep_root, False
    model._run_in_root = MethodType(_run, model)
    register_fsdp_forward_method(model, "_run_in_root")


def _run(model: Any, compute: Callable[[], T]) -> T:
    return compute()


def copy_sharded(model: Any) -> Any:
    """A model of its own with the same weights, sharded alike; ranks copy their shards and send nothing.

    Raises:
        UserError: the model has an adapter.
    """
    from transformers import AutoModelForCausalLM

    if is_adapted(model):
        raise UserError(
            "reference=model cannot copy a model that is sharded and has an adapter. Name the model instead of giving "
            "it ready-made (or reference_model), or set reference=adapter or reference=cached."
        )
    sharding: Sharding = model._sharding
    with parameters_on_meta():
        twin = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    twin.requires_grad_(False)
    shard_model(twin, sharding, keep_root=True)
    materialise(twin, torch.device("cpu") if sharding.offload else sharding.device)
    values = dict(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, tensor in twin.state_dict(keep_vars=True).items():
            tensor.copy_(values[name])
        for mine, other in zip(twin.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
    return twin.train(model.training)


def is_sharded(model: Any) -> bool:
    """Whether ``shard_model`` was called on it."""
    return isinstance(model, FSDPModule)


def in_root(model: Any, compute: Callable[[], T]) -> T:
    """Call a function that uses parts of the model, such as its decoder and head, with or without gradient.

    All ranks must call it, and run the same number of forward passes of the layers in it. Calls may be nested. What
    carries gradient must be part of the function's result. Of a model that is not sharded, it is just the call.
    """
    if not is_sharded(model) or model._in_root:
        return compute()
    sharding: Sharding = model._sharding
    casts = (
        contextlib.nullcontext()
        if sharding.compute_dtype is None
        else torch.autocast(sharding.device.type, sharding.compute_dtype)
    )
    # What is gathered under inference mode could not be trained on afterwards.
    no_inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()
    model._in_root = True
    try:
        with no_inference, torch.set_grad_enabled(torch.is_grad_enabled()), casts:
            result: T = model._run_in_root(compute)
    finally:
        model._in_root = False
    if not torch.is_grad_enabled() and not model._keep_root:
        # No backward pass will free what was gathered, and whoever lists parameters next is to find the shards.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
    return result


def compute_device(model: Any) -> torch.device:
    """Where inputs of the model belong."""
    device: torch.device = model._sharding.device if is_sharded(model) else model.get_input_embeddings().weight.device
    return device


def most_on_any_rank(count: int, device: torch.device) -> int:
    """The largest of the ranks' counts."""
    counts = torch.tensor(count, device=device)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    return int(counts)


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards; all ranks must ask. One that is not sharded is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(model: nn.Module, *, keep: Callable[[str], bool] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Entries of the state dict on the host, one at a time so that no rank holds the whole model on its device.

    All ranks must iterate to the end. Tied weights are gathered once and given again under each name; nothing else is
    kept.

    Args:
        model: sharded or not.
        keep: which entries are wanted, by name; all by default. The same on every rank.
    """
    entries = [(n, v) for n, v in model.state_dict(keep_vars=True).items() if keep is None or keep(n)]
    names_of = Counter(id(value) for _, value in entries)
    tied: dict[int, Tensor] = {}
    for name, value in entries:
        found = tied[id(value)] if id(value) in tied else whole(value.detach()).cpu()
        if names_of[id(value)] > 1:
            tied[id(value)] = found
        yield name, found


def same_on_all_ranks(model: nn.Module, device: torch.device, *, all_of_it: bool) -> None:
    """Give every rank rank 0's weights, so that each keeps its shard of one and the same model.

    Args:
        model: not sharded yet.
        device: over which ranks exchange tensors.
        all_of_it: false for the trainable parameters only.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_meta or not (all_of_it or tensor.requires_grad):
            continue
        sent = tensor.detach().to(device).contiguous()
        dist.broadcast(sent.view(-1).view(torch.uint8), 0)  # Not every backend knows every dtype.
        tensor.data.copy_(sent)
