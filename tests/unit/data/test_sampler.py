"""The order of rows: pure in (seed, epoch, processes), complete, equally long on every rank."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler, SequentialSampler

from lit_ift.data.encode import EncodedDataset
from lit_ift.data.rows import Example
from lit_ift.data.sampler import LengthGroupedBatchSampler, SequentialBatchSampler


def rank_batches(lengths: list[int], world: int, epoch: int = 0, **kwargs) -> list[list[list[int]]]:
    """For each rank its batches."""
    result = []
    for rank in range(world):
        sampler = LengthGroupedBatchSampler(lengths, num_replicas=world, rank=rank, **kwargs)
        sampler.set_epoch(epoch)
        result.append(list(sampler))
    return result


def some_lengths(count: int, seed: int = 0) -> list[int]:
    return [random.Random(f"{seed}/{i}").randint(1, 100) for i in range(count)]


def test_order_is_pure_in_seed_and_epoch() -> None:
    lengths = some_lengths(100)
    random.seed(1)
    first = rank_batches(lengths, 2, epoch=3, batch_size=4, seed=7)
    random.seed(2)
    assert rank_batches(lengths, 2, epoch=3, batch_size=4, seed=7) == first
    assert rank_batches(lengths, 2, epoch=4, batch_size=4, seed=7) != first
    assert rank_batches(lengths, 2, epoch=3, batch_size=4, seed=8) != first
    # seed and epoch are not simply added
    assert rank_batches(lengths, 2, epoch=4, batch_size=4, seed=6) != first


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 60),
    world=st.integers(1, 5),
    batch_size=st.integers(1, 5),
    shuffle=st.booleans(),
    group=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_partition_the_rows_into_equally_many_batches(count, world, batch_size, shuffle, group, epoch) -> None:
    lengths = some_lengths(count)
    ranks = rank_batches(lengths, world, epoch=epoch, batch_size=batch_size, shuffle=shuffle, group_by_length=group)
    indices = [i for batches in ranks for batch in batches for i in batch]
    assert sorted(i for i in indices if i >= 0) == list(range(count))
    sampler = LengthGroupedBatchSampler(lengths, num_replicas=world, rank=0, batch_size=batch_size)
    assert {len(batches) for batches in ranks} == {len(sampler)}
    assert all(0 < len(batch) <= batch_size for batches in ranks for batch in batches)
    # Dummies: one where a rank would have nothing, only in the last batch.
    last_rows = count - (len(sampler) - 1) * world * batch_size
    assert sum(i < 0 for i in indices) == max(0, world - last_rows)
    assert all(len(batch) == batch_size for batches in ranks for batch in batches[:-1])


def test_global_batches_do_not_depend_on_how_they_are_shared() -> None:
    lengths = some_lengths(96)
    one = rank_batches(lengths, 1, batch_size=8)
    two = rank_batches(lengths, 2, batch_size=4)
    assert [set(batch) for batch in one[0]] == [{*a, *b} for a, b in zip(*two, strict=True)]


def test_lengths_are_alike_within_a_batch_and_across_ranks() -> None:
    lengths = some_lengths(800)

    def spread(**kwargs) -> float:
        ranks = rank_batches(lengths, 2, batch_size=4, **kwargs)
        steps = zip(*ranks, strict=True)
        return sum(max(ls) - min(ls) for a, b in steps for ls in [[lengths[i] for i in a + b]]) / 100

    assert spread(group_by_length=True) < 0.1 * spread(group_by_length=False)


@pytest.mark.parametrize("world", [1, 2])
def test_small_data_has_other_batches_each_epoch_and_still_little_padding(world: int) -> None:
    lengths = random.Random(0).sample(range(1, 2001), 1000)

    def batches(epoch: int, **kwargs) -> list[tuple[int, ...]]:
        ranks = rank_batches(lengths, world, epoch=epoch, batch_size=32 // world, **kwargs)
        return [tuple(sorted(i for batch in step for i in batch if i >= 0)) for step in zip(*ranks, strict=True)]

    def waste(order: list[tuple[int, ...]]) -> float:
        padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in order)
        return 1 - sum(lengths) / padded

    first, second = batches(0), batches(1)
    assert len(set(first) & set(second)) <= 1
    assert waste(first) < 0.2 < 0.4 < waste(batches(0, group_by_length=False))
    # Four global batches and fewer: each row's place is drawn anew.
    tiny = [set(map(frozenset, rank_batches(lengths[:128], 1, epoch=e, batch_size=32)[0])) for e in range(2)]
    assert not tiny[0] & tiny[1]


def test_resume_begins_inside_one_iteration() -> None:
    sampler = LengthGroupedBatchSampler(some_lengths(20), batch_size=4)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    sampler.resume(epoch=1, start=3)
    assert (len(sampler), list(sampler)) == (5, epochs[1][3:])
    assert list(sampler) == epochs[1]
    sampler.resume(epoch=1, start=3)
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1][3:]
    sampler.resume(epoch=1, start=3)
    sampler.set_epoch(2)
    assert list(sampler) == epochs[2]
    sampler.epoch_of = lambda epoch: epoch - 1
    sampler.set_epoch(2)
    assert list(sampler) == epochs[1]


def test_short_batch_is_last_and_all_batches_move() -> None:
    lengths = some_lengths(30)
    orders = {tuple(len(batch) for batch in rank_batches(lengths, 1, epoch=e, batch_size=4)[0]) for e in range(5)}
    assert orders == {(4,) * 7 + (2,)}
    longest = lengths.index(max(lengths))
    places = {
        next(k for k, batch in enumerate(rank_batches(lengths, 1, epoch=e, batch_size=4)[0]) if longest in batch)
        for e in range(8)
    }
    assert len(places) > 2


def test_without_shuffle_order_is_by_falling_length_or_as_given() -> None:
    lengths = [3, 9, 5, 7]
    assert list(SequentialBatchSampler(lengths, batch_size=3)) == [[1, 3, 2], [0]]
    assert list(SequentialBatchSampler(lengths, batch_size=3, group_by_length=False)) == [[0, 1, 2], [3]]
    sampler = SequentialBatchSampler(lengths, batch_size=3)
    sampler.set_epoch(5)
    assert list(sampler) == [[1, 3, 2], [0]]


def test_lightning_will_leave_the_samplers_alone() -> None:
    assert issubclass(LengthGroupedBatchSampler, DistributedSampler)
    assert issubclass(SequentialBatchSampler, SequentialSampler)
    with pytest.raises(ValueError, match="Invalid rank"):
        LengthGroupedBatchSampler([1], batch_size=1, num_replicas=2, rank=2)


def test_dummy_index_gives_the_row_without_targets() -> None:
    dataset = EncodedDataset([Example([1, 2], [-100, 2], "f:1"), Example([3, 4], [-100, 4], "f:2")])
    real, dummy = dataset[[1, ~1]]
    assert (real.row_id, real.num_targets) == ("f:2", 1)
    assert (dummy.row_id, dummy.input_ids, dummy.labels) == ("", [3, 4], [-100, -100])
    assert dataset[[1]][0].num_targets == 1
