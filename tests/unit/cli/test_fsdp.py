"""What users of Lightning write for FSDP becomes FSDP2, or says why not."""

from datetime import timedelta
from typing import Any

import pytest
from jsonargparse import Namespace

from lit_ift.cli.fsdp import fsdp2_instead

DEFAULTS = {
    "replicas": 1,
    "reshard_after_forward": True,
    "offload": False,
    "timeout_minutes": 30.0,
    "save_distributed_checkpoint": True,
    "process_group_backend": None,
}
PATH = "lightning.pytorch.strategies.FSDPStrategy"


def fsdp(**init_args: Any) -> Namespace:
    return Namespace(class_path=PATH, init_args=Namespace(**init_args))


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("fsdp", {}),
        ("fsdp_cpu_offload", {"offload": True}),
        (PATH, {}),
        ("FSDPStrategy", {}),
        (fsdp(state_dict_type="full", cpu_offload=None, timeout=timedelta(seconds=1800)), {}),
        (fsdp(cpu_offload=True, state_dict_type="sharded"), {"offload": True}),
        (fsdp(sharding_strategy="SHARD_GRAD_OP"), {"reshard_after_forward": False}),
        (fsdp(sharding_strategy="HYBRID_SHARD"), {"replicas": 4}),
        (fsdp(timeout=timedelta(minutes=5)), {"timeout_minutes": 5.0}),
        ("{class_path: FSDPStrategy, init_args: {process_group_backend: gloo}}", {"process_group_backend": "gloo"}),
    ],
)
def test_it_becomes_fsdp2(strategy: Any, options: dict[str, Any]) -> None:
    found = fsdp2_instead(strategy, num_nodes=4)
    assert found is not None
    assert found.class_path == "lit_ift.distributed.strategy.FSDP2Strategy"
    assert vars(found.init_args) == DEFAULTS | options


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2", "{broken", Namespace(class_path="a.DDPStrategy")])
def test_others_stay(strategy: Any) -> None:
    assert fsdp2_instead(strategy, num_nodes=1) is None


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (fsdp(sharding_strategy="NO_SHARD"), "sharding_strategy='NO_SHARD' has no meaning for FSDP2. Set .*ddp"),
        (fsdp(mixed_precision=object()), "mixed_precision=.* has no meaning .* Set trainer.precision"),
        ("{class_path: FSDPStrategy, init_args: {auto_wrap_policy: [a]}}", "auto_wrap_policy=.* Leave it out"),
        (Namespace(class_path=PATH, dict_kwargs={"use_orig_params": True}), "use_orig_params=True has no meaning"),
        ("{class_path: FSDPStrategy, init_args: {nonsense: 1}}", "nonsense=1 has no meaning"),
    ],
)
def test_options_without_a_meaning_are_refused(strategy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fsdp2_instead(strategy, num_nodes=1)
