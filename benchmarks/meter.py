"""How much memory a process takes, by the memory of its own that it has in use."""

import ctypes
import threading
import time


def anonymous() -> float:
    """Anonymous memory of this process that is in use [MiB]."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


class Meter:
    """Samples the memory of this process."""

    def __init__(self) -> None:
        self.start = self.highest = anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.highest = max(self.highest, anonymous())
            time.sleep(0.002)

    def read(self) -> dict[str, float]:
        """What is held now, without what the allocator keeps for later, and the most since the last reading."""
        peak = max(self.highest, anonymous())
        ctypes.CDLL(None).malloc_trim(0)
        held = self.highest = anonymous()
        return {"held": held - self.start, "peak": peak - self.start}
