"""The map, the routes and the arrows say what the study holds."""

from collections.abc import Callable

import numpy as np
import pytest
from lake_pictures import arrows, panel
from lake_studies import LARGE, SMALL, WIDE, make_study
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from lit_ift.frozen_lake.drawing import ARROW, greedy_actions, probability, without_repeats
from lit_ift.frozen_lake.figures import draw_policies, draw_summary
from lit_ift.frozen_lake.result import Study


@pytest.mark.parametrize(("rows", "slippery"), [(SMALL, False), (WIDE, True)])
def test_arrows_are_as_long_and_as_opaque_as_actions_are_probable(rows: list[str], slippery: bool) -> None:
    study = make_study(rows, ("sft", "ift", "dpo"), seeds=3, slippery=slippery)
    figure = draw_policies(study)
    shown = {
        "Optimal policy": study.optimal,
        "Before training": study.start,
        **{outcome.label: outcome.policies.mean(axis=0) for outcome in study.outcomes},
    }
    going = [cell for cell, letter in enumerate("".join(rows)) if letter in "SF"]
    for name, policy in shown.items():
        axes = panel(figure, name)
        found = arrows(axes, len(rows[0]))
        assert set(found) == {(cell, action) for cell in going for action in range(4)}
        for (cell, action), (length, opacity, kind) in found.items():
            assert length == pytest.approx(ARROW * policy[cell, action])
            assert opacity == pytest.approx(0.25 + 0.75 * policy[cell, action])
            assert (kind == "greedy") == (action == policy[cell].argmax())
        texts = [text.get_text() for text in axes.texts]
        assert sorted(text for text in texts if text not in "SG") == sorted(
            f"{policy[cell].max():.2f}" for cell in going
        )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [SMALL, [*LARGE[:5], LARGE[-1]], LARGE], ids=len)
def test_numbers_stay_clear_of_routes_and_arrows(rows: list[str]) -> None:
    """Both run through the middles of cells: as far to the right as a shifted line, or half the head of an arrow."""
    study = make_study(rows, ("sft",), seeds=1)
    figure = draw_policies(study)
    axes = panel(figure, "SFT")
    figure.canvas.draw()
    numbers = [text for text in axes.texts if text.get_text() not in "SG"]
    assert len(numbers) == sum(letter in "SF" for row in rows for letter in row)
    half = axes.lines[0].get_linewidth() / 2 * figure.dpi / 72
    for text in numbers:
        x, y = text.get_position()
        box, cell = text.get_window_extent(), round(x - 0.46)
        corner = axes.transData.transform((cell + 0.5, round(y + 0.44) - 0.5))
        assert box.x0 > axes.transData.transform((cell + 0.06, y))[0] + half
        assert box.x0 > axes.transData.transform((cell + 0.1125, y))[0]
        assert box.x1 < corner[0]
        assert box.y1 < corner[1]


@pytest.mark.slow
@pytest.mark.parametrize("draw", [draw_policies, draw_summary])
@pytest.mark.parametrize("rows", [SMALL, LARGE], ids=len)
def test_the_start_is_marked_inside_its_cell(rows: list[str], draw: Callable[[Study], Figure]) -> None:
    figure = draw(make_study(rows, ("sft", "ift", "dpo", "orpo"), seeds=1))
    axes = panel(figure, "SFT") if draw is draw_policies else figure.axes[0]
    figure.canvas.draw()
    box = next(text for text in axes.texts if text.get_text() == "S").get_window_extent()
    left, top = axes.transData.transform((-0.5, -0.5))
    assert box.x0 > left + 1
    assert box.y1 < top - 1


def test_numbers_on_large_maps_leave_out_their_zero() -> None:
    assert [probability(value, SMALL) for value in (0.0, 0.254, 0.996)] == ["0.00", "0.25", "1.00"]
    assert [probability(value, LARGE) for value in (0.0, 0.254, 0.996)] == [".00", ".25", "1.0"]


def test_arrows_point_down_where_the_policy_goes_down() -> None:
    study = make_study()
    down = np.tile([0.0, 1.0, 0.0, 0.0], (16, 1))
    figure = draw_policies(Study(**{**vars(study), "optimal": down}))
    axes = panel(figure, "Optimal policy")
    figure.canvas.draw()
    quiver = next(child for child in axes.get_children() if isinstance(child, Quiver) and child.V.any())
    tail = axes.transData.transform((quiver.X[0], quiver.Y[0]))
    tip = axes.transData.transform((quiver.X[0] + quiver.U[0], quiver.Y[0] + quiver.V[0]))
    assert tip[1] < tail[1]
    assert tip[0] == tail[0]


def test_ties_are_all_emphasised_and_indifference_is_not() -> None:
    policy = np.array([[0.4, 0.4, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
    assert greedy_actions(policy).tolist() == [
        [True, True, False, False],
        [False, False, False, False],
        [False, False, False, True],
    ]


def test_routes_run_through_their_cells() -> None:
    study = make_study()
    axes = panel(draw_policies(study), "SFT")
    rejected, chosen = (np.round(line.get_xydata()).astype(int) for line in axes.lines)
    assert [4 * row + column for column, row in chosen] == study.chosen
    assert [4 * row + column for column, row in rejected] == study.rejected


def test_routes_that_go_to_and_fro_are_drawn_once() -> None:
    gap = float("nan")
    expected = [0, 1, 2, gap, 1, gap, 1, 5]
    assert without_repeats([0, 1, 2, 1, 1, 5]) == pytest.approx(expected, nan_ok=True)


def test_letters_of_the_map_are_where_they_should_be() -> None:
    axes = panel(draw_policies(make_study(WIDE)), "SFT")
    places = {text.get_text(): text.get_position() for text in axes.texts if text.get_text() in "SG"}
    assert tuple(np.round(places["S"])) == (0, 0)
    assert places["G"] == (4, 1)
    holes = [patch for patch in axes.patches if type(patch).__name__ == "Circle"]
    assert [tuple(hole.center) for hole in holes] == [(1, 1)]
