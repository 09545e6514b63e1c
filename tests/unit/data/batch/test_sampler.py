"""The order of rows: pure in (seed, epoch, processes), complete, equally long on every rank."""

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler, SequentialSampler

from lit_ift.data.batch.sampler import LengthGroupedBatchSampler, SequentialBatchSampler
from lit_ift.errors import UserError


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


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 60),
    world=st.integers(1, 5),
    batch_size=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    shuffle=st.booleans(),
    group=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_partition_the_rows_into_equally_many_batches(
    count, world, batch_size, accumulate, shuffle, group, epoch
) -> None:
    lengths = some_lengths(count)
    options = {"batch_size": batch_size, "accumulate": accumulate, "shuffle": shuffle, "group_by_length": group}
    ranks = rank_batches(lengths, world, epoch=epoch, **options)
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


@pytest.mark.parametrize("group", [False, True])
def test_steps_do_not_depend_on_how_they_are_shared_and_accumulated(group: bool) -> None:
    lengths = some_lengths(85)

    def steps(batch_size: int, accumulate: int, world: int, epoch: int) -> list[set[int]]:
        options = {"batch_size": batch_size, "accumulate": accumulate, "group_by_length": group}
        batches = [
            {i for batch in of_ranks for i in batch if i >= 0}
            for of_ranks in zip(*rank_batches(lengths, world, epoch, **options), strict=True)
        ]
        return [set().union(*batches[k : k + accumulate]) for k in range(0, len(batches), accumulate)]

    whole = steps(8, 1, 1, epoch=1)
    assert [len(step) for step in whole] == [8] * 10 + [5]
    for split in ((4, 2, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4)):
        assert steps(*split, epoch=1) == whole
    assert steps(1, 8, 1, epoch=2) != whole
    sampler = LengthGroupedBatchSampler(lengths, batch_size=2, accumulate=4)
    assert sampler.order_options["accumulate"] == 4
    # As in a checkpoint from before there was the option.
    assert LengthGroupedBatchSampler(lengths, batch_size=8).order_options["accumulate"] is None


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


def test_exactly_one_size_and_no_option_without_effect() -> None:
    for sizes in ({}, {"batch_size": 4, "tokens_per_batch": 100}):
        with pytest.raises(ValueError, match="exactly one of batch_size and tokens_per_batch"):
            LengthGroupedBatchSampler([1, 2], **sizes)
    for packing in (True, False):
        with pytest.raises(ValueError, match=f"group_by_length={packing} has no effect"):
            LengthGroupedBatchSampler([1], tokens_per_batch=8, packing=packing, group_by_length=packing)
    with pytest.raises(ValueError, match="groups need shuffle"):
        LengthGroupedBatchSampler([1], batch_size=8, shuffle=False, groups=[(1, 2.0)])


LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=80)


def steps_of(lengths: list[int], world: int, epoch: int = 0, **kwargs) -> list[tuple[list[int], ...]]:
    """For each step the batches of all ranks."""
    return list(zip(*rank_batches(lengths, world, epoch=epoch, **kwargs), strict=True))


def cost(batch: list[int], lengths: list[int], packing: bool, multiple: int | None) -> int:
    own = [lengths[row] for row in batch if row >= 0]
    if packing or not own:
        return sum(own)
    return -(-max(own) // (multiple or 1)) * (multiple or 1) * len(own)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@example(  # The planned rows of a bucket are not its longest.
    lengths=[29, 28, 43, 43, 41, 64, 1, 1, 1],
    world=1,
    budget=120,
    packing=False,
    shuffle=True,
    multiple=None,
    weights=[0.5, 0.5, 0.5],
)
@given(
    lengths=LENGTHS,
    world=st.integers(1, 4),
    budget=st.integers(120, 900),
    packing=st.booleans(),
    shuffle=st.booleans(),
    multiple=st.sampled_from([None, 8]),
    weights=st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0, 0.3]), min_size=3, max_size=3),
)
def test_token_budget(lengths, world, budget, packing, shuffle, multiple, weights) -> None:
    kwargs = {
        "tokens_per_batch": budget,
        "packing": packing,
        "shuffle": shuffle,
        "pad_to_multiple_of": multiple,
        "seed": 3,
    }
    third = len(lengths) // 3
    sizes = [third, third, len(lengths) - 2 * third]
    weights = [w if w * n >= 1 else 1.0 for w, n in zip(weights, sizes, strict=True)]
    if shuffle:
        kwargs["groups"] = list(zip(sizes, weights, strict=True))
    sampler = LengthGroupedBatchSampler(lengths, num_replicas=world, rank=0, **kwargs)
    seen: Counter[int] = Counter()
    epochs = 4
    for epoch in range(epochs):
        steps = steps_of(lengths, world, epoch, **kwargs)
        assert len(steps) == len(sampler)  # in every epoch
        assert steps == steps_of(lengths, world, epoch, **kwargs)
        costs = [[cost(batch, lengths, packing, multiple) for batch in step] for step in steps]
        assert all(0 <= c <= budget for step in costs for c in step)
        assert all(batch for step in steps for batch in step)
        # Dummies stand alone, and never on all ranks.
        assert all(len(batch) == 1 or min(batch) >= 0 for step in steps for batch in step)
        assert all(any(batch[0] >= 0 for batch in step) for step in steps)
        if shuffle:
            # What ranks wait for each other over the whole epoch is no more than one batch.
            assert sum(max(step) - min(step) for step in costs) <= max(max(step) for step in costs)
        counts = Counter(row for step in steps for batch in step for row in batch if row >= 0)
        if not shuffle:
            assert counts == Counter(range(len(lengths)))
        seen += counts
        first = 0
        for size, weight in zip(sizes, weights, strict=True):
            own = [counts[row] for row in range(first, first + size)]
            if shuffle:
                assert sum(own) == int(weight) * size + round((weight - int(weight)) * size)
                assert set(own) <= {int(weight), int(weight) + 1}
            first += size
    first = 0
    for size, _ in zip(sizes, weights, strict=True):
        own = [seen[row] for row in range(first, first + size)]
        assert not own or max(own) - min(own) <= 1  # all about equally often
        first += size


@settings(max_examples=50, deadline=None)
@given(
    lengths=LENGTHS,
    packing=st.booleans(),
    shuffle=st.booleans(),
    size=st.sampled_from([{"tokens_per_batch": 200}, {"batch_size": 3}]),
    start=st.integers(0, 5),
)
def test_resuming_from_any_batch_gives_the_rest(lengths, packing, shuffle, size, start) -> None:
    sampler = LengthGroupedBatchSampler(lengths, packing=packing, shuffle=shuffle, **size)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.resume(epoch=2, start=start)
    assert len(sampler) == len(whole)
    assert list(sampler) == whole[start:]
    assert list(sampler) == whole


def alpaca_like(count: int) -> list[int]:
    """A long tail, as conversations have."""
    draw = random.Random(0)
    return [min(1024, 20 + int(draw.lognormvariate(4.5, 0.8))) for _ in range(count)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("world", [1, 4])
def test_budgets_are_used_up_and_epochs_differ(packing: bool, world: int) -> None:
    lengths, budget = alpaca_like(4000), 8192
    orders = [steps_of(lengths, world, epoch, tokens_per_batch=budget, packing=packing) for epoch in range(2)]
    costs = [cost(batch, lengths, packing, None) for step in orders[0] for batch in step]
    tokens = sum(lengths)
    assert tokens / (len(costs) * budget) > 0.85
    assert tokens / sum(costs) > (0.999 if packing else 0.9)
    first, second = ([frozenset(batch) for step in order for batch in step] for order in orders)
    assert not set(first) & set(second)
    # Hardly any two rows that shared a batch share one again.
    mate = {row: batch for batch in second for row in batch}
    kept = sum(len(batch & mate[row]) - 1 for batch in first for row in batch)
    pairs = sum((len(batch) - 1) * len(batch) for batch in first)
    assert kept / pairs < (0.05 if packing else 0.35)


def test_packed_batches_are_samples_of_all_lengths_and_balanced() -> None:
    lengths = alpaca_like(4000)
    steps = steps_of(lengths, 4, tokens_per_batch=8192, packing=True)
    batches = [batch for step in steps for batch in step]
    means = [sum(lengths[row] for row in batch) / len(batch) for batch in batches]
    overall = sum(lengths) / len(lengths)
    assert all(0.8 * overall < mean < 1.25 * overall for mean in means)
    costs = [[cost(batch, lengths, True, None) for batch in step] for step in steps]
    assert all(max(step) - min(step) < 0.05 * 8192 for step in costs)
    everything = [c for step in costs for c in step]
    assert max(everything) - min(everything) <= max(lengths)


def test_without_shuffle_rows_keep_their_order_within_the_budget() -> None:
    lengths = [3, 9, 5, 7, 1]
    options = {"tokens_per_batch": 12}
    assert list(SequentialBatchSampler(lengths, **options, group_by_length=False)) == [[0], [1], [2], [3], [4]]
    assert list(SequentialBatchSampler(lengths, **options, packing=True, group_by_length=False)) == [
        [0, 1],
        [2, 3],
        [4],
    ]
    assert list(SequentialBatchSampler(lengths, **options)) == [[1], [3], [2, 0], [4]]
    two = steps_of(lengths, 2, tokens_per_batch=12, packing=True, shuffle=False, group_by_length=False)
    assert two == [([0, 1], [2, 3]), ([4], [~4])]


def test_a_row_beyond_the_budget_is_named() -> None:
    with pytest.raises(UserError, match=r"Row 1 .* has 50 tokens, which is more than data.tokens_per_batch=49"):
        LengthGroupedBatchSampler([10, 50], tokens_per_batch=49)
    with pytest.raises(UserError, match=r"50 tokens, padded to a multiple of 8, which is more"):
        LengthGroupedBatchSampler([10, 50], tokens_per_batch=50, pad_to_multiple_of=8)
    LengthGroupedBatchSampler([10, 50], tokens_per_batch=50, packing=True, pad_to_multiple_of=8)


@pytest.mark.parametrize("size", [{"batch_size": 4}, {"tokens_per_batch": 300}])
def test_fractions_rotate_through_all_rows(size: dict) -> None:
    lengths = some_lengths(90)
    sampler = LengthGroupedBatchSampler(lengths, groups=[(30, 2), (60, 0.25)], **size)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        epochs.append(Counter(row for batch in sampler for row in batch))
    assert all([epoch[row] for row in range(30)] == [2] * 30 for epoch in epochs)
    assert all(sum(epoch[row] for row in range(30, 90)) == 15 for epoch in epochs)
    assert all(sum(epoch[row] for epoch in epochs) == 1 for row in range(30, 90))
    # Each epoch's pick has short and long rows.
    means = [sum(lengths[row] for row in epoch if row >= 30) / 15 for epoch in epochs]
    assert max(means) - min(means) < 0.15 * max(means)
    assert sampler.order_options["weights"] == [[30, 2.0], [60, 0.25]]


def test_wrong_weights() -> None:
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="is not a positive number"):
            LengthGroupedBatchSampler([1, 2], batch_size=1, groups=[(2, weight)])
    with pytest.raises(UserError, match="source 1 would give none of its 2 rows"):
        LengthGroupedBatchSampler([1, 2, 3], batch_size=1, groups=[(1, 1.0), (2, 0.1)])
    with pytest.raises(ValueError, match=r"groups of \[1\] rows do not fit 2 rows"):
        LengthGroupedBatchSampler([1, 2], batch_size=1, groups=[(1, 1.0)])


# Parts by turns --------------------------------------------------------------------------------------------------


def steps_by_turns(
    parts: list[int], world: int, accumulate: int, epoch: int = 0, **kwargs
) -> list[tuple[int, set[int]]]:
    """Part and rows of each optimizer step over all ranks; every batch must be of that part, dummies included."""
    lengths = some_lengths(len(parts))
    ranks = rank_batches(lengths, world, epoch=epoch, accumulate=accumulate, parts=parts, **kwargs)
    batches = [[row for batch in batches for row in batch] for batches in zip(*ranks, strict=True)]
    steps = []
    for start in range(0, len(batches), accumulate):
        rows = [row for batch in batches[start : start + accumulate] for row in batch]
        (part,) = {parts[row if row >= 0 else ~row] for row in rows}
        steps.append((part, {row for row in rows if row >= 0}))
        assert sum(row >= 0 for row in rows) == len(steps[-1][1])
    return steps


def test_parts_take_turns_in_proportion_to_their_steps() -> None:
    parts = [0, 1, 0, 0] * 8
    orders = [[part for part, _ in steps_by_turns(parts, 1, 1, epoch=epoch, batch_size=4)] for epoch in range(2)]
    assert orders == [[0, 0, 0, 1, 0, 0, 0, 1]] * 2
    first, second = (steps_by_turns(parts, 1, 1, epoch=epoch, batch_size=4) for epoch in range(2))
    assert first != second
    assert first == steps_by_turns(parts, 1, 1, epoch=0, batch_size=4)
    assert [part for part, _ in steps_by_turns([1] * 5 + [0] * 2, 1, 1, batch_size=1)] == [1, 1, 0, 1, 1, 1, 0]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    world=st.integers(1, 3),
    batch_size=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    group=st.booleans(),
    start=st.integers(0, 20),
)
def test_every_step_has_one_part_and_every_row_comes_once(parts, world, batch_size, accumulate, group, start) -> None:
    options = {"batch_size": batch_size, "group_by_length": group, "seed": 3}
    steps = steps_by_turns(parts, world, accumulate, **options)
    assert sorted(row for _, rows in steps for row in rows) == list(range(len(parts)))
    size = world * batch_size * accumulate
    for part in set(parts):
        sizes = [len(rows) for mine, rows in steps if mine == part]
        assert all(found == size for found in sizes[:-1])
    # The same steps however they are shared and accumulated.
    assert steps == steps_by_turns(parts, 1, 1, **{**options, "batch_size": size})
    lengths = some_lengths(len(parts))
    sampler = LengthGroupedBatchSampler(
        lengths, num_replicas=world, rank=world - 1, parts=parts, accumulate=accumulate, **options
    )
    batches = list(sampler)
    assert len(batches) == len(sampler) == accumulate * len(steps)
    sampler.resume(epoch=0, start=start)
    assert list(sampler) == batches[start:]


@pytest.mark.parametrize(("world", "batch_size", "accumulate"), [(1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_every_step_has_rows_of_all_parts_in_proportion(world: int, batch_size: int, accumulate: int) -> None:
    parts = [0] * 60 + [1] * 22
    lengths = some_lengths(len(parts))
    options = {"parts": parts, "in_every_step": True, "seed": 3}
    seen = []
    for epoch in range(2):
        ranks = rank_batches(lengths, world, epoch=epoch, batch_size=batch_size, accumulate=accumulate, **options)
        batches = [[row for batch in batches for row in batch if row >= 0] for batches in zip(*ranks, strict=True)]
        steps = [
            [row for batch in batches[k : k + accumulate] for row in batch] for k in range(0, len(batches), accumulate)
        ]
        assert sorted(row for step in steps for row in step) == list(range(82))
        assert {len(step) for step in steps} == {7, 8}  # 11 steps: none is left with two rows.
        assert {sum(parts[row] for row in step) for step in steps} <= {1, 2, 3}
        seen.append(steps)
        whole = rank_batches(lengths, 1, epoch=epoch, batch_size=8, **options)[0]
        assert [sorted(step) for step in steps] == [sorted(step) for step in whole]
        sampler = LengthGroupedBatchSampler(
            lengths, num_replicas=world, rank=0, batch_size=batch_size, accumulate=accumulate, **options
        )
        assert len(sampler) == len(batches) == 11 * accumulate
    assert seen[0] != seen[1]


def test_a_part_too_small_for_every_step_is_refused() -> None:
    options = {"batch_size": 4, "parts": [0] * 38 + [1] * 2}
    with pytest.raises(UserError, match=r"Part 1 .* has 2 of 40 training rows, too few for each of 10 optimizer steps"):
        LengthGroupedBatchSampler(some_lengths(40), in_every_step=True, **options)
    with pytest.raises(ValueError, match="in_every_step needs parts"):
        LengthGroupedBatchSampler(some_lengths(40), batch_size=4, in_every_step=True)
    one, other = (
        LengthGroupedBatchSampler(some_lengths(4), batch_size=4, parts=[0, 0, 1, 1], in_every_step=every).order_options[
            "parts"
        ]
        for every in (False, True)
    )
    assert one != other


def test_parts_are_told_apart_on_resuming_and_need_a_step_of_known_size() -> None:
    lengths = some_lengths(4)
    without, one, other = (
        LengthGroupedBatchSampler(lengths, batch_size=1, parts=parts).order_options["parts"]
        for parts in (None, [0, 0, 1, 1], [0, 1, 1, 1])
    )
    assert without is None
    assert one != other
    for options in ({"tokens_per_batch": 100}, {"batch_size": 1, "shuffle": False}):
        with pytest.raises(ValueError, match="parts need shuffle and batch_size"):
            LengthGroupedBatchSampler(lengths, parts=[0, 0, 1, 1], **options)
