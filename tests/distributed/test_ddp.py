"""Two processes on the same data take the same steps as one, and share the scoring of the reference.

The data file has 21 rows: in steps of 8 the last one has 5, so that two ranks hold 3 and 2.
"""

import pytest
from comparing import Results, assert_alike


@pytest.mark.parametrize("case", ["ddp", "ddp by token", "ddp accumulating"])
def test_two_ranks_equal_one(runs: dict[str, list[Results]], case: str) -> None:
    single, ranks = runs["single"][0][case], [rank[case] for rank in runs["double"]]
    assert len(single["steps"]) == 2 * 3
    for rank in ranks:
        assert not rank["is_sharded"]
        assert_alike(single, rank, 1e-10)
    rows = [row for rank in ranks for row in rank["rows"]]
    assert sorted(filter(None, rows)) == sorted(filter(None, single["rows"]))
    # Global batches of 4, two of them a step: the last holds one row, and a dummy on the other rank.
    assert ("" in rows) == (case == "ddp accumulating")


def test_two_ranks_share_the_scoring_of_the_reference(runs: dict[str, list[Results]]) -> None:
    single, ranks = runs["single"][0]["scores"], [rank["scores"] for rank in runs["double"]]
    assert sum(rank["passes"][0] for rank in ranks) == single["passes"][0]
    assert all(rank["passes"][0] > 0 for rank in ranks)
    for rank in ranks:
        assert rank["logps"] == pytest.approx(single["logps"], rel=1e-12)
    again = [rank["scores again"] for rank in runs["double"]]
    assert [rank["passes"] for rank in again] == [[0], [0]]
    assert again[0]["logps"] == again[1]["logps"] == ranks[0]["logps"]
