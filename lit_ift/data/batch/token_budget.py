"""Batches of at most so many tokens, equally many in every epoch.

What an epoch's rows are may change, and so may their places, but the sorted lengths are planned for once, rounded up
to the longest row of a bucket. Rows are then drawn into the plan at random within their buckets, so that every batch
of every epoch stays within its budget.

Sizes are tokens; a slot is a place for one row.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

RATIOS: Final = (2.0, 1.5, 1.25, 1.12, 1.06, 1.03, 1.0)
"""Widths of a bucket to choose from, upper over lower bound; wider buckets draw batches more freely."""

TOLERANCE: Final = 0.05
"""Share of more batches that rounding lengths up may cost, and again that sorting rows in several shards may."""

SHARD: Final = 50
"""Batches of a shard, whose slots are sorted by length together."""

MIN_SHARDS: Final = 4
"""Shards of small data; sorting it as one would give much the same batches in every epoch."""


class BatchPlan:
    """A fixed number of batches for rows whose sorted lengths never exceed those that are planned for.

    Without packing, slots sorted by length are dealt out to shards, and a batch is a run of the slots of a shard,
    which counts with its padding. With packing, each slot, the longest first, goes to the batch with the fewest tokens
    so far: every batch is a sample of all lengths, and planned sums differ by no more than the longest row.

    Args:
        planned: an upper bound of the sorted lengths of an epoch's rows, in any order, (R,).
        lengths: of all rows that an epoch may have, (n,).
        budget: tokens that a batch may hold, padding included; no row may be longer.
        num_replicas: processes that each take one batch of a step.
        packing: rows are packed, so that padding does not count.
        width: the length to which a longest row is padded.
    """

    def __init__(
        self,
        planned: Tensor,
        lengths: Tensor,
        *,
        budget: int,
        num_replicas: int,
        packing: bool,
        width: Callable[[int], int],
    ) -> None:
        self._lengths = lengths
        self._packing = packing
        self._width = width

        exact = planned.sort(descending=True).values
        if packing:
            most = int(exact.sum()) * (1 + TOLERANCE)
            self._ratio = next(ratio for ratio in RATIOS if int(_bounds(exact, lengths, ratio).sum()) <= most)
            self._slots: list[Sequence[int]] = [
                *_balanced(_bounds(exact, lengths, self._ratio).tolist(), budget=budget, num_replicas=num_replicas)
            ]
        else:

            def steps(ratio: float, shards: int) -> int:
                return math.ceil(
                    len(_cut(_bounds(exact, lengths, ratio).tolist(), budget, width, shards)) / num_replicas
                )

            fewest = steps(1.0, 1)
            self._ratio = next(ratio for ratio in RATIOS if steps(ratio, 1) <= fewest * (1 + TOLERANCE))
            shards = max(MIN_SHARDS, fewest * num_replicas // SHARD)
            while shards > 1 and steps(self._ratio, shards) > fewest * (1 + 2 * TOLERANCE):
                shards //= 2
            num_batches = steps(self._ratio, shards) * num_replicas
            self._slots = [
                *_even_cuts(_bounds(exact, lengths, self._ratio).tolist(), budget, num_batches, width, shards)
            ]
        self.num_steps = len(self._slots) // num_replicas
        self._num_replicas = num_replicas

    def draw(self, rows: Tensor, generator: torch.Generator) -> list[list[list[int]]]:
        """An epoch's batches: for each step one of each process, which may be empty where rows are few.

        Batches of similar cost share a step. So over an epoch the processes wait for each other by no more than the
        cost of one batch in total.

        Args:
            rows: the rows of this epoch, (R,).
            generator: draws places and the order of steps.
        """
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        order = shuffled[length_buckets(self._lengths[shuffled], self._ratio).argsort(stable=True, descending=True)]
        row_of, length_of = order.tolist(), self._lengths[order].tolist()
        costs = [self._cost([length_of[slot] for slot in slots]) for slots in self._slots]
        by_cost = sorted(range(len(costs)), key=lambda k: -costs[k])
        batches = [[row_of[slot] for slot in self._slots[k]] for k in by_cost]
        steps = [batches[k : k + self._num_replicas] for k in range(0, len(batches), self._num_replicas)]
        return [steps[k] for k in torch.randperm(len(steps), generator=generator).tolist()]

    def _cost(self, lengths: Sequence[int]) -> int:
        if self._packing or not lengths:
            return sum(lengths)
        return self._width(max(lengths)) * len(lengths)


def in_order(
    rows: Sequence[int], lengths: Sequence[int], *, budget: int, packing: bool, width: Callable[[int], int]
) -> list[list[int]]:
    """Cut rows into batches without changing their order, each as large as the budget allows.

    Args:
        rows: in their order.
        lengths: of all rows, indexed by row.
        budget: see `BatchPlan`.
        packing: see `BatchPlan`.
        width: see `BatchPlan`.
    """
    batches: list[list[int]] = []
    total = longest = 0
    for row in rows:
        length = int(lengths[row])
        total, longest = total + length, max(longest, length)
        if not batches or (total if packing else width(longest) * (len(batches[-1]) + 1)) > budget:
            batches.append([])
            total = longest = length
        batches[-1].append(row)
    return batches


def length_buckets(lengths: Tensor, ratio: float) -> Tensor:
    """Number the buckets that lengths fall into, by rising length, (R,).

    The upper bounds grow by `ratio`, and by at least one token; they hang on nothing else.
    """
    edges, edge = [1], 1
    while edge < int(lengths.max()):
        edge = max(edge + 1, int(edge * ratio))
        edges.append(edge)
    return torch.bucketize(lengths, torch.tensor(edges))


def _cut(falling: Sequence[int], budget: int, width: Callable[[int], int], shards: int) -> list[range]:
    """The fewest runs whose padded size is within the budget, each of every `shards`-th of the falling lengths."""
    runs = []
    for start in range(min(shards, len(falling))):
        while start < len(falling):
            end = start + shards * (budget // width(falling[start]))
            runs.append(range(start, min(end, len(falling)), shards))
            start = end
    return runs


def _even_cuts(
    falling: Sequence[int], budget: int, num_batches: int, width: Callable[[int], int], shards: int
) -> list[range]:
    """Cut into `num_batches` runs whose largest padded size is as small as can be; empty ones where rows are few."""
    low, high = width(falling[0]), budget
    while low < high:
        middle = (low + high) // 2
        if len(_cut(falling, middle, width, shards)) <= num_batches:
            high = middle
        else:
            low = middle + 1
    runs = _cut(falling, high, width, shards)
    while len(runs) < min(num_batches, len(falling)):
        # The largest that can be halved.
        k = max(range(len(runs)), key=lambda k: (len(runs[k]) > 1, width(falling[runs[k].start]) * len(runs[k])))
        middle = len(runs[k]) // 2
        runs[k : k + 1] = [runs[k][:middle], runs[k][middle:]]
    return runs + [range(0)] * (num_batches - len(runs))


def _balanced(falling: Sequence[int], *, budget: int, num_replicas: int) -> list[list[int]]:
    """The slots of each batch, for nearly the smallest number of steps for which every batch keeps the budget."""
    low = high = math.ceil(sum(falling) / (budget * num_replicas))
    stride = close = max(1, low // 1000)
    # Ends at the latest with one row a batch; the least conceivable number is hardly ever missed by much.
    while (found := _deal(falling, high * num_replicas, budget)) is None:
        low, high, stride = high + 1, high + stride, 2 * stride
    while high - low >= close:
        middle = (low + high) // 2
        dealt = _deal(falling, middle * num_replicas, budget)
        if dealt is None:
            low = middle + 1
        else:
            high, found = middle, dealt
    return found


def _deal(falling: Sequence[int], num_batches: int, budget: int) -> list[list[int]] | None:
    """Give each slot to the batch with the fewest tokens so far; None where that takes one beyond the budget."""
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    heap = [(0, k) for k in range(num_batches)]
    for slot, length in enumerate(falling):
        total, k = heap[0]
        if total + length > budget:
            return None
        batches[k].append(slot)
        heapq.heapreplace(heap, (total + length, k))
    return batches


def _bounds(falling: Tensor, lengths: Tensor, ratio: float) -> Tensor:
    """Falling lengths, each rounded up to the longest of all rows in its bucket, for any of them may be drawn there."""
    buckets = length_buckets(lengths, ratio)
    longest = torch.zeros(int(buckets.max()) + 1, dtype=torch.long).scatter_reduce(0, buckets, lengths, "amax")
    return longest[length_buckets(falling, ratio)]
