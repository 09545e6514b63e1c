"""Rows with one to three answers in one batch."""

import math

import pytest
import torch

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_feedback, collate_packed
from lit_ift.data.rows import ANSWER_SIDES, ROW_KINDS, EncodedRow


def example(*ids: int) -> Example:
    return Example(list(ids), [IGNORE_INDEX, *ids[1:]], "f:1")


ROWS = [
    EncodedRow("scored", "s:1", {"answer": example(1, 2, 3)}, 0.25),
    EncodedRow("preference", "p:1", {"chosen": example(4, 5), "rejected": example(4, 6, 7, 8), "gold": example(4, 9)}),
    EncodedRow("unpaired", "u:1", {"answer": example(5, 5), "mismatched": example(6, 6)}, 0.0),
    EncodedRow("instruction", "i:1", {"answer": example(1, 2)}),
]
EXAMPLES = [side for row in ROWS for side in row.sides.values()]


@pytest.mark.parametrize("packing", [False, True])
def test_answers_stand_row_by_row(packing: bool) -> None:
    batch = collate_feedback(ROWS, pad_token_id=0, pad_to_multiple_of=4, packing=packing)
    plain = (collate_packed if packing else collate)(EXAMPLES, pad_token_id=0, pad_to_multiple_of=4)
    for name in set(plain) - {"row_ids"}:
        assert torch.equal(batch[name], plain[name])  # type: ignore[literal-required]
    assert set(batch) == set(plain) | {"row_kinds", "scores", "answer_rows", "answer_sides"}
    assert batch["row_ids"] == ["s:1", "p:1", "u:1", "i:1"]
    assert [ROW_KINDS[kind] for kind in batch["row_kinds"]] == ["scored", "preference", "unpaired", "instruction"]
    assert batch["answer_rows"].tolist() == [0, 1, 1, 1, 2, 2, 3]
    sides = ["answer", "chosen", "rejected", "gold", "answer", "mismatched", "answer"]
    assert [ANSWER_SIDES[side] for side in batch["answer_sides"]] == sides
    assert [None if math.isnan(score) else score for score in batch["scores"].tolist()] == [0.25, None, 0.0, None]
    assert batch["scores"].dtype == torch.float32
    assert {batch[name].dtype for name in ("row_kinds", "answer_rows", "answer_sides")} == {torch.int64}


def test_one_row_and_reference_log_probabilities() -> None:
    logps = [torch.tensor([-1.0]), torch.tensor([-2.0, -3.0, -4.0]), torch.tensor([-5.0, -6.0]), torch.tensor([-7.0])]
    batch = collate_feedback(ROWS, pad_token_id=0, packing=True, one_row=True, reference_logps=logps)
    assert batch["input_ids"].shape == (1, 17)
    assert batch["reference_logps"].tolist() == [-1, -2, -3, -4, -5, -6, -7]
    with pytest.raises(
        ValueError, match=r"shapes \[\(1,\), \(3,\), \(1,\), \(1,\)\], but the rows have \[1, 3, 2, 1\]"
    ):
        collate_feedback(ROWS, pad_token_id=0, reference_logps=[*logps[:2], logps[0], logps[3]])
    with pytest.raises(ValueError, match="at least one example"):
        collate_feedback([], pad_token_id=0)
