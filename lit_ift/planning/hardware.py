"""How fast and how large devices are: a table, and this machine, which is measured."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

GIB: Final = 2**30


@dataclass(frozen=True)
class Device:
    """A device and its rates.

    Attributes:
        name: of the device.
        memory: bytes that a run may fill.
        full: FLOP/s of matrix products in float32, as torch computes them by default.
        half: the same in bfloat16 (float16 for those that have none).
        bandwidth: bytes read and written a second.
        reached: share of the rates that a training step reaches.
        is_measured: whether the rates are this machine's, measured just now.
        source: where the rates are from.
    """

    name: str
    memory: float
    full: float
    half: float
    bandwidth: float
    reached: float = 0.45
    is_measured: bool = False
    source: str = "published peak rate, without sparsity"

    @property
    def is_gpu(self) -> bool:
        """Whether torch calls it cuda."""
        return self.name != "here" or torch.cuda.is_available()


def _gpu(name: str, gib: float, full: float, half: float, bandwidth: float) -> Device:
    """Sizes in GiB, TFLOP/s and GB/s; a GiB is for the driver and the libraries."""
    return Device(name, (gib - 1) * GIB * 0.95, full * 1e12, half * 1e12, bandwidth * 1e9)


DEVICES: Final = {
    device.name: device
    for device in (
        _gpu("t4", 15, 8.1, 65, 320),
        _gpu("l4", 22.5, 30.3, 121, 300),
        _gpu("rtx3090", 24, 35.6, 71, 936),
        _gpu("rtx4090", 24, 82.6, 165, 1008),
        _gpu("rtxa6000", 48, 38.7, 155, 768),
        _gpu("l40s", 45, 91.6, 362, 864),
        _gpu("a100-40", 40, 19.5, 312, 1555),
        _gpu("a100-80", 80, 19.5, 312, 2039),
        _gpu("h100-80", 80, 67, 989, 3350),
        _gpu("h200", 141, 67, 989, 4800),
    )
}
"""Published peak rates, in TFLOP/s and GB/s; what a step reaches of them is an estimate. Those of A100, H100, H200 and
L40S were compared with pages that repeat NVIDIA's data sheets, the others were not."""


def this_machine(width: int) -> Device:
    """Rates of the device that a run would take here, measured in about a second.

    Args:
        width: of the model's hidden states; the matrices that are multiplied are as wide.
    """
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, wide = 512, 4 * width

    def products(dtype: torch.dtype) -> float:
        a, b = (torch.ones(size, dtype=dtype, device=place) for size in ((rows, width), (width, wide)))
        return 2.0 * rows * width * wide / _seconds(lambda: a @ b, place)

    large = torch.ones(2**24, device=place)
    out = torch.empty_like(large)
    moved = 2 * large.nbytes / _seconds(lambda: torch.mul(large, 2.0, out=out), place)
    memory = float(torch.cuda.mem_get_info()[0]) if place.type == "cuda" else _free_memory()
    return Device("here", memory, products(torch.float32), products(torch.bfloat16), moved, 1.0, True, "measured now")


def _seconds(compute: Callable[[], object], place: torch.device) -> float:
    """Median time of a call."""
    times = []
    for _ in range(7):
        if place.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        compute()
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[3]


def _free_memory() -> float:
    """Bytes of the host's memory that are free, or could be."""
    told = Path("/proc/meminfo")
    if told.is_file():
        entries = dict(line.split(":", 1) for line in told.read_text(encoding="utf-8").splitlines())
        return float(entries["MemAvailable"].split()[0]) * 1024
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
