"""The most memory that a run takes."""

import threading
from typing import Final

import torch

MIB: Final = 2**20

EVERY: Final = 0.02
"""Between two looks at the memory of a process [s]."""


def anonymous_memory() -> float | None:
    """Anonymous memory of this process that is in use [MiB]; None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024
    except (OSError, StopIteration):
        return None


class PeakMemory:
    """Measures from its start on: on a GPU what was allocated there, else how much the process grew.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self._highest = anonymous_memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif self.start is not None:
            self._thread.start()

    @property
    def kind(self) -> str:
        """What is measured: ``device`` or ``process``."""
        return "device" if self.device.type == "cuda" else "process"

    def read(self) -> float | None:
        """The most until now [MiB]; None where it cannot be told."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        return None if self.start is None or self._highest is None else self._highest - self.start

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._highest = max(self._highest or 0.0, anonymous_memory() or 0.0)
