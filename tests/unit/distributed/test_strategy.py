"""What cannot train rightly is refused before anything is loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)
from tiny import tiny_model

from lit_ift import SFTModule
from lit_ift.distributed import FSDP2Strategy, check_strategy, sharding_of
from lit_ift.distributed.shard import decoder_layers
from lit_ift.errors import UserError


def trainer_with(strategy: Any) -> Any:
    return SimpleNamespace(strategy=strategy)


def test_fsdp1_is_refused_with_its_replacement() -> None:
    with pytest.raises(UserError, match=r"fsdp \(FSDP1\).*fsdp2.*configs/strategy/fsdp2\.yaml"):
        check_strategy(trainer_with(FSDPStrategy()))


def test_it_is_refused_before_the_model_is_loaded() -> None:
    module = SFTModule("no/such-model")
    module._trainer = trainer_with(FSDPStrategy())
    with pytest.raises(UserError, match="FSDP1"):
        module.configure_model()


def test_tensor_parallelism_is_refused() -> None:
    strategy = ModelParallelStrategy()  # Ours has none.
    strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 4)}  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"tensor_parallel_size=4.*fsdp2"):
        check_strategy(trainer_with(strategy))


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy(), DDPStrategy()])
def test_others_are_not(strategy: Any) -> None:
    check_strategy(trainer_with(strategy))
    check_strategy(None)
    assert sharding_of(trainer_with(strategy)) is None
    assert sharding_of(None) is None


@pytest.mark.parametrize(("option", "value"), [("replicas", 0), ("timeout_minutes", 0.0)])
def test_options_must_be_positive(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}"):
        FSDP2Strategy(**{option: value})  # type: ignore[arg-type]


def test_it_has_a_short_name() -> None:
    assert "fsdp2" in StrategyRegistry


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "phi3"])
def test_the_layers_are_found(name: str) -> None:
    assert len(decoder_layers(tiny_model(name))) == 2


def test_a_model_that_names_no_layers() -> None:
    model = tiny_model()
    model._no_split_modules = None
    with pytest.raises(UserError, match=r"LlamaForCausalLM.*_no_split_modules.*ddp"):
        decoder_layers(model)
