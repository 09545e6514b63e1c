"""FSDP2 through Lightning's ``ModelParallelStrategy``, with defaults that shard over all ranks."""

from datetime import timedelta

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lit_ift.errors import UserError
from lit_ift.models.shard import Sharding


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all ranks of all nodes.

    Lightning's ``ModelParallelStrategy`` would do tensor parallelism within a node unless told otherwise. In a
    configuration the strategy is called ``fsdp2`` or ``lit_ift.strategies.FSDP2Strategy``.

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
        replicas: int = 1,
        *,
        reshard_after_forward: bool = True,
        offload: bool = False,
        timeout_minutes: float = 30.0,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        if replicas < 1:
            raise ValueError(f"replicas={replicas} is not positive")
        if not timeout_minutes > 0:
            raise ValueError(f"timeout_minutes={timeout_minutes} is not positive")
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


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2: shards the model over all ranks")


def check_strategy(trainer: "L.Trainer | None") -> None:
    """Refuse strategies under which training could not work, before anything is loaded.

    Raises:
        UserError: names the strategy and what to use instead.
    """
    strategy = None if trainer is None else trainer.strategy
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        name = "fsdp (FSDP1)" if isinstance(strategy, FSDPStrategy) else "deepspeed"
        raise UserError(
            f"trainer.strategy={name} is not supported: it flattens parameters, and its clipping of gradients and "
            "precision of sums differ from one process. Use FSDP2: trainer.strategy=fsdp2, or add "
            "--config configs/strategy/fsdp2.yaml."
        )
    if isinstance(strategy, ModelParallelStrategy):
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
