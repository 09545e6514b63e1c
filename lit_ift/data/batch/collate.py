"""Examples to a batch: padded, one in a row, or packed, several in a row; and the answers of rows, either way."""

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import ANSWER_SIDES, ROW_KINDS, EncodedRow


class Batch(TypedDict):
    """B rows padded on the right to T tokens.

    Args:
        input_ids: (B, T), int64.
        attention_mask: (B, T), int64; 1 on tokens, 0 on padding.
        labels: (B, T), int64, aligned with `input_ids`; IGNORE_INDEX off the targets.
        row_ids: B origins; empty for a dummy row.
        data_weights: (B, T), float32, aligned with `input_ids`; how much a token's loss counts. Only where a row of the
            batch has weights.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    row_ids: list[str]
    data_weights: NotRequired[Tensor]


def collate(examples: Sequence[Example], *, pad_token_id: int, pad_to_multiple_of: int | None = None) -> Batch:
    """Pad to the longest row, or to the next multiple of `pad_to_multiple_of` tokens.

    Raises:
        ValueError: there are no examples, or `pad_to_multiple_of` is below 1.
    """
    _check(examples, pad_to_multiple_of)
    length = padded_length(max(len(e.input_ids) for e in examples), pad_to_multiple_of)
    laid = _laid_out(examples, [[i] for i in range(len(examples))], length, pad_token_id)
    batch = Batch(
        input_ids=laid["input_ids"],
        attention_mask=(laid["sequence_ids"] >= 0).long(),
        labels=laid["labels"],
        row_ids=[example.row_id for example in examples],
    )
    if any(example.weights for example in examples):
        batch["data_weights"] = laid["data_weights"]
    return batch


class PackedBatch(TypedDict):
    """B examples one after the other in P rows of T positions.

    There is no attention mask: positions that restart tell a model where an example begins, and transformers looks at
    them only where no mask is given.

    Args:
        input_ids: (P, T), int64.
        position_ids: (P, T), int64; from 0 in each example, and in the padding at the end of a row.
        labels: (P, T), int64, aligned with `input_ids`; IGNORE_INDEX off the targets and on the first token of every
            example, which nothing before it predicts.
        sequence_ids: (P, T), int64; the example that a token belongs to, 0 to B-1, and -1 on padding.
        row_ids: B origins, in the order of the examples; empty for a dummy row.
        data_weights: (P, T), float32, as in `Batch`.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    sequence_ids: Tensor
    row_ids: list[str]
    data_weights: NotRequired[Tensor]


def collate_packed(
    examples: Sequence[Example],
    *,
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
    one_row: bool = False,
) -> PackedBatch:
    """Put the examples into few rows, no longer than the longest example is when padded, or all into one row.

    Rows of that length cost attention no more than padding would, whichever way it is computed. A single row has no
    padding, but only kernels for sequences of variable length skip what lies between its examples.

    Args:
        examples: of one batch; their order is kept in `sequence_ids` and `row_ids`.
        pad_token_id: fills the ends of rows.
        pad_to_multiple_of: make the rows' length a multiple of so many tokens.
        one_row: put all into one row.

    Raises:
        ValueError: there are no examples, one of them is empty, or `pad_to_multiple_of` is below 1.
    """
    _check(examples, pad_to_multiple_of)
    lengths = [len(example.input_ids) for example in examples]
    if 0 in lengths:
        raise ValueError(f"example {lengths.index(0)} has no tokens")
    length = padded_length(sum(lengths) if one_row else max(lengths), pad_to_multiple_of)
    laid = _laid_out(examples, pack(lengths, length), length, pad_token_id)
    weights = laid.pop("data_weights")
    # Nothing before the first token of an example predicts it.
    laid["labels"][laid["position_ids"] == 0] = IGNORE_INDEX
    batch: Any = {**laid, "row_ids": [example.row_id for example in examples]}
    if any(example.weights for example in examples):
        batch["data_weights"] = weights
    packed: PackedBatch = batch
    return packed


def _laid_out(
    examples: Sequence[Example], rows: Sequence[Sequence[int]], length: int, pad_token_id: int
) -> dict[str, Tensor]:
    """Examples one after the other in rows of `length` positions, by the numbers of each row's examples."""
    shape = (len(rows), length)
    laid = {
        "input_ids": torch.full(shape, pad_token_id),
        "position_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORE_INDEX),
        "sequence_ids": torch.full(shape, -1),
        "data_weights": torch.ones(shape),
    }
    for row, members in enumerate(rows):
        end = 0
        for i in members:
            example = examples[i]
            start, end = end, end + len(example.input_ids)
            laid["input_ids"][row, start:end] = torch.tensor(example.input_ids, dtype=torch.long)
            laid["position_ids"][row, start:end] = torch.arange(end - start)
            laid["labels"][row, start:end] = torch.tensor(example.labels, dtype=torch.long)
            laid["sequence_ids"][row, start:end] = i
            if example.weights is not None:
                laid["data_weights"][row, start:end] = torch.tensor(example.weights)
        laid["position_ids"][row, end:] = torch.arange(length - end)
    return laid


class FeedbackColumns(TypedDict):
    """What a batch of feedback has besides the columns of `Batch` or `PackedBatch`, whose examples are its A answers.

    The answers of a row stand one after the other, so ``chosen`` and ``rejected`` share a forward pass. ``row_ids``
    has R entries, one for each row, not A.

    Args:
        row_kinds: (R,), int64; index into ``ROW_KINDS``.
        scores: (R,), float32; `Row.score`, NaN for none.
        answer_rows: (A,), int64; the row, 0 to R-1, that an answer belongs to.
        answer_sides: (A,), int64; index into ``ANSWER_SIDES``.
        reference_logps: (A,), float32; log-probability of the answer's trained tokens under the reference policy,
            summed; only where it was computed beforehand.
    """

    row_kinds: Tensor
    scores: Tensor
    answer_rows: Tensor
    answer_sides: Tensor
    reference_logps: NotRequired[Tensor]


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


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into rows of at most `capacity` by first-fit decreasing.

    At most 11/9 of the smallest possible number of rows, plus one, is needed.

    Returns:
        The items of each row in ascending order; rows ordered by their first item.

    Raises:
        ValueError: an item is longer than `capacity`.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        if lengths[item] > capacity:
            raise ValueError(f"item {item} of length {lengths[item]} does not fit into {capacity}")
        row = next((row for row, space in enumerate(free) if space >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(capacity)
        rows[row].append(item)
        free[row] -= lengths[item]
    return sorted(sorted(row) for row in rows)


def padded_length(length: int, multiple_of: int | None) -> int:
    """`length`, rounded up to a multiple."""
    multiple = multiple_of or 1
    return -(-length // multiple) * multiple


def _check(examples: Sequence[Example], pad_to_multiple_of: int | None) -> None:
    if not examples:
        raise ValueError("collate needs at least one example, got none")
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of} must be at least 1")
