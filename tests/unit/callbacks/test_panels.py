"""Panels of curves: what is drawn of one run and of several."""

import math
from typing import Any

import numpy as np
import pytest

from lit_ift.callbacks.panels import filled_panels, panels_figure, running_mean


def points(**metrics: Any) -> dict[str, list[tuple[int, float]]]:
    return {name.replace("_", "/", 1): list(enumerate(values, 1)) for name, values in metrics.items()}


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_the_running_mean_is_that_of_a_window_that_is_cut_off_at_the_ends() -> None:
    values = np.arange(80.0) ** 2
    assert running_mean(values[:39]).tolist() == values[:39].tolist()
    found = running_mean(values)
    assert found[0] == pytest.approx((0 + 1 + 4) / 3, abs=1e-12)
    assert found[79] == pytest.approx((77**2 + 78**2 + 79**2) / 3, abs=1e-12)
    assert found[40] == pytest.approx(sum(i**2 for i in range(38, 43)) / 5, abs=1e-12)


def test_the_running_mean_leaves_out_what_is_not_finite() -> None:
    values = np.ones(40)
    values[[5, 20]] = math.nan, math.inf
    assert running_mean(values).tolist() == [1.0] * 40
    values[4:8] = math.nan
    assert np.isnan(running_mean(values)).nonzero()[0].tolist() == [5, 6]


def test_a_constant_is_told_and_not_drawn() -> None:
    run = points(train_loss=[3.0, 2.0], val_loss=[2.0, 2.0], train_lam=[0.2, 0.2], train_lr=[1e-5, 1e-5])
    figure = panels_figure([run], [["train/loss", "val/loss"], ["train/*lam"], ["train/lr"], ["train/none"]])
    assert titles(figure) == ["Loss"]
    assert figure.get_supxlabel() == "constant: train/lam 0.2, train/lr 1e-05"
    assert titles(panels_figure([points(train_lam=[0.2])], [["train/lam"]])) == ["λ, share of predictions in the input"]
    assert panels_figure([{}], [["train/loss"]]).get_supxlabel() == "nothing was logged"


def test_panels_say_what_they_show() -> None:
    run = points(
        train_loss=[float(i % 7) for i in range(100)], train_own=[1.0, 2.0], train_grad_norm=[1.0] * 99 + [1e3]
    )
    loss, own, norm = panels_figure([run], [["train/loss"], ["train/own"], ["train/grad_norm"]]).axes
    assert [axes.get_title(loc="left") for axes in (loss, own, norm)] == ["Loss", "train/own", "Norm of the gradient"]
    smooth, raw = loss.lines
    assert raw.get_ydata().tolist() == [float(i % 7) for i in range(100)]
    assert smooth.get_ydata()[50] == pytest.approx(np.mean([i % 7 for i in range(48, 53)]), abs=1e-12)
    assert (loss.get_yscale(), norm.get_yscale()) == ("linear", "log")
    assert len(own.lines) == 1
    rate = [float(i % 2) for i in range(80)]
    assert panels_figure([points(train_lr=rate)], [["train/lr"]]).axes[0].lines[0].get_ydata().tolist() == rate
    assert loss.get_xlabel() == "optimizer step"
    assert all(tick == int(tick) for tick in own.get_xticks())


def test_several_runs_are_a_mean_in_a_band_of_one_standard_error() -> None:
    runs = [points(train_loss=values) for values in ([1.0, 2.0, 9.0], [3.0, 2.0], [5.0, 5.0])]
    (axes,) = panels_figure(runs, [["train/loss"]]).axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 3], [2, 3]]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for step, error in ((1, 2 / math.sqrt(3)), (2, math.sqrt(3) / math.sqrt(3))):
        ys = corners[corners[:, 0] == step][:, 1]
        assert (ys.min(), ys.max()) == pytest.approx((3 - error, 3 + error), abs=1e-12)


def test_a_metric_that_a_run_lacks_is_not_drawn() -> None:
    runs = [points(train_loss=[1.0, 2.0], val_loss=[1.0, 2.0]), points(train_loss=[1.0, 2.0])]
    assert len(panels_figure(runs, [["train/loss", "val/loss"]]).axes[0].lines) == 1
    assert filled_panels({"train/loss": []}, [["train/loss"]]) == []
