"""Batches of rows, the same on every machine for the same seed, epoch and number of processes."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Final, cast

import torch
from torch import Tensor, distributed
from torch.utils.data import DistributedSampler, SequentialSampler

from lit_ift.data.batch.collate import padded_length
from lit_ift.data.batch.source_weights import WeightedRows
from lit_ift.data.batch.token_budget import BatchPlan, in_order
from lit_ift.errors import UserError

MEGABATCH: Final = 50
"""Global batches whose rows are sorted by length together: enough to save padding, few enough to stay random."""

MIN_MEGABATCHES: Final = 4
"""Megabatches that small data is cut into at least; sorting it as one would give the same batches in every epoch."""


class LengthGroupedBatchSampler(DistributedSampler[Any]):
    """Yields this rank's batches as lists of dataset indices.

    For ``DataLoader(dataset, sampler=sampler, batch_size=None)``. It is a `DistributedSampler` so that Lightning
    neither replaces it nor forgets to call `set_epoch`. Over all ranks every row comes exactly once an epoch, or as
    often as its group's weight says. Every rank yields equally many batches, the same number in every epoch: where a
    step has no row for a rank, that rank's batch is one dummy, ``~i`` (negative) for a row ``i``, which the dataset
    returns without targets.

    Batches have `batch_size` rows, or as many as `tokens_per_batch` allows. The latter group rows by length, or with
    `packing` are samples of all lengths; see `BatchPlan`.

    Args:
        lengths: tokens of each row.
        batch_size: rows a rank and batch.
        accumulate: with `batch_size`: batches a rank and optimizer step. Which rows a step has then hangs on
            `batch_size` x `accumulate` x `num_replicas` alone, not on how it is split into them.
        tokens_per_batch: input tokens a rank and batch, instead; padding counts unless rows are packed.
        packing: with `tokens_per_batch`: the batches are packed, so that padding does not count.
        pad_to_multiple_of: with `tokens_per_batch`: what batches are padded to.
        shuffle: a new order each epoch; otherwise always the same one.
        group_by_length: batches of similar length; without `shuffle` the longest rows come first. None means True,
            but for shuffled batches with `tokens_per_batch`, where `packing` decides.
        groups: number of rows and weight of each group, in the order of the rows; see `WeightedRows`. None gives
            every row weight 1.
        parts: part of a mixed objective that each row goes to, with `batch_size` and `shuffle`. An optimizer step then
            has rows of one part alone, and the parts take turns in proportion to their steps, so that parts of 6 and 2
            steps give AAAB AAAB. Only the last step of a part may be short; its batches are filled up with dummies.
        in_every_step: with `parts`: an optimizer step has rows of every part instead, as nearly in proportion as can
            be, and all steps are equally long to one row.
        seed: of the shuffling.
        num_replicas: processes that share the rows; by default those of torch.distributed, or 1.
        rank: which of them this is.

    Raises:
        UserError: a row is longer than `tokens_per_batch`, or a weight is unfit.
        ValueError: not exactly one of `batch_size` and `tokens_per_batch` is given, or an option has no effect.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int | None = None,
        accumulate: int = 1,
        tokens_per_batch: int | None = None,
        packing: bool = False,
        pad_to_multiple_of: int | None = None,
        shuffle: bool = True,
        group_by_length: bool | None = None,
        groups: Sequence[tuple[int, float]] | None = None,
        parts: Sequence[int] | None = None,
        in_every_step: bool = False,
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
        if (batch_size is None) == (tokens_per_batch is None):
            raise ValueError("exactly one of batch_size and tokens_per_batch is needed")
        if groups is not None and not shuffle:
            raise ValueError("groups need shuffle: without it every row comes once")
        if parts is not None and not (shuffle and batch_size is not None):
            raise ValueError("parts need shuffle and batch_size")
        if in_every_step and parts is None:
            raise ValueError("in_every_step needs parts")
        decided = not packing if tokens_per_batch is not None and shuffle else None
        if None not in (decided, group_by_length) and decided != group_by_length:
            raise ValueError(f"group_by_length={group_by_length} has no effect with tokens_per_batch, {packing=}")
        self.lengths = lengths
        self.batch_size = batch_size
        self.accumulate = accumulate if batch_size is not None and shuffle else 1  # Else it has no part in the order.
        self.tokens_per_batch = tokens_per_batch
        self.packing = packing if tokens_per_batch is not None else None
        self.pad_to_multiple_of = pad_to_multiple_of if tokens_per_batch is not None and not packing else None
        self.group_by_length = decided if decided is not None else group_by_length in (None, True)
        self.groups = None if groups is None else [(rows, float(weight)) for rows, weight in groups]
        self.parts = None if parts is None else torch.as_tensor(parts, dtype=torch.long)
        self.in_every_step = in_every_step
        self.epoch_of: Callable[[int], int] | None = None
        self._start = 0
        self._width = partial(padded_length, multiple_of=self.pad_to_multiple_of)
        self._lengths = torch.as_tensor(lengths, dtype=torch.long)
        self._rows = WeightedRows(self._lengths, self.groups or [(len(lengths), 1.0)], _generator(f"{seed}/groups"))
        if in_every_step:
            self._steps()  # Raises in every epoch or in none, so do it before training.
        if tokens_per_batch is not None and len(lengths):
            longest = int(self._lengths.argmax())
            if self._width(int(lengths[longest])) > tokens_per_batch:
                raise UserError(
                    f"Row {longest} (counted from 0) has {int(lengths[longest])} tokens"
                    + (f", padded to a multiple of {pad_to_multiple_of}" if self.pad_to_multiple_of else "")
                    + f", which is more than data.tokens_per_batch={tokens_per_batch}. Raise tokens_per_batch, or "
                    "lower data.max_length."
                )

    @cached_property
    def lengths_digest(self) -> str:
        """A short hash of all lengths; computed once, for every checkpoint holds it."""
        return _digest(self._lengths)

    @cached_property
    def parts_digest(self) -> str | None:
        """A short hash of all rows' parts, if there are any, and of how steps have them."""
        return None if self.parts is None else _digest(self.parts) + ("/every step" if self.in_every_step else "")

    @property
    def order_options(self) -> dict[str, Any]:
        """What the order hangs on, as plain values; None for what has no part in it."""
        return {
            "world_size": self.num_replicas,
            "batch_size": self.batch_size,
            "accumulate": None if self.accumulate == 1 else self.accumulate,
            "tokens_per_batch": self.tokens_per_batch,
            "packing": self.packing,
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "seed": self.seed,
            "group_by_length": self.group_by_length,
            "weights": None if self.groups is None else [list(group) for group in self.groups],
            "parts": self.parts_digest,
            "rows": len(self.lengths),
            "lengths": self.lengths_digest,
        }

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
        if self.batch_size is not None:
            together = self.batch_size * self.num_replicas
            if self.in_every_step:
                return self.accumulate * math.ceil(len(self._rows) / (together * self.accumulate))
            if self.parts is not None:  # Every epoch has equally many rows of each.
                counts: list[int] = torch.bincount(self.parts[self._rows.of_epoch(0)]).tolist()
                return self.accumulate * sum(math.ceil(count / (together * self.accumulate)) for count in counts)
            return math.ceil(len(self._rows) / together)
        if not len(self.lengths):
            return 0
        return self._plan.num_steps if self.shuffle else len(self._steps_in_order)

    def __iter__(self) -> Iterator[list[int]]:
        start, self._start = self._start, 0
        for step in self._steps()[start:]:
            batch = step[self.rank] if self.rank < len(step) else []
            yield batch or [~min((row for batch in step for row in batch), key=lambda row: int(self.lengths[row]))]

    def _steps(self) -> list[list[list[int]]]:
        """For each step of the epoch the batches of the ranks; empty or missing where there are no rows for one."""
        if not len(self.lengths):
            return []
        key = f"{self.seed}/{self.epoch}"
        rows = self._rows.of_epoch(self.epoch if self.shuffle else 0)
        if self.parts is not None:
            return self._steps_by_part(rows, self.parts[rows], key)
        if self.batch_size is not None:
            together = self.batch_size * self.num_replicas
            of_steps = global_batches(
                rows.tolist(),
                self.lengths,
                global_batch_size=together * self.accumulate,
                shuffle_key=key if self.shuffle else None,
                group_by_length=self.group_by_length,
            )
            batches = [step[start : start + together] for step in of_steps for start in range(0, len(step), together)]
            return [[batch[rank :: self.num_replicas] for rank in range(self.num_replicas)] for batch in batches]
        return self._plan.draw(rows, _generator(key)) if self.shuffle else self._steps_in_order

    def _steps_by_part(self, rows: Tensor, parts: Tensor, key: str) -> list[list[list[int]]]:
        """As `_steps`, an optimizer step having rows of one part alone, or of every one."""
        assert self.batch_size is not None
        together = self.batch_size * self.num_replicas
        size = together * self.accumulate
        arranged = self._in_proportion if self.in_every_step else self._taking_turns
        ranks = range(self.num_replicas)
        found = []
        for step in arranged(rows, parts, key, size):
            stand_in = ~min(step, key=lambda row: int(self.lengths[row]))
            # As many batches as any other step, or the windows of accumulation would no longer begin with a step.
            for start in range(0, size, together):
                batch = step[start : start + together]
                found.append([batch[rank :: self.num_replicas] if batch else [stand_in] for rank in ranks])
        return found

    def _taking_turns(self, rows: Tensor, parts: Tensor, key: str, size: int) -> list[list[int]]:
        turns: list[tuple[float, int, list[int]]] = []
        for part in sorted(set(parts.tolist())):
            steps = global_batches(
                rows[parts == part].tolist(),
                self.lengths,
                global_batch_size=size,
                shuffle_key=f"{key}/{part}",
                group_by_length=self.group_by_length,
            )
            # Step k of n ends its share of the epoch at k/n, so that the last one, which may be short, comes last.
            turns += [((k + 1) / len(steps), -len(steps), step) for k, step in enumerate(steps)]
        return [step for _, _, step in sorted(turns, key=lambda turn: turn[:2])]

    def _in_proportion(self, rows: Tensor, parts: Tensor, key: str, size: int) -> list[list[int]]:
        # Row j of a part's n stands in the middle of its n-th of the epoch, so that any stretch has all in proportion.
        placed: list[tuple[float, int, int]] = []
        numbers = sorted(set(parts.tolist()))
        for part in numbers:
            mine = rows[parts == part].tolist()
            order = torch.randperm(len(mine), generator=_generator(f"{key}/{part}")).tolist()
            placed += [((j + 0.5) / len(mine), part, mine[k]) for j, k in enumerate(order)]
        placed.sort()
        count = math.ceil(len(placed) / size)
        found = []
        for k in range(count):
            step = placed[k * len(placed) // count : (k + 1) * len(placed) // count]
            lacking = set(numbers) - {part for _, part, _ in step}
            if lacking:
                few = min(lacking)
                raise UserError(
                    f"Part {few} (counted from 0) has {int((parts == few).sum())} of {len(placed)} training rows, too "
                    f"few for each of {count} optimizer steps to have one, as model.schedule needs. Raise "
                    "data.batch_size, trainer.accumulate_grad_batches or the weight of the part's sources."
                )
            drawn = [row for _, _, row in step]
            found.append(sorted(drawn, key=lambda row: -self.lengths[row]) if self.group_by_length else drawn)
        return found

    @cached_property
    def _plan(self) -> BatchPlan:
        assert self.tokens_per_batch is not None
        return BatchPlan(
            self._rows.planned_lengths,
            self._lengths,
            budget=self.tokens_per_batch,
            num_replicas=self.num_replicas,
            packing=bool(self.packing),
            width=self._width,
        )

    @cached_property
    def _steps_in_order(self) -> list[list[list[int]]]:
        assert self.tokens_per_batch is not None
        rows = list(range(len(self.lengths)))
        if self.group_by_length:
            rows.sort(key=lambda row: -int(self.lengths[row]))
        batches = in_order(
            rows, self.lengths, budget=self.tokens_per_batch, packing=bool(self.packing), width=self._width
        )
        return [batches[k : k + self.num_replicas] for k in range(0, len(batches), self.num_replicas)]


class SequentialBatchSampler(LengthGroupedBatchSampler, SequentialSampler):  # type: ignore[misc]
    """The same without shuffling. Lightning leaves a `SequentialSampler` alone under ``overfit_batches``."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        packing: bool = False,
        pad_to_multiple_of: int | None = None,
        group_by_length: bool = True,
    ) -> None:
        LengthGroupedBatchSampler.__init__(
            self,
            lengths,
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
            packing=packing,
            pad_to_multiple_of=pad_to_multiple_of,
            shuffle=False,
            group_by_length=group_by_length,
        )


def global_batches(
    rows: Sequence[int],
    lengths: Sequence[int],
    *,
    global_batch_size: int,
    shuffle_key: str | None,
    group_by_length: bool,
) -> list[list[int]]:
    """Cut rows into batches that the ranks then share by turns; only the last one may be short.

    A batch is sorted by length if `group_by_length`, so that all ranks work equally long.

    Args:
        rows: of this epoch.
        lengths: tokens of all rows, indexed by row.
        global_batch_size: rows a batch over all ranks and everything that they accumulate.
        shuffle_key: seeds the order; None keeps the rows in theirs.
        group_by_length: sort by falling length, within shuffled megabatches if there is a `shuffle_key`.
    """
    order = list(rows)
    megabatch = len(order)
    generator = _generator(shuffle_key or "")
    if shuffle_key is not None:
        order = [order[k] for k in torch.randperm(len(order), generator=generator).tolist()]
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


def _digest(numbers: Tensor) -> str:
    return hashlib.sha256(repr(numbers.tolist()).encode()).hexdigest()[:16]


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
