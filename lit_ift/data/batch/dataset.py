"""Encoded rows by their indices, with what belongs to them beyond what is stored."""

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import padded_length
from lit_ift.data.requirements import RowParts
from lit_ift.data.rows import EncodedRow
from lit_ift.data.store import StoredRows

MISMATCHED: Final = "mismatched"
"""Side of the answer to another row's prompt."""


class EncodedDataset(Dataset[list[EncodedRow]]):
    """Rows by lists of indices, as `LengthGroupedBatchSampler` yields them.

    A negative index ``~i`` gives row ``i`` without targets, and without a row id.

    Answers are numbered row by row, and within a row in the order of its sides.

    Args:
        rows: the encoded rows.
        partners: for each row the number of another row's answer, or -1, (R,). A row with a partner gets a further
            side ``mismatched``: its own prompt with that answer. It is made when the row is asked for, from the stored
            rows alone. Its prompt loses its start where it would be too long.
        max_length: most tokens of such a side.

    Attributes:
        parts: of a mixed objective, that the rows go to.

    Raises:
        ValueError: there are partners, but no `max_length`.
    """

    def __init__(
        self, rows: StoredRows, *, partners: npt.NDArray[np.int64] | None = None, max_length: int | None = None
    ) -> None:
        self.rows = rows
        self.partners = np.full(len(rows), -1, dtype=np.int64) if partners is None else partners
        self.max_length = max_length
        self.parts: RowParts | None = None
        self.side_counts = rows.side_counts
        """Answers of each row."""
        self._side_lengths = rows.side_lengths
        self._stored_offsets = first_answers(rows)
        if (self.partners >= 0).any():
            self._add_mismatched()
        self.answer_offsets: npt.NDArray[np.int64] = np.cumsum(self.side_counts) - self.side_counts
        """The number of each row's first answer."""
        self.num_answers = int(self.side_counts.sum())
        self.lengths: list[int] = (
            np.add.reduceat(self._side_lengths, self.answer_offsets).tolist() if len(self.answer_offsets) else []
        )
        """Tokens of each row, all sides together."""
        self._reference_logps: npt.NDArray[np.float32] | None = None

    def _add_mismatched(self) -> None:
        if self.max_length is None:
            raise ValueError("mismatched sides need a max_length")
        mine = np.flatnonzero(self.partners >= 0)
        before = self.rows.first_targets
        answers = (self.rows.side_lengths - before)[self.partners[mine]]
        kept = _kept_of_prompt(before[self._stored_offsets[mine]], answers, self.max_length)
        lengths = kept + np.minimum(answers, self.max_length - kept)
        self._side_lengths = np.insert(self._side_lengths, np.cumsum(self.side_counts)[mine], lengths)
        self.side_counts = self.side_counts + (self.partners >= 0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> list[EncodedRow]:
        return [self._row(i) if i >= 0 else self._row(~i).as_dummy() for i in indices]

    def _row(self, index: int) -> EncodedRow:
        row = self.rows[index]
        partner = int(self.partners[index])
        if partner < 0:
            return row
        assert self.max_length is not None
        other = int(np.searchsorted(self._stored_offsets, partner, side="right")) - 1
        answer = list(self.rows[other].sides.values())[partner - int(self._stored_offsets[other])]
        extra = mismatched_example(next(iter(row.sides.values())), answer, self.max_length)
        return replace(row, sides={**row.sides, MISMATCHED: extra})

    def longest_side(self) -> tuple[int, int]:
        """The first row with the longest answer, and the tokens of that answer with its prompt.

        Raises:
            ValueError: there are no rows.
        """
        side = int(self._side_lengths.argmax())
        row = int(np.searchsorted(self.answer_offsets, side, side="right")) - 1
        return row, int(self._side_lengths[side])

    def padded_lengths(self, pad_to_multiple_of: int | None) -> list[int]:
        """What each row counts for in a padded batch, so that n of them never take more than n times the largest.

        All answers of a batch are padded to the longest one, whichever row it is of. So every row counts as if it had
        the most answers that any row has, each as long as its own longest.
        """
        if not len(self):
            return []
        longest = np.maximum.reduceat(self._side_lengths, self.answer_offsets)
        most = int(self.side_counts.max())
        return [most * padded_length(length, pad_to_multiple_of) for length in longest.tolist()]

    @property
    def reference_logps(self) -> npt.NDArray[np.float32] | None:
        """Log-probability of each answer under the reference policy, summed over its targets, (`num_answers`,).

        It may be set at any time: loaders that exist already add it to all batches from then on.

        Raises:
            ValueError: when set to another shape, or to values that are not finite.
        """
        return self._reference_logps

    @reference_logps.setter
    def reference_logps(self, values: npt.NDArray[np.float32] | None) -> None:
        if values is not None:
            values = np.asarray(values, dtype=np.float32)
            if values.shape != (self.num_answers,):
                raise ValueError(f"reference_logps must have shape ({self.num_answers},), but has {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"reference_logps of answer {int(np.isfinite(values).argmin())} is not finite")
        self._reference_logps = values

    def reference_logps_of(self, indices: list[int]) -> list[Tensor] | None:
        """Those of the answers of each of the rows, float32, 0 for a dummy; None where there are none."""
        if self._reference_logps is None:
            return None
        found = []
        for index in indices:
            row = index if index >= 0 else ~index
            start = int(self.answer_offsets[row])
            values = torch.from_numpy(self._reference_logps[start : start + int(self.side_counts[row])].copy())
            found.append(values if index >= 0 else torch.zeros_like(values))
        return found

    @property
    def training_digest(self) -> str:
        """SHA-256 of what is trained on, whatever the rows are called. Looks at every token."""
        return self.rows.training_digest

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 of ids, kinds, tokens and targets of all rows, mismatched sides included."""
        digest = hashlib.sha256(self.rows.content_digest.encode())
        if (self.partners >= 0).any():
            digest.update(f"mismatched answers up to {self.max_length}".encode() + self.partners.tobytes())
        return digest.hexdigest()


def first_answers(rows: StoredRows) -> npt.NDArray[np.int64]:
    """The number of each row's first answer among all answers of the rows, (R,)."""
    offsets: npt.NDArray[np.int64] = np.cumsum(rows.side_counts) - rows.side_counts
    return offsets


def mismatched_example(row: Example, other: Example, max_length: int) -> Example:
    """The prompt of `row`, which is all before its first target, with the answer of `other`.

    It loses the start of its prompt, but for one token, to fit `max_length`, and then the end of the answer.
    """
    start = _first_target(other)
    ids, labels = other.input_ids[start:], other.labels[start:]
    prompt = row.input_ids[: _first_target(row)]
    kept = int(_kept_of_prompt(np.array(len(prompt)), np.array(len(ids)), max_length))
    prompt = prompt[len(prompt) - kept :]
    return Example(
        input_ids=[*prompt, *ids][:max_length],
        labels=[*[IGNORE_INDEX] * kept, *labels][:max_length],
        row_id=row.row_id,
    )


def _kept_of_prompt(
    prompts: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], max_length: int
) -> npt.NDArray[np.int64]:
    """How many tokens prompts of such lengths keep before answers of such lengths."""
    kept: npt.NDArray[np.int64] = np.maximum(np.minimum(prompts, 1), np.minimum(prompts, max_length - answers))
    return kept


def _first_target(example: Example) -> int:
    return next((k for k, label in enumerate(example.labels) if label != IGNORE_INDEX), len(example.labels))
