"""What one rank of two saw against what a single process saw."""

from typing import Any

import pytest

Results = dict[str, Any]


def assert_alike(single: Results, rank: Results, rel: float) -> None:
    """Steps, validations and weights of one of two ranks are those of the single process."""
    assert len(rank["steps"]) == len(single["steps"]) > 1
    for ours, expected in zip(rank["steps"], single["steps"], strict=True):
        assert ours == pytest.approx(expected, rel=rel, abs=rel * 1e-3)
    assert rank["validations"] == pytest.approx(single["validations"], rel=rel)
    assert rank["weights"].keys() == single["weights"].keys()
    for name, (total, norm) in single["weights"].items():
        assert rank["weights"][name][1] == pytest.approx(norm, rel=rel), name
        assert rank["weights"][name][0] == pytest.approx(total, abs=rel * max(norm, 1.0) * 10), name
