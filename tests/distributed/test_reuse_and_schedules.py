"""Kept predictions, and the choice among parts, of two ranks: those of one process, also after resuming."""

from typing import Any

import pytest
from comparing import Results, assert_alike
from two_ranks import STOPS_AFTER

REUSES = ["reuse initial", "reuse initial, ddp", "reuse epoch", "reuse epoch, ddp"]
SCHEDULES = ["alright", "alright, ddp", "maxright", "maxright, ddp"]


def choices(results: Results) -> list[str]:
    """The part that each step trained."""
    parts = ("instruction", "preference")
    chosen = [[part for part in parts if step[f"train/{part}/chosen"]] for step in results["steps"]]
    assert all(len(names) == 1 for names in chosen)
    return [names[0] for names in chosen]


@pytest.mark.parametrize("case", [*REUSES, *SCHEDULES])
def test_two_ranks_equal_one(runs: dict[str, list[Results]], case: str) -> None:
    single = runs["single"][0][case]
    for rank in runs["double"]:
        assert rank[case]["is_sharded"] == ("ddp" not in case)
        assert_alike(single, rank[case], 1e-10)


@pytest.mark.parametrize("case", REUSES)
def test_all_ranks_read_the_same_predictions(runs: dict[str, list[Results]], case: str) -> None:
    expected = runs["single"][0][case]["predictions"]
    assert min(expected) >= 0
    assert len(set(expected)) > 1
    for rank in runs["double"]:
        assert rank[case]["predictions"] == rank[case]["rest"]["predictions"] == expected


@pytest.mark.parametrize("case", SCHEDULES)
def test_all_ranks_choose_the_same_part(runs: dict[str, list[Results]], case: str) -> None:
    expected = choices(runs["single"][0][case])
    assert len(set(expected)) == len(set(expected[STOPS_AFTER:])) == 2
    for rank in runs["double"]:
        assert choices(rank[case]) == expected
        assert choices(rank[case]["rest"]) == expected[STOPS_AFTER:]


@pytest.mark.parametrize("case", [*REUSES, *SCHEDULES])
@pytest.mark.parametrize("ranks", ["single", "double"])
def test_a_resumed_run_is_the_same_to_the_last_bit(runs: dict[str, list[Results]], case: str, ranks: str) -> None:
    for rank in runs[ranks]:
        whole, rest = rank[case], rank[case]["rest"]
        assert rest["weights"] == whole["weights"]
        assert rest["validations"][-1] == whole["validations"][-1]
        assert len(rest["steps"]) == len(whole["steps"]) - STOPS_AFTER > 0
        for ours, expected in zip(rest["steps"], whole["steps"][STOPS_AFTER:], strict=True):
            # The other run's callbacks still find what a step before the checkpoint logged.
            seen: dict[str, Any] = {name: expected[name] for name in ours}
            assert {"train/loss", "train/grad_norm"} <= seen.keys()
            assert ours == seen
