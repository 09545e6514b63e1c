"""The pictures of a study: what is on them, how large they are, and that they are saved."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from lake_pictures import bar_containers, bars, panel
from lake_studies import LARGE, SMALL, WIDE, make_study
from matplotlib.figure import Figure
from PIL import Image

from lit_ift.frozen_lake import style
from lit_ift.frozen_lake.figures import draw_curves, draw_mse, draw_policies, draw_summary, draw_visits, save_figures

pytestmark = pytest.mark.slow

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


def test_letters_and_numbers_stay_on_the_card() -> None:
    figure = draw_mse(make_study(names=TWELVE))
    figure.canvas.draw()
    width, height = figure.get_size_inches() * style.DPI
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
