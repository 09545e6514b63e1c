"""FSDP2 through Lightning's ``ModelParallelStrategy``, with defaults that shard over all ranks."""

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from lit_ift.checkpoints.checksums import check_checksums
from lit_ift.checkpoints.shards import SHARDS_REST, read_shards
from lit_ift.checkpoints.writing import is_staged, write_together
from lit_ift.distributed.processes import check_processes
from lit_ift.distributed.shard import Sharding
from lit_ift.errors import UserError
from lit_ift.options import CheckedOptions, Positive, PositiveInt


class FSDP2Strategy(CheckedOptions, ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all ranks of all nodes.

    Lightning's ``ModelParallelStrategy`` would do tensor parallelism within a node unless told otherwise. In a
    configuration the strategy is called ``fsdp2`` or ``lit_ift.distributed.FSDP2Strategy``.

    Args:
        replicas: groups of ranks that hold a whole copy of the sharded model each (hybrid sharding); such as the
            number of nodes, so that parameters are gathered within a node only. 1 shards over all ranks.
        reshard_after_forward: free a layer's gathered parameters after its forward pass and gather them again for the
            backward pass. False holds the whole gathered model from the first forward pass to the end of the backward
            pass: less traffic (IFT's two passes gather once, and the backward pass not at all), more memory.
        offload: keep parameters, gradients and optimizer state in the memory of the host, and update there.
        timeout_minutes: how long a rank waits for the others before it gives up.
        save_distributed_checkpoint: each rank writes its own part of a checkpoint, which is then a folder. False
            gathers everything on rank 0 and writes one file.
        process_group_backend: of torch.distributed; chosen by the device if not given.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        replicas: PositiveInt = 1,
        *,
        reshard_after_forward: bool = True,
        offload: bool = False,
        timeout_minutes: Positive = 30.0,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.replicas = replicas
        self.reshard_after_forward = reshard_after_forward
        self.offload = offload
        self._sharding_mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        self._data_parallel_size = self.world_size
        if self.world_size % self.replicas:
            raise UserError(f"replicas={self.replicas} does not divide the {self.world_size} ranks of this run.")
        if self.offload and self.root_device.type == "cuda" and self._process_group_backend is None:
            # The norm of gradients in the host's memory is added up over ranks there.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_environment()
        if self.replicas > 1:
            self._sharding_mesh = init_device_mesh(
                self.root_device.type,
                (self.replicas, self.world_size // self.replicas),
                mesh_dim_names=("replicate", "shard"),
            )

    @property
    def sharding_mesh(self) -> DeviceMesh:
        """Over which the model is sharded: of one dimension, or ``(replicate, shard)``."""
        return self.device_mesh["data_parallel"] if self._sharding_mesh is None else self._sharding_mesh

    def model_to_device(self) -> None:
        if not self.offload:
            super().model_to_device()
            return
        # The parameters stay with the host; buffers are on the device since the model was sharded.
        assert self.lightning_module is not None
        self.lightning_module._device = self.root_device

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint that is there whole or not at all, a folder of shards too."""
        path = Path(self.broadcast(filepath))
        save = super().save_checkpoint
        if is_staged(path):  # Whoever asks for that will rename it.
            save(checkpoint, path, storage_options)
        else:
            write_together(lambda staged: save(checkpoint, staged, storage_options), path)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Fill the sharded model and its optimizers; return the rest of the checkpoint.

        Lightning's would run code that a folder of shards holds, and takes no file that one process wrote while some
        parameters were frozen.

        Raises:
            UserError: the checkpoint is damaged, or of other parameters.
        """
        path = Path(self.broadcast(checkpoint_path))
        check_checksums(path)
        assert self.model is not None
        assert self.lightning_module is not None
        strict = self.lightning_module.strict_loading
        if path.is_dir():
            # One after the other, so that no more than one of them is there twice.
            weights = {"state_dict": get_model_state_dict(self.model)}
            read_shards(weights, path, strict=strict)
            set_model_state_dict(self.model, weights.pop("state_dict"), options=StateDictOptions(strict=strict))
            for i, optimizer in enumerate(self.optimizers):
                state = {f"optimizer_{i}": get_optimizer_state_dict(self.model, optimizer)}
                read_shards(state, path)
                set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state[f"optimizer_{i}"])
            return cast(dict[str, Any], torch.load(path / SHARDS_REST, map_location="cpu", weights_only=True))
        # A file is not copied to main memory: each tensor is read when it is sent to the other ranks.
        checkpoint = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        set_model_state_dict(
            self.model,
            checkpoint.pop("state_dict"),
            options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict),
        )
        states = checkpoint.pop("optimizer_states", [])
        for optimizer, whole in zip(self.optimizers, states, strict=bool(self.optimizers)):
            set_optimizer_state_dict(
                self.model,
                optimizer,
                optim_state_dict=self._by_name(optimizer, whole, path),
                options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
            )
        return checkpoint

    def _by_name(self, optimizer: Optimizer, state: dict[str, Any], path: Path) -> dict[str, Any]:
        """An optimizer's state under names of parameters. Their numbers in a file say only in what order they come."""
        assert self.model is not None
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        ours = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        if len(numbers) != len(ours):
            raise UserError(
                f"{path} has the optimizer's state for {len(numbers)} parameters, and {len(ours)} are trained now. "
                "Resume with the options of the model that the checkpoint was written with."
            )
        name_of = dict(zip(numbers, ours, strict=True))
        return {
            "state": {name_of[number]: values for number, values in state["state"].items()},
            "param_groups": [{**g, "params": [name_of[n] for n in g["params"]]} for g in state["param_groups"]],
        }


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2: shards the model over all ranks")


def check_strategy(trainer: "L.Trainer | None") -> None:
    """Refuse strategies under which training could not work, before anything is loaded.

    Raises:
        UserError: names the strategy and what to use instead.
    """
    if trainer is not None:
        check_processes(trainer)
    strategy = None if trainer is None else trainer.strategy
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        name = "fsdp (FSDP1)" if isinstance(strategy, FSDPStrategy) else "deepspeed"
        raise UserError(
            f"trainer.strategy={name} is not supported: it flattens parameters, and its clipping of gradients and "
            "precision of sums differ from one process. Use FSDP2: L.Trainer(strategy='fsdp2'), or "
            "--config configs/strategy/fsdp2.yaml (trainer.strategy=fsdp2)."
        )
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy):
        size = strategy.device_mesh["tensor_parallel"].size()
        if size > 1:
            raise UserError(
                f"tensor_parallel_size={size}: the model is sharded over data-parallel ranks only. Set "
                "trainer.strategy=fsdp2, which does so over all of them."
            )


def sharding_of(trainer: "L.Trainer | None") -> Sharding | None:
    """How this run shards its model; None where every rank holds it whole."""
    strategy = None if trainer is None else trainer.strategy
    if trainer is None or not isinstance(strategy, ModelParallelStrategy):
        return None
    # Lightning refuses float16 here, so mixed means bfloat16.
    computed = torch.bfloat16 if isinstance(trainer.precision_plugin, MixedPrecision) else None
    if not isinstance(strategy, FSDP2Strategy):
        return Sharding(strategy.device_mesh["data_parallel"], strategy.root_device, compute_dtype=computed)
    return Sharding(
        strategy.sharding_mesh,
        strategy.root_device,
        reshard_after_forward=strategy.reshard_after_forward,
        offload=strategy.offload,
        compute_dtype=computed,
    )
