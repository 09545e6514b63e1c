"""The pictures of a study: what is on them, and that they are saved."""

from pathlib import Path

import numpy as np
import pytest
from lake_studies import LARGE, SMALL, WIDE, make_study
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from lit_ift.frozen_lake.figures import (
    ARROW,
    STEPS,
    draw_curves,
    draw_mse,
    draw_policies,
    draw_summary,
    draw_visits,
    greedy_actions,
    median_policy,
    save_animations,
    save_figures,
)
from lit_ift.frozen_lake.result import Outcome, Study

pytest.importorskip("gymnasium", reason="the lake is gymnasium's: pip install 'lit-ift[lake]'")

pytestmark = pytest.mark.slow

DRAW = {
    "policies": draw_policies,
    "visits": draw_visits,
    "mse": draw_mse,
    "curves": draw_curves,
    "summary": draw_summary,
}


def panel(figure: Figure, name: str) -> Axes:
    """The axes with that title or label."""
    texts = {axes: (axes.get_title(), axes.get_title(loc="left"), axes.get_xlabel()) for axes in figure.axes}
    (found,) = (axes for axes, names in texts.items() if any(text.startswith(name) for text in names if text))
    return found


@pytest.mark.parametrize("rows", [SMALL, LARGE, WIDE])
def test_every_picture_is_saved_and_the_same_study_gives_the_same_bytes(rows: list[str], tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        paths = save_figures(make_study(rows), tmp_path / run)
        assert {path.name for path in paths} == {f"{name}.png" for name in DRAW}
    for path in paths:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
        with Image.open(path) as image:
            assert image.width <= 1700


def test_a_study_without_curves_has_no_curves_picture(tmp_path: Path) -> None:
    study = make_study(names=("sft",))
    study.outcomes[0].curves.clear()
    assert {path.stem for path in save_figures(study, tmp_path)} == {"policies", "visits", "mse", "summary"}


@pytest.mark.parametrize("name", DRAW)
def test_titles_say_what_lake_and_how_many_seeds(name: str) -> None:
    assert "4x4 lake, not slippery · mean of 4 seeds" in DRAW[name](make_study()).get_suptitle()
    assert "2x5 lake, slippery · 1 seed" in DRAW[name](make_study(WIDE, seeds=1, slippery=True)).get_suptitle()


@pytest.mark.parametrize("rows", [SMALL, WIDE])
def test_arrows_are_as_long_and_as_opaque_as_actions_are_probable(rows: list[str]) -> None:
    study = make_study(rows)
    axes = panel(draw_policies(study), "IFT")
    policy = study.outcomes[1].policies.mean(axis=0)
    (arrows,) = (child for child in axes.get_children() if isinstance(child, Quiver))
    drawn = {}
    for x, y, u, v, colour in zip(arrows.X, arrows.Y, arrows.U, arrows.V, arrows.get_facecolors(), strict=True):
        action = int(np.argmax(STEPS @ (u, v)))
        drawn[int(y) * len(rows[0]) + int(x), action] = np.hypot(u, v), colour[3]
    open_cells = [cell for cell, letter in enumerate("".join(rows)) if letter in "SF"]
    assert set(drawn) == {(cell, action) for cell in open_cells for action in range(4)}
    for place, (length, opacity) in drawn.items():
        assert length == pytest.approx(ARROW * policy[place])
        assert opacity == pytest.approx(0.25 + 0.75 * policy[place])


def test_ties_are_all_emphasised_and_indifference_is_not() -> None:
    policy = np.array([[0.25] * 4, [0.4, 0.4, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    assert greedy_actions(policy).tolist() == [[False] * 4, [True, True, False, False], [False] * 3 + [True]]


def test_heat_maps_show_visits_on_one_scale() -> None:
    study = make_study(WIDE, ("sft", "ift", "dpo"))
    figure = draw_visits(study)
    images = [panel(figure, outcome.label).images[0] for outcome in study.outcomes]
    for image, outcome in zip(images, study.outcomes, strict=True):
        assert np.array_equal(image.get_array(), outcome.visits.reshape(2, 5))
        assert image.norm is images[0].norm
    assert images[0].norm.vmin == 0
    assert images[0].norm.vmax == max(outcome.visits.max() for outcome in study.outcomes)


def test_the_summary_shows_the_papers_methods_in_its_order_with_their_own_bars() -> None:
    study = make_study(names=("kto", "ift", "ppo", "dpo", "sft", "orpo"))
    figure = draw_summary(study)
    maps = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert maps == ["SFT", "ORPO", "IFT", "DPO"]
    by_label = {outcome.label: outcome for outcome in study.outcomes}
    axes = panel(figure, "MSE, all cells")
    assert [text.get_text() for text in axes.get_yticklabels()] == maps
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([by_label[m].mean("mse_all") for m in maps])
    errors = [segment[1, 0] - segment[0, 0] for segment in axes.containers[0].lines[2][0].get_segments()]
    assert errors == pytest.approx([2 * by_label[m].standard_error("mse_all") for m in maps])


def test_the_summary_of_other_methods_shows_the_first_four() -> None:
    figure = draw_summary(make_study(names=[f"m{i}" for i in range(12)]))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["M0", "M1", "M2", "M3"]


def test_curves_are_means_in_a_band_of_one_standard_error() -> None:
    study = make_study()
    axes = panel(draw_curves(study), "MSE to the optimal policy, all cells")
    bands = [child for child in axes.get_children() if isinstance(child, FillBetweenPolyCollection)]
    for line, band, outcome in zip(axes.lines, bands, study.outcomes, strict=True):
        values = outcome.curves["mse_all"]
        assert line.get_ydata() == pytest.approx(values.mean(axis=0))
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx((values.mean(axis=0) + error).max())
        assert heights.min() == pytest.approx((values.mean(axis=0) - error).min())


def test_a_method_plays_one_frame_a_cell_and_the_end_stays_in_view(tmp_path: Path) -> None:
    study = make_study(names=("sft",), seeds=1)
    down = np.eye(4)[[1] * 16][None]  # From the start through two cells into the hole below.
    outcome = Outcome(**{**vars(study.outcomes[0]), "policies": down})
    (path,) = save_animations(Study(**{**vars(study), "rows": ["SFG", "FFF", "HFF"], "outcomes": [outcome]}), tmp_path)
    with Image.open(path) as image:
        frames = sum(1 for _ in range(image.n_frames) if image.seek(_) is None)
        seconds = sum(image.info["duration"] for i in range(frames) if image.seek(i) is None) / 1000
    assert path.name == "play-sft.gif"
    assert frames >= 3
    assert seconds > 3


@pytest.mark.parametrize(("errors", "median"), [([3.0, 1.0, 2.0], 2), ([4.0, 1.0, 2.0, 3.0], 2), ([0.5], 0)])
def test_the_policy_is_that_of_the_median_seed(errors: list[float], median: int) -> None:
    outcome = make_study(seeds=len(errors)).outcomes[0]
    chosen = median_policy(Outcome(**{**vars(outcome), "metrics": {"mse_all": np.array(errors)}}))
    assert np.array_equal(chosen, outcome.policies[median])
