"""Optimizer steps that are skipped: those whose loss or gradient is not finite, or whose gradient is a spike."""

from collections import deque
from statistics import median
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_ift.ranks import of_every_rank

HISTORY: Final = 100
"""Steps whose gradient norms a step is compared with, at most."""
COMPARED_FROM: Final = 20
"""Steps before which nothing is called a spike: the norms of a run's beginning vary."""


class SkippedStep(Exception):  # noqa: N818 - no error: it leads out of the optimizer before anything has changed.
    """Raised where a step's gradients are known, and caught around the optimizer."""


class BadSteps(Callback):
    """Counts the steps that a run has skipped, and keeps the gradient norms of those that it took.

    Both are in checkpoints, so that a resumed run counts on and decides as an uninterrupted one.
    """

    def __init__(self) -> None:
        self.count = 0
        self._norms: deque[float] = deque(maxlen=HISTORY)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.count = 0  # An earlier fit's does not count; a checkpoint's comes after this.
        self._norms.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]
        self._norms = deque(state_dict["norms"], maxlen=HISTORY)

    def keep(self, norm: float) -> None:
        """Take in the gradient norm of a step that is taken."""
        self._norms.append(norm)

    def spike(self, norm: float, factor: float) -> str:
        """Why a gradient norm is a spike, being above `factor` times the median of the steps before; else nothing."""
        usual = median(self._norms) if len(self._norms) >= COMPARED_FROM else float("inf")
        if norm <= factor * usual:
            return ""
        return (
            f"the gradient's norm ({norm:.4g}) is more than {factor:g} times the median of the {len(self._norms)} "
            f"steps before it ({usual:.4g})"
        )


def of_all_ranks(bad: list[str], rows: list[str]) -> str:
    """The rows of a bad step on every rank: those with a bad loss, or all where no rank has one. All ranks call it."""
    ranks = of_every_rank((bad, rows))
    culprits = [row for of_rank, _ in ranks for row in of_rank]
    if culprits:
        return f"Rows with a bad loss: {culprits}"
    return f"Rows of the step: {[row for _, of_rank in ranks for row in of_rank]}"
