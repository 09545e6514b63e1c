"""Rows with any number of answers to a batch: the answers are its examples, and columns say whose they are."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_ift.data.batch.collate import Batch, FeedbackColumns, PackedBatch, collate, collate_packed
from lit_ift.data.rows import ANSWER_SIDES, ROW_KINDS, EncodedRow


class FeedbackBatch(Batch, FeedbackColumns):
    """R rows with A answers, padded; ``row_ids`` has R entries."""


class PackedFeedbackBatch(PackedBatch, FeedbackColumns):
    """R rows with A answers, packed; ``row_ids`` has R entries, ``sequence_ids`` are 0 to A-1."""


def collate_feedback(
    rows: Sequence[EncodedRow],
    *,
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
    packing: bool = False,
    one_row: bool = False,
    reference_logps: Sequence[Tensor] | None = None,
) -> FeedbackBatch | PackedFeedbackBatch:
    """Flatten the answers row by row, side by side, and collate them.

    Args:
        rows: of one batch.
        pad_token_id: fills the ends.
        pad_to_multiple_of: make lengths a multiple of so many tokens.
        packing: several answers in a row, see `collate_packed`.
        one_row: with `packing`: all of them in one.
        reference_logps: for each row those of its answers; None where there are none.

    Raises:
        ValueError: there are no rows, or `reference_logps` has other sizes than they.
    """
    examples = [example for row in rows for example in row.sides.values()]
    counts = [len(row.sides) for row in rows]
    given: Any = {"pad_token_id": pad_token_id, "pad_to_multiple_of": pad_to_multiple_of}
    batch: Any = collate_packed(examples, **given, one_row=one_row) if packing else collate(examples, **given)
    columns = FeedbackColumns(
        row_kinds=torch.tensor([ROW_KINDS.index(row.kind) for row in rows]),
        scores=torch.tensor([math.nan if row.score is None else row.score for row in rows], dtype=torch.float32),
        answer_rows=torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),
        answer_sides=torch.tensor([ANSWER_SIDES.index(side) for row in rows for side in row.sides]),
    )
    if reference_logps is not None:
        if [tuple(values.shape) for values in reference_logps] != [(count,) for count in counts]:
            shapes = [tuple(values.shape) for values in reference_logps]
            raise ValueError(f"reference_logps has shapes {shapes}, but the rows have {counts} answers")
        columns["reference_logps"] = torch.cat(list(reference_logps)).float()
    batch |= {**columns, "row_ids": [row.row_id for row in rows]}
    made: FeedbackBatch | PackedFeedbackBatch = batch
    return made
