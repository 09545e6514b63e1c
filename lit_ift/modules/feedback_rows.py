"""What a module sees of a batch of feedback: rows of any kind, whose answers went through one forward pass.

Shapes: R rows with A answers, of which a pair has two; n of them are on one side.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lit_ift.data.rows import ANSWER_SIDES, ROW_KINDS, RowKind
from lit_ift.losses.packing import count_examples
from lit_ift.modules.one_sweep import Portion
from lit_ift.modules.packed import is_packed
from lit_ift.modules.stepping import Batch

FIRST_SIDES: Final = [ANSWER_SIDES.index("answer"), ANSWER_SIDES.index("chosen")]
"""What the first answer of a row can be."""


def is_feedback(batch: Batch) -> bool:
    """Whether the batch says which answer belongs to which row; otherwise each of its examples is a row."""
    return "answer_rows" in batch


@dataclass(frozen=True)
class FeedbackRows:
    """Which answers the rows of a batch have.

    Attributes:
        kinds: index into ``ROW_KINDS``, (R,) int64.
        scores: worth as in `Row.score`, NaN where a row has none, (R,) float32.
        rows: row that each answer belongs to, (A,) int64.
        sides: index into ``ANSWER_SIDES``, (A,) int64.
    """

    kinds: Tensor
    scores: Tensor
    rows: Tensor
    sides: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "FeedbackRows":
        """Read from a batch; one without feedback has an instruction row for each of its examples."""
        if is_feedback(batch):
            return cls(batch["row_kinds"], batch["scores"], batch["answer_rows"], batch["answer_sides"])
        device = batch["input_ids"].device
        num_answers = count_examples(batch["sequence_ids"]) if is_packed(batch) else len(batch["input_ids"])
        kinds = torch.full((num_answers,), ROW_KINDS.index("instruction"), device=device)
        sides = torch.full((num_answers,), ANSWER_SIDES.index("answer"), device=device)
        scores = torch.full((num_answers,), torch.nan, device=device)
        return cls(kinds, scores, torch.arange(num_answers, device=device), sides)

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.kinds)

    def portion(self, some: Portion) -> "FeedbackRows":
        """Consecutive rows, numbered from 0, with their answers; the answers of a batch stand row after row."""
        first = some.rows.start or 0
        return FeedbackRows(
            self.kinds[some.rows], self.scores[some.rows], self.rows[some.examples] - first, self.sides[some.examples]
        )

    def kind(self, *kinds: RowKind) -> Tensor:
        """Rows of these kinds, (R,) bool."""
        return torch.isin(self.kinds, torch.tensor([ROW_KINDS.index(k) for k in kinds], device=self.kinds.device))

    def answers(self, side: str) -> Tensor:
        """The answers on a side, in the order of their rows, (n,) int64 indices into the A answers."""
        return (self.sides == ANSWER_SIDES.index(side)).nonzero()[:, 0]

    def mean(self, values: Tensor, answers: Tensor) -> Tensor:
        """Mean of values over the answers of each row, (n,) and their indices -> (R,); NaN for a row without any."""
        of_answers = self.rows[answers]
        sums = values.new_zeros(len(self)).index_add(0, of_answers, values)
        return sums / torch.bincount(of_answers, minlength=len(self))


def first_answers(batch: Batch) -> Batch:
    """The first answer of each row, as a batch of R examples; a batch without feedback as it is. None is packed.

    Only ``input_ids``, ``attention_mask``, ``labels`` and ``row_ids`` are kept.
    """
    if not is_feedback(batch):
        return batch
    first = torch.isin(batch["answer_sides"], torch.tensor(FIRST_SIDES, device=batch["answer_sides"].device))
    tensors = {name: batch[name][first] for name in ("input_ids", "attention_mask", "labels")}
    return {**tensors, "row_ids": batch["row_ids"]}
