"""Rows by indices: dummies, mismatched sides, lengths, reference log-probabilities and the digest."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate_feedback
from lit_ift.data.batch.dataset import EncodedDataset, mismatched_example
from lit_ift.data.batch.sampler import LengthGroupedBatchSampler
from lit_ift.data.rows import SIDES, EncodedRow, RowKind
from lit_ift.data.store import BATCH, StoredRows


def make_example(prompt: int, answer: int, row_id: str, first: int = 10) -> Example:
    ids = list(range(first, first + prompt + answer))
    return Example(ids, [IGNORE_INDEX] * prompt + ids[prompt:], row_id)


def make_row(kind: RowKind, *sizes: tuple[int, int], row_id: str = "f:1", first: int = 10) -> EncodedRow:
    names = (*SIDES[kind], "gold")[: len(sizes)]
    sides = {
        name: make_example(*size, row_id, first=first + 100 * k)
        for k, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    return EncodedRow(kind, row_id, sides, {"unpaired": 1.0, "scored": 0.5}.get(kind))


def dataset_of(rows: Sequence[EncodedRow], partners: Sequence[int] | None = None, max_length: int = 99):
    given = None if partners is None else np.array(partners)
    return EncodedDataset(StoredRows.in_memory(rows), partners=given, max_length=max_length)


PAIR = make_row("preference", (2, 3), (2, 5), row_id="p:1")
GOLD = make_row("preference", (1, 1), (1, 2), (1, 3), row_id="g:1")
GOOD = make_row("unpaired", (3, 2), row_id="u:1", first=1000)
BAD = make_row("unpaired", (4, 6), row_id="u:2", first=2000)
LAST = make_row("unpaired", (2, 1), row_id="u:3", first=3000)
SINGLE = make_row("instruction", (2, 2), row_id="i:1")


def test_a_negative_index_gives_the_row_with_nothing_to_train_on() -> None:
    dataset = dataset_of([SINGLE, PAIR])
    real, dummy = dataset[[1, ~1]]
    assert real == PAIR
    assert (dummy.row_id, dummy.kind) == ("", "preference")
    for name, side in dummy.sides.items():
        assert (side.row_id, side.num_targets) == ("", 0)
        assert side.input_ids == PAIR.sides[name].input_ids
        assert set(side.labels) == {IGNORE_INDEX}
    assert dataset[[1]] == [PAIR]


def test_answers_are_numbered_row_by_row() -> None:
    dataset = dataset_of([PAIR, SINGLE, GOLD, GOOD])
    assert dataset.lengths == [12, 4, 9, 5]
    assert dataset.answer_offsets.tolist() == [0, 2, 3, 6]
    assert dataset.num_answers == 7
    assert dataset.side_counts.tolist() == [2, 1, 3, 1]


def test_an_unpaired_row_is_put_before_the_next_answer() -> None:
    dataset = dataset_of([GOOD, SINGLE, BAD, PAIR, LAST], [2, -1, 5, -1, 0])
    first, single, second, pair, last = dataset[[0, 1, 2, 3, 4]]
    assert (single, pair) == (SINGLE, PAIR)
    assert list(first.sides) == ["answer", "mismatched"]
    assert first.sides["mismatched"].input_ids == [1000, 1001, 1002, *range(2004, 2010)]
    assert first.sides["mismatched"].labels == [IGNORE_INDEX] * 3 + list(range(2004, 2010))
    assert (first.sides["mismatched"].row_id, first.sides["answer"]) == ("u:1", GOOD.sides["answer"])
    assert second.sides["mismatched"].input_ids == [2000, 2001, 2002, 2003, 3002]
    assert last.sides["mismatched"].input_ids == [3000, 3001, 1003, 1004]  # the last one gets the first
    assert dataset.lengths == [14, 4, 15, 12, 7]
    assert dataset.answer_offsets.tolist() == [0, 2, 3, 5, 7]
    assert dataset[[~0]][0].sides["mismatched"].num_targets == 0


def test_pairs_take_and_give_mismatched_answers() -> None:
    dataset = dataset_of([GOLD, GOOD, PAIR], [3, 5, 2])
    gold, good, pair = dataset[[0, 1, 2]]
    assert list(gold.sides) == ["chosen", "rejected", "gold", "mismatched"]
    assert gold.sides["mismatched"].input_ids == [10, 1003, 1004]
    assert good.sides["mismatched"].input_ids == [1000, 1001, 1002, 112, 113, 114, 115, 116]  # PAIR's rejected answer
    assert pair.sides["mismatched"].input_ids == [10, 11, 211, 212, 213]  # GOLD's third answer
    assert dataset.lengths == [12, 13, 17]
    # The sides of a pair need not agree in what comes before their first target.
    other = replace(PAIR, sides={**PAIR.sides, "rejected": make_example(4, 3, "p:1", first=110)})
    (good,) = dataset_of([GOOD, other], [2, -1])[[0]]
    assert good.sides["mismatched"].input_ids == [1000, 1001, 1002, 114, 115, 116]


@pytest.mark.parametrize(
    ("max_length", "ids"),
    [
        (10, [2000, 2001, 2002, 2003, 1003, 1004]),
        (5, [2001, 2002, 2003, 1003, 1004]),
        (3, [2003, 1003, 1004]),
        (2, [2003, 1003]),  # one token of the prompt is always left, or nothing would predict the answer
    ],
)
def test_a_mismatched_side_loses_the_start_of_its_prompt(max_length: int, ids: list[int]) -> None:
    found = mismatched_example(BAD.sides["answer"], GOOD.sides["answer"], max_length)
    assert found.input_ids == ids
    assert [label for label in found.labels if label != IGNORE_INDEX] == [i for i in ids if i < 2000]


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@st.composite
def some_rows(draw: st.DrawFn) -> list[EncodedRow]:
    rows = []
    for i in range(draw(st.integers(1, 25))):
        kind = draw(st.sampled_from(list(SIDES)))
        count = draw(st.integers(2, 3)) if kind == "preference" else 1
        rows.append(make_row(kind, *[draw(SIZES) for _ in range(count)], row_id=f"f:{i}"))
    return rows


def judged_partners(rows: Sequence[EncodedRow]) -> list[int]:
    """Thumbs and pairs get the last answer of the next such row."""
    last = list(accumulate(len(row.sides) for row in rows))
    judged = [i for i, row in enumerate(rows) if row.kind in ("unpaired", "preference")]
    following = dict(zip(judged, judged[1:] + judged[:1], strict=True))
    return [last[following[i]] - 1 if i in following else -1 for i in range(len(rows))]


@settings(deadline=None, max_examples=60)
@given(some_rows(), st.integers(2, 30))
def test_lengths_are_those_of_the_rows(rows: list[EncodedRow], max_length: int) -> None:
    dataset = dataset_of(rows, judged_partners(rows), max_length)
    made = dataset[list(range(len(rows)))]
    assert dataset.lengths == [row.num_tokens for row in made]
    assert dataset.side_counts.tolist() == [len(row.sides) for row in made]
    longest = [max(len(example.input_ids) for example in row.sides.values()) for row in made]
    most = max(len(row.sides) for row in made)
    assert dataset.padded_lengths(None) == [most * length for length in longest]
    assert dataset.padded_lengths(8) == [most * -(-length // 8) * 8 for length in longest]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(some_rows(), st.sampled_from([None, 4, 16]), st.booleans(), st.integers(1, 3), st.integers(0, 200))
def test_no_batch_is_larger_than_the_budget(
    rows: list[EncodedRow], multiple: int | None, packing: bool, num_replicas: int, spare: int
) -> None:
    dataset = dataset_of(rows, judged_partners(rows))
    lengths = dataset.lengths if packing else dataset.padded_lengths(multiple)
    budget = max(lengths) + spare
    seen: list[str] = []
    for rank in range(num_replicas):
        sampler = LengthGroupedBatchSampler(
            lengths,
            tokens_per_batch=budget,
            packing=packing,
            pad_to_multiple_of=multiple,
            num_replicas=num_replicas,
            rank=rank,
        )
        for indices in sampler:
            batch = collate_feedback(dataset[indices], pad_token_id=0, pad_to_multiple_of=multiple, packing=packing)
            tokens = int((batch["sequence_ids"] >= 0).sum()) if packing else batch["input_ids"].numel()  # type: ignore[typeddict-item]
            assert tokens <= budget
            seen += filter(None, batch["row_ids"])
    assert sorted(seen) == sorted(row.row_id for row in rows)


def test_reference_log_probabilities_by_row() -> None:
    dataset = dataset_of([PAIR, SINGLE, GOOD, BAD], [-1, -1, 4, 3])
    assert dataset.reference_logps_of([0]) is None
    dataset.reference_logps = np.arange(1, 8, dtype=np.float64)
    assert dataset.reference_logps is not None
    assert dataset.reference_logps.dtype == np.float32
    found = dataset.reference_logps_of([3, 0, ~0, 1])
    assert found is not None
    assert [values.tolist() for values in found] == [[6, 7], [1, 2], [0, 0], [3]]
    assert found[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"shape \(7,\), but has \(6,\)"):
        dataset.reference_logps = np.zeros(6, dtype=np.float32)
    with pytest.raises(ValueError, match="answer 1 is not finite"):
        dataset.reference_logps = np.array([0, np.nan, 0, 0, 0, 0, 0], dtype=np.float32)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[[0, 2]] == dataset[[0, 2]]
    assert copy.reference_logps.tolist() == dataset.reference_logps.tolist()


Change = Callable[[list[EncodedRow]], list[EncodedRow]]


def with_label_off(row: EncodedRow) -> EncodedRow:
    example = row.sides["answer"]
    return replace(row, sides={"answer": replace(example, labels=[*example.labels[:-1], IGNORE_INDEX])})


def with_other_token(row: EncodedRow) -> EncodedRow:
    example = row.sides["answer"]
    return replace(row, sides={"answer": replace(example, input_ids=[7, *example.input_ids[1:]])})


def renamed(row: EncodedRow, row_id: str) -> EncodedRow:
    return replace(row, row_id=row_id)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[:-1],
        lambda rows: [rows[0], replace(rows[1], kind="scored"), rows[2]],
        lambda rows: [rows[0], with_label_off(rows[1]), rows[2]],
        lambda rows: [rows[0], with_other_token(rows[1]), rows[2]],
        lambda rows: [renamed(rows[0], "p:1u"), renamed(rows[1], ":1"), rows[2]],
    ],
    ids=["order", "number", "kind", "target", "token", "id"],
)
def test_the_digest_tells_rows_apart(change: Change) -> None:
    rows = [PAIR, GOOD, BAD]
    digest = dataset_of(rows).content_digest
    assert digest == dataset_of(rows).content_digest == pickle.loads(pickle.dumps(dataset_of(rows))).content_digest
    assert dataset_of(change(rows)).content_digest != digest


def test_the_digest_tells_mismatched_sides_apart() -> None:
    rows = [PAIR, GOOD, BAD]
    digests = [
        dataset_of(rows).content_digest,
        dataset_of(rows, [-1, 3, 2]).content_digest,
        dataset_of(rows, [-1, 3, 2], max_length=8).content_digest,
        dataset_of(rows, [-1, 2, 3]).content_digest,
    ]
    assert len(set(digests)) == 4
    assert dataset_of(rows, [-1, -1, -1]).content_digest == digests[0]


def test_many_rows() -> None:
    """More than one record batch."""
    rows = [make_row("unpaired", (1 + i % 3, 1 + i % 5), row_id=f"f:{i}") for i in range(BATCH + 5)]
    dataset = dataset_of(rows, judged_partners(rows))
    indices = [0, BATCH - 1, BATCH, BATCH + 4]
    made = dataset[indices]
    assert [row.num_tokens for row in made] == [dataset.lengths[i] for i in indices]
    assert len(dataset.content_digest) == 64
