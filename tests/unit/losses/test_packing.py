"""Packing is undone exactly: nothing lost, order kept, borders never trained."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed, pack
from lit_ift.losses.logprobs import TokenScores, target_mask
from lit_ift.losses.packing import count_examples, packed_order, unpack, unpack_scores


def some_examples(lengths: list[int], seed: int = 0) -> list[Example]:
    draw = random.Random(seed)
    examples = []
    for i, length in enumerate(lengths):
        ids = [draw.randrange(1, 100) for _ in range(length)]
        labels = [token if draw.random() < 0.6 else IGNORE_INDEX for token in ids]
        examples.append(Example(ids, labels, f"f:{i}"))
    return examples


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=12)
MULTIPLES = st.sampled_from([None, 1, 4, 7])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, multiple=MULTIPLES, one_row=st.booleans(), seed=st.integers(0, 9))
def test_packing_loses_nothing_and_is_undone(lengths, multiple, one_row, seed) -> None:
    examples = some_examples(lengths, seed)
    batch = collate_packed(examples, pad_token_id=99, pad_to_multiple_of=multiple, one_row=one_row)
    padded = collate(examples, pad_token_id=99, pad_to_multiple_of=multiple)
    ids, owners, labels, positions = (batch[name] for name in ("input_ids", "sequence_ids", "labels", "position_ids"))
    assert ids.shape == owners.shape == labels.shape == positions.shape
    assert ids.shape[0] == 1 or not one_row
    # never more rows, nor longer ones, than padding takes
    assert one_row or (ids.shape[0] <= len(examples) and ids.shape[1] == padded["input_ids"].shape[1])
    assert ids.shape[1] % (multiple or 1) == 0
    assert batch["row_ids"] == padded["row_ids"]
    assert count_examples(owners) == len(examples)
    for i, example in enumerate(examples):
        here = owners == i
        assert here.any(-1).sum() == 1  # in one row
        assert ids[here].tolist() == example.input_ids
        assert positions[here].tolist() == list(range(len(example.input_ids)))
        assert labels[here].tolist() == [IGNORE_INDEX, *example.labels[1:]]
    assert (ids[owners < 0] == 99).all()
    assert (labels[owners < 0] == IGNORE_INDEX).all()
    assert (positions[:, 0] == 0).all()
    steps = positions.diff(dim=1)
    border = owners.diff(dim=1) != 0
    assert ((steps == 1) == ~border).all()  # positions restart at every border, the padding's included
    assert not (target_mask(labels) & border).any()

    for values, expected in ((ids, padded["input_ids"]), (labels, padded["labels"])):
        rows = unpack(values, owners, len(examples), fill=99)
        width = rows.shape[1]
        assert width == max(lengths)
        own = padded["attention_mask"][:, :width].bool()
        assert rows[:, 1:][own[:, 1:]].tolist() == expected[:, 1:width][own[:, 1:]].tolist()
        assert (rows[~own] == 99).all()


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, multiple=MULTIPLES, one_row=st.booleans(), seed=st.integers(0, 9))
def test_scores_become_those_of_rows_of_their_own(lengths, multiple, one_row, seed) -> None:
    examples = some_examples(lengths, seed)
    batch = collate_packed(examples, pad_token_id=0, pad_to_multiple_of=multiple, one_row=one_row)
    padded = collate(examples, pad_token_id=0)
    mask = target_mask(batch["labels"])
    # A value that tells example and position.
    value = (1000 * batch["sequence_ids"] + batch["position_ids"])[:, 1:].double()
    statistics = {"half": value * mask / 2}
    scores = unpack_scores(TokenScores(value * mask, mask, value[mask].long(), statistics), batch["sequence_ids"])
    expected_mask = target_mask(padded["labels"])
    expected = 1000.0 * torch.arange(len(examples))[:, None] + torch.arange(1, expected_mask.shape[1] + 1)
    assert torch.equal(scores.mask, expected_mask)
    assert torch.equal(scores.nll, expected.double() * expected_mask)
    assert torch.equal(scores.statistics["half"], scores.nll / 2)
    assert torch.equal(scores.predictions, expected[expected_mask].long())
    assert torch.equal(packed_order(scores.predictions, mask, batch["sequence_ids"]), value[mask].long())
    several = torch.stack([scores.predictions, -scores.predictions], -1)
    assert torch.equal(packed_order(several, mask, batch["sequence_ids"])[:, 1], -value[mask].long())


def test_gradient_goes_to_the_own_position() -> None:
    owners = torch.tensor([[1, 1, 0], [2, -1, -1]])
    values = torch.arange(6.0, dtype=torch.float64).view(2, 3).requires_grad_()
    rows = unpack(values, owners, 3)
    assert rows.tolist() == [[2, 0], [0, 1], [3, 0]]
    (rows * torch.tensor([[5.0, 7], [11, 13], [17, 19]])).sum().backward()
    assert values.grad.tolist() == [[11, 13, 5], [17, 0, 0]]


def test_wrong_input() -> None:
    owners = torch.tensor([[0, 0, 1]])
    with pytest.raises(ValueError, match="must be"):
        unpack(torch.zeros(1, 2), owners, 2)
    scores = TokenScores(torch.zeros(1, 2), torch.tensor([[True, True]]), torch.zeros(2))
    with pytest.raises(ValueError, match="first token of a packed example is trained on"):
        unpack_scores(scores, owners)


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=40), spare=st.integers(0, 20))
def test_first_fit_decreasing(lengths, spare) -> None:
    capacity = max(lengths, default=1) + spare
    rows = pack(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    loads = [sum(lengths[item] for item in row) for row in rows]
    assert all(load <= capacity for load in loads)
    assert rows == sorted(sorted(row) for row in rows)
    # No two rows would fit into one, so all but one are more than half full on average.
    assert all(a + b > capacity for k, a in enumerate(loads) for b in loads[:k])


def test_rows_are_few() -> None:
    assert pack([6, 4, 5, 3, 7, 5], 10) == [[0, 1], [2, 5], [3, 4]]
    assert pack([3, 3, 3], 3) == [[0], [1], [2]]
    with pytest.raises(ValueError, match="item 1 of length 4 does not fit into 3"):
        pack([3, 4], 3)


def test_refuses_no_examples_and_empty_ones() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        collate_packed([], pad_token_id=0)
    with pytest.raises(ValueError, match="example 1 has no tokens"):
        collate_packed(some_examples([2, 0]), pad_token_id=0)
    with pytest.raises(ValueError, match="pad_to_multiple_of=0"):
        collate_packed(some_examples([2]), pad_token_id=0, pad_to_multiple_of=0)


def test_a_dummy_row_counts_for_nothing() -> None:
    real, dummy = some_examples([4, 3])
    batch = collate_packed([real, dummy.as_dummy()], pad_token_id=0)
    assert batch["row_ids"] == ["f:0", ""]
    assert (batch["labels"][batch["sequence_ids"] == 1] == IGNORE_INDEX).all()
    alone = collate_packed([dummy.as_dummy()], pad_token_id=0)
    assert alone["input_ids"].tolist() == [dummy.input_ids]
    assert pad(alone["sequence_ids"], (0, 1), value=-1).tolist() == [[0, 0, 0, -1]]
