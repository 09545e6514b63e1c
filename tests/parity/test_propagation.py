"""Weights, losses and gradients against numbers from the authors' own code; ``data`` says how they were made."""

import json
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from deviations import IFT_AUTHORS, assert_same

from lit_ift.losses import ift_loss, propagation_weights
from lit_ift.losses.ift import Norm, PropagationSide, Source

DATA = Path(__file__).parent / "data"
FIXTURE = json.loads((DATA / "propagation.json").read_text())
TOLERANCE = {"rtol": 0.0, "atol": 1e-10}


def test_fixture_covers_every_option() -> None:
    options = {(c["source"], c["side"], c["norm"]) for c in FIXTURE["cases"]}
    assert options == set(product(*map(get_args, (Source, PropagationSide, Norm))))
    # The authors' backward pass raises for left softmax, and the mask source has no gradient trouble.
    assert {c["norm"] for c in FIXTURE["cases"] if c["grad"] is None} == {"softmax"}


@pytest.mark.parametrize("row", [0, 1])
def test_weights_losses_and_gradients_equal_the_authors(row: int) -> None:
    mask = torch.tensor(FIXTURE["mask"][row]).bool()[None]
    for case in (c for c in FIXTURE["cases"] if c["row"] == row):
        nll = torch.tensor(FIXTURE["nll"][row], dtype=torch.float64)[None].requires_grad_()
        options = {k: case[k] for k in ("gamma", "source", "side", "norm")}
        losses, _ = ift_loss(nll, mask, **options)
        (gradient,) = torch.autograd.grad(losses.sum(), nll)
        weights = torch.tensor(case["weights"], dtype=torch.float64)
        torch.testing.assert_close(propagation_weights(nll, mask, **options)[0].detach(), weights, **TOLERANCE)
        assert_same("propagation", IFT_AUTHORS, "value", losses.squeeze(), case["loss"], **TOLERANCE)
        if case["grad"] is not None:
            expected = torch.tensor(case["grad"], dtype=torch.float64)
            assert_same("propagation", IFT_AUTHORS, "gradient", gradient[0], expected, **TOLERANCE)


def test_rows_do_not_couple() -> None:
    """Both rows at once give what each gives alone: the authors' right side does not."""
    nll = torch.tensor(FIXTURE["nll"], dtype=torch.float64)
    mask = torch.tensor(FIXTURE["mask"]).bool()
    for case in FIXTURE["cases"]:
        options = {k: case[k] for k in ("gamma", "source", "side", "norm")}
        weights = torch.tensor(case["weights"], dtype=torch.float64)
        torch.testing.assert_close(propagation_weights(nll, mask, **options)[case["row"]], weights, **TOLERANCE)


def test_a_batch_equals_the_authors() -> None:
    """Their left side does not couple rows, so a batch of them compares as well."""
    index, arrays = json.loads((DATA / "propagation_batch.json").read_text()), np.load(DATA / "propagation_batch.npz")
    mask = torch.from_numpy(arrays["mask"]).bool()
    for case in index["cases"]:
        logps = torch.from_numpy(arrays["logps"]).double().requires_grad_()
        options = {name: case[name] for name in ("gamma", "source", "side", "norm")}
        losses, _ = ift_loss(-logps, mask, **options)
        (gradient,) = torch.autograd.grad(losses.mean(), logps)
        # For gamma = 0 the authors return ones off the mask as well, where they meet log-probabilities of 0.
        weights = torch.from_numpy(arrays[f"{case['key']}__weight"]) * mask
        torch.testing.assert_close(propagation_weights(-logps, mask, **options).detach(), weights, **TOLERANCE)
        assert_same("propagation", IFT_AUTHORS, "value", losses.mean(), case["loss"], **TOLERANCE)
        if f"{case['key']}__grad" in arrays:  # Their backward pass raises for softmax.
            expected = torch.from_numpy(arrays[f"{case['key']}__grad"]) * mask
            assert_same("propagation", IFT_AUTHORS, "gradient", gradient, expected, **TOLERANCE)
        else:
            assert case["norm"] == "softmax"
