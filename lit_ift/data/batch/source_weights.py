"""How often the rows of each source come in an epoch."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lit_ift.data.batch.token_budget import length_buckets
from lit_ift.errors import UserError

_RATIO: Final = 1.25
"""Width of the length buckets that a fraction of the rows is drawn from evenly."""


class WeightedRows:
    """The rows of each epoch: those of a group with weight 2 come twice, with weight 0.5 another half each epoch.

    Every epoch has equally many rows of each group, and nearly the same lengths. In any number of epochs E, the
    rows of a group that draws c of its m rows an epoch come floor(E·c/m) or ceil(E·c/m) times.

    Args:
        lengths: tokens of each row, (n,).
        groups: number of rows and weight of each group, in the order of the rows.
        generator: decides which rows of similar length come together.

    Raises:
        UserError: a weight is not a positive number, or so small that no row of its group would ever come.
        ValueError: the groups have another number of rows.
    """

    def __init__(self, lengths: Tensor, groups: Sequence[tuple[int, float]], generator: torch.Generator) -> None:
        if sum(rows for rows, _ in groups) != len(lengths):
            raise ValueError(f"groups of {[rows for rows, _ in groups]} rows do not fit {len(lengths)} rows")
        self._whole: list[Tensor] = []
        self._pools: list[tuple[Tensor, int]] = []
        planned: list[Tensor] = []
        first = 0
        for group, (rows, weight) in enumerate(groups):
            members = torch.arange(first, first + rows)
            first += rows
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"The weight {weight} of source {group} is not a positive number.")
            copies = int(weight)
            picks = round((weight - copies) * rows)
            if rows and copies + picks == 0:
                raise UserError(
                    f"With weight {weight}, source {group} would give none of its {rows} rows in an epoch. "
                    "Raise the weight, or leave the source out."
                )
            self._whole += [members] * copies
            planned += [lengths[members]] * copies
            if picks:
                shuffled = members[torch.randperm(rows, generator=generator)]
                pool = shuffled[length_buckets(lengths[shuffled], _RATIO).argsort(stable=True, descending=True)]
                self._pools.append((pool, picks))
                # Pick i of any epoch stands no earlier in the pool than it does in the first.
                longest_from = lengths[pool].flip(0).cummax(0).values.flip(0)
                planned.append(longest_from[_picked(rows, picks, epoch=0)])
        self.planned_lengths = torch.cat(planned)
        """Upper bound of the lengths of any epoch's rows, once both are sorted, (R,)."""

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self.planned_lengths)

    def of_epoch(self, epoch: int) -> Tensor:
        """The rows that come in an epoch, some more than once, (R,)."""
        picks = [pool[_picked(len(pool), count, epoch)] for pool, count in self._pools]
        return torch.cat([*self._whole, *picks])


def _picked(size: int, count: int, epoch: int) -> Tensor:
    """`count` evenly spaced places of `size`; they move on so that all places come equally often, (count,)."""
    offset = epoch * count % size
    return (torch.arange(count) * size + offset) // count
