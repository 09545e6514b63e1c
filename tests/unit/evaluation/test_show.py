"""Tables and pictures of results."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from lit_ift.evaluation.results import TaskResult
from lit_ift.evaluation.show import differences_table, draw_scores, interval_of, notes_of, scores_table

FIRST = TaskResult(
    "base", "arc=a", "acc", 0.5, 0.25, 4, scores={"1": 0, "2": 1, "3": 0, "4": 1}, measured="4 of 4 rows"
)
SECOND = replace(FIRST, model="tuned", value=1.0, standard_error=0.0, scores=dict.fromkeys("1234", 1.0))


def shown(table: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_scores_stand_side_by_side() -> None:
    text = shown(scores_table([FIRST, SECOND, replace(FIRST, task="b", n=1, standard_error=None)]))
    assert "arc=a │ acc    │ 4 │ 0.500 ± 0.250 │ 1.000 ± 0.000" in text
    assert "b     │ acc    │ 1 │         0.500 │" in text


def test_differences_are_of_the_same_items() -> None:
    other = replace(FIRST, model="other", scores={"9": 1.0})
    text = shown(differences_table([FIRST, SECOND, other]))
    assert "tuned │ 4 │     +0.500 │ +0.000 to +1.000" in text
    assert "other" not in text
    assert differences_table([FIRST]) is None
    one = [replace(result, scores={"1": float(i)}, n=1) for i, result in enumerate((FIRST, SECOND))]
    assert "tuned │ 1 │     +1.000 │               │" in shown(differences_table(one))


def test_what_was_left_out_is_told() -> None:
    assert notes_of([FIRST]) == []
    left = replace(FIRST, measured="4 of 6 rows", left_out={"a reason": 2})
    assert notes_of([left, replace(left, metric="other")]) == ["arc=a: 4 of 6 rows", "arc=a: left out: 2 for a reason"]


def test_intervals() -> None:
    assert interval_of(SECOND) == (pytest.approx(4 / (4 + 3.8414588)), 1)
    assert interval_of(replace(FIRST, scores=None)) == pytest.approx((0.5 - 0.49, 0.5 + 0.49), abs=1e-4)
    assert interval_of(replace(FIRST, scores=None, standard_error=None)) is None


@pytest.mark.slow
def test_hostile_names_stay_text() -> None:
    hostile = replace(FIRST, model="[bold]\x1b[2J$x_$", task="[/red]$\\frac$")
    text = shown(scores_table([hostile]))
    assert "[bold]\\x1b[2J$x_$" in text
    assert "[/red]$" in text
    figure = draw_scores([hostile, SECOND])
    figure.savefig(io.BytesIO(), format="png")
    assert next(text.get_text() for text in figure.legends[0].get_texts()) == r"[bold]\x1b[2J\$x_\$"


def test_the_picture_has_a_dot_for_each_score() -> None:
    (axes,) = draw_scores([FIRST, SECOND]).axes
    dots = [float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]  # type: ignore[arg-type, index]
    assert dots == [0.5, 1.0]
