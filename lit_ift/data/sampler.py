"""Batches of rows of similar length, the same on every machine for the same seed, epoch and number of processes."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Final, cast

import torch
from torch import distributed
from torch.utils.data import DistributedSampler, SequentialSampler

MEGABATCH: Final = 50
"""Global batches whose rows are sorted by length together: enough to save padding, few enough to stay random."""

MIN_MEGABATCHES: Final = 4
"""Megabatches that small data is cut into at least; sorting it as one would give the same batches in every epoch."""


class LengthGroupedBatchSampler(DistributedSampler[Any]):
    """Yields this rank's batches as lists of dataset indices.

    For ``DataLoader(dataset, sampler=sampler, batch_size=None)``. It is a `DistributedSampler` so that Lightning
    neither replaces it nor forgets to call `set_epoch`. Over all ranks every row comes exactly once an epoch. Every
    rank yields equally many batches: where the last global batch has no row for a rank, that rank's batch is one
    dummy, ``~i`` (negative) for a row ``i``, which the dataset returns without targets.

    Args:
        lengths: tokens of each row.
        batch_size: rows a rank and batch.
        shuffle: a new order each epoch; otherwise always the same one.
        group_by_length: batches of similar length; without `shuffle` the longest rows come first.
        seed: of the shuffling.
        num_replicas: processes that share the rows; by default those of torch.distributed, or 1.
        rank: which of them this is.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        shuffle: bool = True,
        group_by_length: bool = True,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        running = distributed.is_available() and distributed.is_initialized()
        if num_replicas is None:
            num_replicas = distributed.get_world_size() if running else 1
        if rank is None:
            rank = distributed.get_rank() if running else 0
        super().__init__(cast(Any, lengths), num_replicas, rank, shuffle=shuffle, seed=seed)
        self.lengths = lengths
        self.batch_size = batch_size
        self.group_by_length = group_by_length
        self.epoch_of: Callable[[int], int] | None = None
        self._start = 0

    @cached_property
    def lengths_digest(self) -> str:
        """A short hash of all lengths; computed once, for every checkpoint holds it."""
        return hashlib.sha256(repr(list(self.lengths)).encode()).hexdigest()[:16]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; `epoch_of`, if there is one, tells which it is instead."""
        chosen = epoch if self.epoch_of is None else self.epoch_of(epoch)
        if chosen != self.epoch:
            self._start = 0
        super().set_epoch(chosen)

    def resume(self, *, epoch: int, start: int) -> None:
        """Let the next iteration, and no later one, begin inside an epoch.

        Args:
            epoch: which epoch's order it is.
            start: batches of this rank that were trained on already.
        """
        self.epoch, self._start = epoch, start

    def __len__(self) -> int:
        """Batches that each rank yields in a whole epoch, also if the next one is begun inside."""
        return math.ceil(len(self.lengths) / (self.batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[list[int]]:
        order = global_batches(
            self.lengths,
            global_batch_size=self.batch_size * self.num_replicas,
            shuffle_key=f"{self.seed}/{self.epoch}" if self.shuffle else None,
            group_by_length=self.group_by_length,
        )
        start, self._start = self._start, 0
        for batch in order[start:]:
            yield rank_share(batch, self.rank, self.num_replicas)


class SequentialBatchSampler(LengthGroupedBatchSampler, SequentialSampler):  # type: ignore[misc]
    """The same without shuffling. Lightning leaves a `SequentialSampler` alone under ``overfit_batches``."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, group_by_length: bool = True) -> None:
        LengthGroupedBatchSampler.__init__(
            self, lengths, batch_size=batch_size, shuffle=False, group_by_length=group_by_length
        )


def global_batches(
    lengths: Sequence[int], *, global_batch_size: int, shuffle_key: str | None, group_by_length: bool
) -> list[list[int]]:
    """Cut all rows into batches that the ranks then share; only the last one may be short.

    Args:
        lengths: tokens of each row.
        global_batch_size: rows a batch over all ranks.
        shuffle_key: seeds the order; None keeps the rows in theirs.
        group_by_length: sort by falling length, within shuffled megabatches if there is a `shuffle_key`.
    """
    generator = torch.Generator()
    order = list(range(len(lengths)))
    megabatch = len(order)
    if shuffle_key is not None:
        digest = hashlib.sha256(shuffle_key.encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
        order = torch.randperm(len(lengths), generator=generator).tolist()
        fitting = len(order) // (MIN_MEGABATCHES * global_batch_size)
        megabatch = max(1, min(MEGABATCH, fitting)) * global_batch_size
    if group_by_length and order:
        chunks = [order[start : start + megabatch] for start in range(0, len(order), megabatch)]
        order = [row for chunk in chunks for row in sorted(chunk, key=lambda row: -lengths[row])]
    batches = [order[start : start + global_batch_size] for start in range(0, len(order), global_batch_size)]
    if shuffle_key is None:
        return batches
    # The short batch stays last, so that only there a rank can be without a row.
    num_full = len(order) // global_batch_size
    shuffled = torch.randperm(num_full, generator=generator).tolist()
    return [batches[k] for k in shuffled] + batches[num_full:]


def rank_share(batch: list[int], rank: int, num_replicas: int) -> list[int]:
    """Every `num_replicas`-th row of a batch sorted by length, so that all ranks work equally long."""
    return batch[rank::num_replicas] or [~batch[-1]]
