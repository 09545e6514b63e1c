"""How a run is spread over devices, where Lightning's own strategies need help."""

from lit_ift.distributed.strategy import FSDP2Strategy, check_strategy, sharding_of

__all__ = ["FSDP2Strategy", "check_strategy", "sharding_of"]
