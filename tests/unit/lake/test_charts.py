"""Bars and curves are means with standard errors."""

import numpy as np
import pytest
from lake_pictures import bar_containers, bars, panel
from lake_studies import make_study
from matplotlib.collections import FillBetweenPolyCollection

from lit_ift.frozen_lake.charts import spread
from lit_ift.frozen_lake.figures import draw_curves, draw_mse, draw_summary

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
