"""What the model predicted for the training rows before, kept so that IFT needs one forward pass a step.

Shapes: B examples, N trained positions of a batch, R rows and K trained positions of a split.
"""

from collections.abc import Sequence
from copy import copy
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_ift.errors import UserError

UNKNOWN: Final = -1
"""Stands for a token that was not predicted yet."""

Tokens = npt.NDArray[np.int32]


class KeptPredictions:
    """A predicted token for each trained position of the rows of a split.

    Args:
        row_ids: of the rows, in their order; (R,).
        counts: trained positions of each row, (R,).

    Attributes:
        row_ids: as given.
        tokens: predicted token ids, row by row, `UNKNOWN` where there is none, (K,).

    Raises:
        UserError: two rows have the same id.
    """

    def __init__(self, row_ids: Sequence[str], counts: npt.NDArray[np.int64]) -> None:
        self.row_ids = row_ids
        self._row_of = {row_id: row for row, row_id in enumerate(row_ids)}
        if len(self._row_of) < len(row_ids):
            twice = next(row_id for row, row_id in enumerate(row_ids) if self._row_of[row_id] != row)
            raise UserError(
                f"model.reuse_predictions tells rows apart by their ids, but two training rows are {twice}. Name each "
                "file once in data.train, with a weight where its rows are to come more often."
            )
        self._ends = np.concatenate([[0], np.cumsum(counts)])
        self.tokens: Tokens = np.full(int(self._ends[-1]), UNKNOWN, dtype=np.int32)

    def blank(self) -> "KeptPredictions":
        """None yet, for the same rows."""
        other = copy(self)
        other.tokens = np.full_like(self.tokens, UNKNOWN)
        return other

    def unknown_rows(self) -> list[int]:
        """Rows that have a trained position without a prediction."""
        positions = np.flatnonzero(self.tokens == UNKNOWN)
        rows: list[int] = np.unique(np.searchsorted(self._ends, positions, side="right") - 1).tolist()
        return rows

    def span(self, row: int) -> slice:
        """Where the tokens of a row are."""
        return slice(int(self._ends[row]), int(self._ends[row + 1]))

    def of(self, row_ids: Sequence[str]) -> Tensor:
        """The predictions for a batch, example by example, (N,) int64.

        Args:
            row_ids: of the batch's examples; empty for a dummy, which has no trained position.
        """
        found = [self.tokens[self.span(self._row_of[row_id])] for row_id in row_ids if row_id]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *found]).astype(np.int64))

    def keep(self, row_ids: Sequence[str], predictions: Tensor) -> None:
        """Take what was predicted for a batch, in the order of `of`, (N,)."""
        tokens, start = predictions.cpu().numpy(), 0
        for row_id in filter(None, row_ids):
            span = self.span(self._row_of[row_id])
            end = start + span.stop - span.start
            self.tokens[span] = tokens[start:end]
            start = end
