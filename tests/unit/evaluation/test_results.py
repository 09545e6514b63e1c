"""The file of results, and the comparison of two results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lit_ift.errors import UserError
from lit_ift.evaluation.results import TaskResult, comparable, paired_difference, read_results, write_results

FIRST = TaskResult(
    "base",
    "arc",
    "acc",
    0.5,
    0.5,
    2,
    scores={"1": 0.0, "2": 1.0},
    measured="2 of 3 rows",
    left_out={"no answer": 1},
    options={"num_fewshot": 0},
    task_key="a",
    key="b",
    versions={"lm_eval": "0.4.13"},
)
SECOND = replace(FIRST, model="tuned", value=1.0, scores={"2": 1.0, "1": 1.0}, key="c")


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    alone = replace(FIRST, standard_error=None, n=1, scores=None)
    write_results(tmp_path / "results.json", [FIRST, alone])
    assert read_results(tmp_path / "results.json") == [FIRST, alone]


def test_items_are_paired_by_their_names() -> None:
    difference = paired_difference(FIRST, SECOND)
    assert (difference.value, difference.low, difference.high, difference.n) == (0.5, 0, 1, 2)


def test_weights_hold_for_both() -> None:
    first, second = (replace(result, weights={"1": 3, "2": 1}) for result in (FIRST, SECOND))
    assert paired_difference(first, second).value == 0.75


@pytest.mark.parametrize(
    "change", [{"task_key": "other"}, {"metric": "acc_norm"}, {"scores": None}, {"scores": {"1": 1.0}}]
)
def test_what_is_not_of_the_same_items_is_not_compared(change: dict[str, object]) -> None:
    other = replace(SECOND, **change)  # type: ignore[arg-type]
    assert comparable(FIRST, SECOND)
    assert not comparable(FIRST, other)
    with pytest.raises(ValueError, match="same items of arc"):
        paired_difference(FIRST, other)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"format": 2, "results": []}', '{"format": 1, "results": [{"model": "m"}]}', "\udc80"]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"results.json .*Name a results.json"):
        read_results(tmp_path / "results.json")


def test_a_number_that_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", [FIRST])
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path / "results.json", [replace(FIRST, value=float("nan"))])
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["value"] == 0.5
