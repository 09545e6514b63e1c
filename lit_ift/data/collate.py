"""Examples to a padded batch."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import Example


class Batch(TypedDict):
    """B rows padded on the right to T tokens.

    Args:
        input_ids: (B, T), int64.
        attention_mask: (B, T), int64; 1 on tokens, 0 on padding.
        labels: (B, T), int64, aligned with `input_ids`; IGNORE_INDEX off the targets.
        row_ids: B origins; empty for a dummy row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    row_ids: list[str]


def collate(examples: Sequence[Example], *, pad_token_id: int, pad_to_multiple_of: int | None = None) -> Batch:
    """Pad to the longest row, or to the next multiple of `pad_to_multiple_of` tokens.

    Raises:
        ValueError: there are no examples, or `pad_to_multiple_of` is below 1.
    """
    if not examples:
        raise ValueError("collate needs at least one example, got none")
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of} must be at least 1")
    multiple = pad_to_multiple_of or 1
    longest = max(len(example.input_ids) for example in examples)
    length = -(-longest // multiple) * multiple

    shape = (len(examples), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    for row, example in enumerate(examples):
        end = len(example.input_ids)
        input_ids[row, :end] = torch.tensor(example.input_ids, dtype=torch.long)
        attention_mask[row, :end] = 1
        labels[row, :end] = torch.tensor(example.labels, dtype=torch.long)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        row_ids=[example.row_id for example in examples],
    )
