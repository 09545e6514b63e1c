"""Which process of a distributed run was lost."""

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lit_ift.options import CheckedOptions, Positive
from lit_ift.ranks import of_every_rank

_TIMEOUT: Final = timedelta(seconds=30)


class LostRanks(CheckedOptions, Callback):
    """Says which ranks were lost when a collective fails, where the backend names at most an address.

    Every process tells rank 0's that it is alive. When training, evaluation or prediction breaks off with an error,
    the processes that are left look who has fallen silent, print it, and add it to the error. A single process has
    nobody to lose.

    It opens a port on rank 0's host, so the command line has it only where it is asked for.

    Args:
        interval: between two signs of life [s].
        patience: silence after which a rank counts as lost [s].
        enabled: false watches nothing.

    Raises:
        ValueError: `interval` is not above 0, or `patience` not above twice the interval.
    """

    def __init__(self, interval: Positive = 1.0, patience: Positive = 5.0, enabled: bool = False) -> None:
        if not patience > 2 * interval:
            raise ValueError(f"patience={patience} must be more than twice interval={interval}")
        self.interval = interval
        self.patience = patience
        self.enabled = enabled
        self._server: TCPStore | None = None
        self._store: TCPStore | None = None
        self._hosts: list[str] = []
        self._stop: threading.Event | None = None  # Made when it watches: it cannot be sent to other processes.
        self._thread: threading.Thread | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not self.enabled or trainer.world_size < 2 or self._thread is not None:
            return
        rank = trainer.global_rank
        if rank == 0:
            self._server = self._connect(is_master=True)
        port = trainer.strategy.broadcast(0 if self._server is None else self._server.port)
        self._hosts = of_every_rank(socket.gethostname())
        self._stop = threading.Event()
        # Two connections: reading, which may have to wait, must not hold back the sign of life.
        self._store = self._connect(port)
        self._thread = threading.Thread(
            target=self._keep_beating, args=(self._connect(port), rank, self._stop), daemon=True
        )
        self._thread.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._thread is not None:
            self._end()
            trainer.strategy.barrier()  # Rank 0 takes the store with it: nobody may be beating any more.
            self._server = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._thread is None:
            return
        rank = trainer.global_rank
        # Backends raise RuntimeError or what derives from it; anything else is this process's own doing.
        lost = self._lost(rank) if isinstance(exception, RuntimeError) else ""
        self._end()
        if lost:
            message = f"Rank {rank} on {self._hosts[rank]} gives up: {lost}"
            print(message, file=sys.stderr, flush=True)  # Now: what comes next may not come to its end.
            exception.add_note(message)

    @staticmethod
    def _connect(port: int = 0, *, is_master: bool = False) -> TCPStore:
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        return TCPStore(address, port, is_master=is_master, wait_for_workers=False, timeout=_TIMEOUT)

    def _end(self) -> None:
        if self._thread is not None and self._stop is not None:
            self._stop.set()
            self._thread.join(timeout=2 * self.interval)
        self._thread = self._store = None

    def _keep_beating(self, store: TCPStore, rank: int, stop: threading.Event) -> None:
        while True:
            try:
                store.add(f"alive/{rank}", 1)
            except RuntimeError:
                return  # Rank 0 is gone, which the training notices by itself.
            if stop.wait(self.interval):
                return

    def _lost(self, rank: int) -> str:
        """A sentence on who has been silent for `patience`; empty if everyone is alive."""
        others = [other for other in range(len(self._hosts)) if other != rank]
        before = self._counts(others)
        time.sleep(self.patience)
        after = self._counts(others)
        if before is None or after is None:
            return f"rank 0 on {self._hosts[0]} was lost: it ended, or cannot be reached. Look at its log first."
        silent = [other for other, then, now in zip(others, before, after, strict=True) if then == now]
        if not silent:
            return ""
        named = ", ".join(f"rank {other} on {self._hosts[other]}" for other in silent)
        verb = "was" if len(silent) == 1 else "were"
        return (
            f"{named} {verb} lost: no sign of life for {self.patience:g} s, because it ended or cannot be reached. "
            "Look at its log first."
        )

    def _counts(self, ranks: Sequence[int]) -> list[int] | None:
        """How often the ranks have given a sign of life; None if rank 0, which knows, does not answer."""
        store = self._store
        assert store is not None
        found: list[int] = []

        def read() -> None:
            try:
                found.extend(store.add(f"alive/{rank}", 0) for rank in ranks)
            except RuntimeError:
                found.clear()

        # Over a wire that is cut, a read waits for as long as the kernel tries to send.
        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        reading.join(self.patience)
        return found if len(found) == len(ranks) else None
