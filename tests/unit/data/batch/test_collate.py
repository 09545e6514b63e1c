"""Padding: on the right, masked by position."""

import pytest
import torch

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate

LONG = Example([1, 2, 3], [IGNORE_INDEX, 2, 3], "f:1")
SHORT = Example([4, 3], [IGNORE_INDEX, 3], "f:2")


def test_pads_right_and_keeps_the_label_of_a_token_that_equals_padding() -> None:
    batch = collate([SHORT, LONG], pad_token_id=3)
    assert batch["input_ids"].tolist() == [[4, 3, 3], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 3, IGNORE_INDEX], [IGNORE_INDEX, 2, 3]]
    assert batch["row_ids"] == ["f:2", "f:1"]
    assert {batch[key].dtype for key in ("input_ids", "attention_mask", "labels")} == {torch.long}


@pytest.mark.parametrize(("multiple", "length"), [(None, 3), (1, 3), (3, 3), (4, 4), (64, 64)])
def test_pads_to_a_multiple(multiple: int | None, length: int) -> None:
    batch = collate([SHORT, LONG], pad_token_id=0, pad_to_multiple_of=multiple)
    assert batch["input_ids"].shape == (2, length)
    assert batch["attention_mask"].sum() == 5


def test_refuses_no_rows_and_a_bad_multiple() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        collate([], pad_token_id=0)
    with pytest.raises(ValueError, match="pad_to_multiple_of=0 must be at least 1"):
        collate([LONG], pad_token_id=0, pad_to_multiple_of=0)
