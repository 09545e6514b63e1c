"""A Trainer's precision: its dtype is that of the model's weights, and of nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision


def convert_weights(trainer: L.Trainer | None, module: torch.nn.Module) -> None:
    """Give the weights the dtype of ``bf16-true``, ``16-true`` or ``64-true``, in place.

    The strategy does so later: after reference policies were computed, and sharded models were cut.
    """
    if trainer is not None and isinstance(trainer.precision_plugin, HalfPrecision | DoublePrecision):
        trainer.precision_plugin.convert_module(module)


def keep_batches_exact(trainer: L.Trainer | None) -> None:
    """Keep Lightning from rounding what comes with a batch.

    Models here take token ids. The floats of a batch are scores, and log-probabilities of whole answers under the
    reference policy. bfloat16 would round these to three digits.
    """

    def as_it_is(data: Any) -> Any:
        return data

    if trainer is not None:
        trainer.precision_plugin.convert_input = as_it_is  # type: ignore[method-assign]


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are float32 unless told otherwise, whatever the Trainer's precision makes the default.

    Losses, weights and metrics are float32 or better under every precision.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def uncached_casts(device_type: str) -> Iterator[None]:
    """Let autocast make a cast of each weight for each use.

    One cast that several chunks of positions share gathers their gradients in half precision, the less exactly the
    more chunks there are. With a cast for each, they are added up in the dtype of the weight.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    with torch.autocast(device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=False):
        yield
