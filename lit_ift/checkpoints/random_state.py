"""The random numbers of training, which a resumed run goes on with where the earlier one was."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed

from lit_ift.ranks import of_every_rank

State = dict[str, Any]
"""Tensors, numbers and None, so that a checkpoint is loaded with ``weights_only=True``."""


class RandomState(Callback):
    """Keeps the state of all random generators of every rank in checkpoints, and gives it back on resuming.

    Training draws its random numbers (dropout, say) from one uninterrupted stream: what draws between two batches,
    such as a validation that samples answers, leaves it alone. That is why a run that validates more often trains the
    same, and why it does not matter at which hook a checkpoint is written.

    With another number of processes no rank has a state to go on with: they keep their own, which is said.
    """

    def __init__(self) -> None:
        self._between: State | None = None
        """The state at the end of the latest batch; None before the first one and during a batch."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._between = None  # An earlier fit's does not count; a checkpoint's comes after this.

    def state_dict(self) -> dict[str, Any]:
        own = random_state() if self._between is None else self._between
        return {"ranks": of_every_rank(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks = state_dict["ranks"]
        running = distributed.is_available() and distributed.is_initialized()
        rank, size = (distributed.get_rank(), distributed.get_world_size()) if running else (0, 1)
        if len(ranks) == size:
            self._between = ranks[rank]
        else:
            rank_zero_warn(
                f"The checkpoint was written by {len(ranks)} processes, and now there are {size}: dropout and other "
                "random numbers begin anew."
            )

    def on_train_batch_start(self, *_: Any) -> None:
        if self._between is not None:
            set_random_state(self._between)
        self._between = None

    def on_train_batch_end(self, *_: Any) -> None:
        self._between = random_state()


def random_state() -> State:
    """The state of Python's, NumPy's, torch's and the current CUDA device's generator."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": torch.tensor([version, *words]),
        "python_gauss": gauss,
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [str(kind), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }


def set_random_state(state: State) -> None:
    """Put the generators back to what `random_state` told."""
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), state["python_gauss"]))
    kind, position, has_gauss, cached = state["numpy_rest"]
    np.random.set_state((kind, state["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
