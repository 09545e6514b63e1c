"""What the pictures show is what the study holds."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from lake_studies import LARGE, SMALL, WIDE, make_study
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from lit_ift.lake import figures, style
from lit_ift.lake.figures import (
    ARROW,
    STEPS,
    draw_curves,
    draw_mse,
    draw_policies,
    draw_summary,
    draw_visits,
    greedy_actions,
    save_figures,
    spread,
    without_repeats,
)
from lit_ift.lake.result import Study

TWELVE = [f"m{i}" for i in range(12)]
DRAW = {
    "policies": draw_policies,
    "visits": draw_visits,
    "mse": draw_mse,
    "curves": draw_curves,
    "summary": draw_summary,
}


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def panel(figure: Figure, name: str) -> Axes:
    found = [axes for axes in figure.axes if name in (axes.get_title(), axes.get_title(loc="left"))]
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize(
    ("rows", "names", "seeds"), [(SMALL, ("sft", "ift", "dpo"), 3), (LARGE, ("x",), 1), (WIDE, TWELVE[:5], 2)]
)
def test_every_picture_is_saved_twice_in_the_size_it_was_drawn(
    rows: list[str], names: list[str], seeds: int, tmp_path: Path
) -> None:
    study = make_study(rows, names, seeds)
    paths = save_figures(study, tmp_path / "new")
    assert {path.name for path in paths} == {f"{name}.{kind}" for name in DRAW for kind in ("png", "svg")}
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    for name, draw in DRAW.items():
        inches = draw(study).get_size_inches()
        with Image.open(tmp_path / "new" / f"{name}.png") as image:
            assert image.format == "PNG"
            image.load()
            assert np.abs(np.array(image.size) - inches * style.DPI).max() <= 1
            assert image.width <= 1700
        root = ElementTree.parse(tmp_path / "new" / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.attrib["width"].removesuffix("pt")) == pytest.approx(72 * inches[0], abs=0.01)
        assert float(root.attrib["height"].removesuffix("pt")) == pytest.approx(72 * inches[1], abs=0.01)


def test_the_summary_is_1200_by_500_whatever_the_map() -> None:
    for rows in (SMALL, LARGE, WIDE):
        assert tuple(draw_summary(make_study(rows)).get_size_inches() * style.DPI) == (1200, 500)


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    for draw in (draw_visits, draw_summary):
        first, second = (style.save(draw(make_study(seeds=2)), tmp_path / run, draw.__name__) for run in "ab")
        for one, other in zip(first, second, strict=True):
            assert one.read_bytes() == other.read_bytes(), one.name


def test_pictures_bring_their_own_light_ground(tmp_path: Path) -> None:
    for path in style.save(draw_mse(make_study()), tmp_path, "x"):
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("RGBA"))
    assert pixels[0, 0, 3] == 0, "the page shows around the card"
    inside = pixels[6:-6, 6:-6]
    assert (inside[..., 3] == 255).all(), "the page does not show through"
    assert tuple(inside[0, len(inside[0]) // 4]) == (*bytes.fromhex(style.CARD[1:]), 255)


@pytest.mark.parametrize("name", DRAW)
def test_titles_say_what_lake_and_how_many_seeds(name: str) -> None:
    assert "4x4 lake, not slippery · mean of 4 seeds" in title(DRAW[name](make_study()))
    assert "2x5 lake, slippery · 1 seed" in title(DRAW[name](make_study(WIDE, seeds=1, slippery=True)))


def arrows(axes: Axes, width: int) -> dict[tuple[int, int], tuple[float, float, str]]:
    """(cell, action) -> length, opacity and colour of its arrow."""
    found = {}
    for quiver in (child for child in axes.get_children() if isinstance(child, Quiver)):
        colours = quiver.get_facecolors()
        for x, y, u, v, rgba in zip(quiver.X, quiver.Y, quiver.U, quiver.V, colours, strict=True):
            action = int(np.argmax(STEPS @ (u, v)))
            across, down = STEPS[action]
            assert abs(u * down) + abs(v * across) < 1e-12, "arrows point along rows and columns"
            cell = round(float(y)) * width + round(float(x))
            assert (cell, action) not in found
            found[cell, action] = (
                float(np.hypot(u, v)),
                float(rgba[3]),
                "greedy" if np.allclose(rgba[:3], [c / 255 for c in bytes.fromhex(style.GREEDY[1:])]) else "other",
            )
    return found


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


def test_heat_maps_show_visits_on_one_scale() -> None:
    study = make_study(WIDE, ("sft", "ift", "dpo"))
    figure = draw_visits(study)
    images = [panel(figure, outcome.label).images[0] for outcome in study.outcomes]
    for image, outcome in zip(images, study.outcomes, strict=True):
        assert np.array_equal(image.get_array(), outcome.visits.reshape(2, 5))
        assert image.norm is images[0].norm
    assert images[0].norm.vmin == 0
    assert images[0].norm.vmax == max(outcome.visits.max() for outcome in study.outcomes)
    assert any("expected visits" in axes.get_ylabel() for axes in figure.axes), "a colour bar"


def bars(axes: Axes, index: int = 0) -> tuple[list[float], list[float] | None]:
    """Lengths of the bars and half lengths of their error bars."""
    container = axes.containers[index]
    # A bar with an error bar comes as two containers, the error bar first.
    widths = [patch.get_width() for patch in container.patches]
    if container.errorbar is None:
        return widths, None
    segments = container.errorbar.lines[2][0].get_segments()
    for segment, width in zip(segments, widths, strict=True):
        assert segment[:, 0].mean() == pytest.approx(width)
    return widths, [(segment[1, 0] - segment[0, 0]) / 2 for segment in segments]


def bar_containers(axes: Axes) -> list[int]:
    return [index for index, container in enumerate(axes.containers) if hasattr(container, "patches")]


MEAN_AND_ERROR = {
    "MSE, all cells": ["mse_all"],
    "MSE, optimal route": ["mse_trajectory"],
    "Success": ["success_greedy", "success_sampled", "success_perturbed"],
}


@pytest.mark.parametrize("seeds", [2, 7])
def test_bars_are_means_with_standard_errors(seeds: int) -> None:
    study = make_study(names=("sft", "ift", "dpo"), seeds=seeds)
    figure = draw_mse(study)
    assert [text.get_text() for text in panel(figure, "MSE, all cells").get_yticklabels()] == ["SFT", "IFT", "DPO"]
    for name, metrics in MEAN_AND_ERROR.items():
        axes = panel(figure, name)
        assert len(bar_containers(axes)) == len(metrics)
        for metric, index in zip(metrics, bar_containers(axes), strict=True):
            widths, errors = bars(axes, index)
            values = [outcome.metrics[metric] for outcome in study.outcomes]
            assert widths == pytest.approx([v.sum() / seeds for v in values])
            by_hand = [np.sqrt(((v - v.mean()) ** 2).sum() / (seeds - 1) / seeds) for v in values]
            assert errors == pytest.approx(by_hand)


def test_one_seed_has_no_errors_to_show() -> None:
    study = make_study(seeds=1)
    for draw in (draw_mse, draw_summary):
        charts = [axes for axes in draw(study).axes if axes.containers]
        assert charts
        for axes in charts:
            for index in bar_containers(axes):
                assert bars(axes, index)[1] is None
            assert "standard error" not in axes.get_xlabel()
    curves = draw_curves(study)
    assert all(line.get_xdata().size for axes in curves.axes for line in axes.lines)
    assert not [c for axes in curves.axes for c in axes.collections]


def test_curves_are_means_in_a_band_of_one_standard_error() -> None:
    study = make_study(names=("sft", "ift"), seeds=6)
    figure = draw_curves(study)
    assert len(figure.axes) == 2
    for metric, name in (
        ("mse_all", "MSE to the optimal policy, all cells"),
        ("success_sampled", "success of sampled play"),
    ):
        axes = panel(figure, name)
        bands = [c for c in axes.collections if isinstance(c, FillBetweenPolyCollection)]
        for outcome, line, band in zip(study.outcomes, axes.lines, bands, strict=True):
            values = outcome.curves[metric]
            assert line.get_xdata().tolist() == outcome.steps.tolist()
            assert line.get_ydata() == pytest.approx(values.mean(axis=0))
            error = values.std(axis=0, ddof=1) / np.sqrt(6)
            at_start = band.get_paths()[0].vertices
            at_start = at_start[at_start[:, 0] == 0, 1]
            assert at_start.min() == pytest.approx(values.mean(axis=0)[0] - error[0])
            assert at_start.max() == pytest.approx(values.mean(axis=0)[0] + error[0])
        assert {text.get_text() for text in axes.texts} == {"SFT", "IFT"}


def test_a_study_without_curves_has_no_curves_picture(tmp_path: Path) -> None:
    study = make_study(names=("sft",))
    study.outcomes[0].curves.clear()
    assert {path.stem for path in save_figures(study, tmp_path)} == {"policies", "visits", "mse", "summary"}


def test_the_summary_shows_the_papers_methods_in_its_order() -> None:
    figure = draw_summary(make_study(names=("kto", "ift", "ppo", "dpo", "sft", "orpo")))
    maps = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert maps == ["SFT", "ORPO", "IFT", "DPO"]
    assert [t.get_text() for t in panel(figure, "MSE, all cells").get_yticklabels()] == maps


def test_the_summarys_bars_are_those_of_the_methods_named_beside_them() -> None:
    study = make_study(names=("kto", "ift", "sft"))
    figure = draw_summary(study)
    for name, metric in {"MSE, optimal route": "mse_trajectory", "Success, sampled play": "success_sampled"}.items():
        axes = panel(figure, name)
        widths, errors = bars(axes, bar_containers(axes)[0])
        shown = [study.outcomes[2], study.outcomes[1]]
        assert widths == pytest.approx([outcome.mean(metric) for outcome in shown])
        assert errors == pytest.approx([outcome.standard_error(metric) for outcome in shown])


def test_the_summary_of_other_methods_shows_the_first_four() -> None:
    figure = draw_summary(make_study(names=TWELVE))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["M0", "M1", "M2", "M3"]


def test_twelve_methods_look_different() -> None:
    assert len(set(style.looks(12))) == 12


def test_names_that_would_overlap_are_pushed_apart() -> None:
    assert spread([0.1, 0.5, 0.9], gap=0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], gap=0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.98, 1.0, 1.0], gap=0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.0] * 21, gap=0.1) == pytest.approx(np.linspace(0, 1, 21).tolist())
    heights = sorted(np.random.default_rng(0).uniform(0, 1, 9))
    apart = spread(heights, gap=0.08)
    assert np.diff(apart).min() > 0.08 - 1e-9
    assert min(apart) >= 0
    assert max(apart) <= 1 + 1e-9


def test_letters_and_numbers_stay_on_the_card() -> None:
    figure = figures.draw_mse(make_study(names=TWELVE))
    figure.canvas.draw()
    width, height = figure.get_size_inches() * style.DPI
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
