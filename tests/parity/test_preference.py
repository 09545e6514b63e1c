"""Pair losses against the IFT authors' code and TRL 1.16, with gradients with respect to sums over answers.

``data`` says how the numbers were made; ``tests/unit/losses`` has cases derived by hand.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deviations import IFT_AUTHORS, TRL, assert_same
from torch import Tensor

from lit_ift.losses import PairLoss

DATA = Path(__file__).parent / "data"
TOLERANCE = {"rtol": 0.0, "atol": 1e-9}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "official_dpo__beta0.1__ls0__reffree0": ("dpo", {"beta": 0.1}),
    "official_dpo__beta0.1__ls0.1__reffree0": ("dpo", {"beta": 0.1, "label_smoothing": 0.1}),
    "official_dpo__beta0.5__ls0__reffree0": ("dpo", {"beta": 0.5}),
    "official_dpo__beta0.5__ls0.1__reffree0": ("dpo", {"beta": 0.5, "label_smoothing": 0.1}),
    "official_ipo__beta0.1__reffree1": ("ipo", {"beta": 0.1, "reference_free": True}),
    "official_ipo__beta0.5__reffree1": ("ipo", {"beta": 0.5, "reference_free": True}),
    "official_branch_ipo": ("ipo", {"beta": 0.1}),
    "official_orpo__beta0.25": ("orpo", {"beta": 0.25}),
    "trl_dpo_hinge__beta0.1__ls0": ("hinge", {"beta": 0.1}),
    "trl_dpo_nca_pair__beta0.1__ls0": ("nca", {"beta": 0.1}),
    "trl_dpo_robust__beta0.1__ls0.1": ("robust_dpo", {"beta": 0.1, "label_smoothing": 0.1}),
    "trl_dpo_sppo_hard__beta0.1__ls0": ("sppo_hard", {"beta": 0.1}),
    "trl_dpo_apo_down__beta0.1__ls0": ("apo_down", {"beta": 0.1}),
    # TRL's sigmoid ignores its label_smoothing.
    "trl_dpo_sigmoid__beta0.1__ls0.1": ("dpo", {"beta": 0.1}),
    "trl_dpo_sigmoid__beta0.1__ls0__js_divergence": ("f_dpo", {"beta": 0.1, "divergence": "js"}),
    # TRL's simpo_gamma is the margin itself, not its ratio to beta.
    "trl_cpo_simpo__beta2__ls0__gamma1": ("simpo", {"beta": 2.0, "gamma_over_beta": 0.5}),
    "trl_cpo_simpo__beta0.1__ls0.1__gamma0.5": (
        "simpo",
        {"beta": 0.1, "gamma_over_beta": 5.0, "label_smoothing": 0.1},
    ),
    "trl_cpo_simpo__beta2__ls0__gamma1__alpha0.25": ("simpo", {"beta": 2.0, "gamma_over_beta": 0.5, "alpha": 0.25}),
    # The nll of TRL's CPO and TPO is added outside the functions that were recorded.
    "trl_cpo_sigmoid__beta0.1__ls0.1": ("cpo", {"beta": 0.1, "label_smoothing": 0.1, "sft_weight": 0.0}),
    "trl_cpo_ipo__beta0.1__ls0": ("cpo", {"beta": 0.1, "loss_type": "ipo", "sft_weight": 0.0}),
    "trl_tpo_sigmoid__beta0.01__ls0": ("tpo", {"beta": 0.01, "alpha": 0.0}),
    "trl_tpo_hinge__beta0.1__ls0": ("tpo", {"beta": 0.1, "loss_type": "hinge", "alpha": 0.0}),
    "trl_tpo_tpo-l__beta2__ls0__gamma1": ("tpo_l", {"beta": 2.0, "gamma": 1.0, "alpha": 0.0}),
}
"""Recorded key -> loss and options, where values compare pair by pair."""

SORTED = {
    "trl_dpo_aot__beta0.1__ls0.1": "aot",
    "trl_dpo_aot_unpaired__beta0.1__ls0.1": "aot_unpaired",
}
EXO = "trl_dpo_exo_pair__beta0.1__ls0.001"
REJECTED_FREE = "official_dpo__beta0.1__ls0__reffree0__rejfree1"
TOKEN_MEAN = "trl_dpo_sft__beta0.1__ls0"
ODDS_ONLY = "trl_orpo__beta0.1"
ARRAYS_ONLY = {"trl_cpo_simpo__beta2__ls0__gamma1__alpha0.25"}
"""Recorded in the arrays, but not in the list of cases."""

LEAVES = {
    "chosen_logps": "policy_chosen",
    "rejected_logps": "policy_rejected",
    "reference_chosen_logps": "reference_chosen",
    "reference_rejected_logps": "reference_rejected",
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(DATA / "preference.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def inputs_of(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    inputs = {name: arrays[f"{leaf}_logps"].clone().requires_grad_() for name, leaf in LEAVES.items()}
    inputs |= {f"{side}_lengths": arrays[f"{side}_lengths"].double() for side in ("chosen", "rejected")}
    # A third answer was not recorded; its weight is 0 in every case.
    return inputs | {"gold_logps": torch.full((8,), -3.0).double(), "gold_lengths": torch.ones(8).double()}


def assert_recorded(
    objective: str,
    values: Tensor,
    loss: Tensor,
    inputs: Mapping[str, Tensor],
    arrays: Mapping[str, Tensor],
    key: str,
    *,
    recorded: str = "losses",
) -> None:
    """The values are those recorded, and ``loss`` has their gradients, at least with respect to the chosen answers."""
    source = IFT_AUTHORS if key.startswith("official_") else TRL
    assert_same(objective, source, "value", values, arrays[f"{key}__{recorded}"], **TOLERANCE)
    compared = [name for name, leaf in LEAVES.items() if f"{key}__grad_{leaf}" in arrays]
    assert "chosen_logps" in compared
    gradients = torch.autograd.grad(loss, [inputs[name] for name in compared], materialize_grads=True)
    for name, gradient in zip(compared, gradients, strict=True):
        assert_same(objective, source, "gradient", gradient, arrays[f"{key}__grad_{LEAVES[name]}"], **TOLERANCE)


def test_every_recorded_case_is_covered() -> None:
    recorded = {case["key"] for case in json.loads((DATA / "preference.json").read_text())["cases"]}
    here = {*CASES, *SORTED, EXO, REJECTED_FREE, TOKEN_MEAN, ODDS_ONLY}
    of_kto = {key for key in recorded if key.startswith("trl_kto_")}  # not a pair loss
    assert recorded == here - ARRAYS_ONLY | of_kto


@pytest.mark.parametrize("key", CASES)
def test_values_rewards_and_gradients_equal_the_recorded_ones(key: str, arrays: dict[str, Tensor]) -> None:
    inputs = inputs_of(arrays)
    losses, metrics = PairLoss(*CASES[key])(inputs)
    assert_recorded(CASES[key][0], losses, losses.mean(), inputs, arrays, key)
    if key.startswith(("official_dpo", "trl_cpo")):
        for side in ("chosen", "rejected"):
            torch.testing.assert_close(metrics[f"rewards/{side}"], arrays[f"{key}__{side}_rewards"], **TOLERANCE)


@pytest.mark.parametrize("key", ["official_ipo__beta0.1__reffree1", "official_ipo__beta0.5__reffree1"])
def test_ipo_rewards_without_reference(key: str, arrays: dict[str, Tensor]) -> None:
    """The authors report rewards against the reference even where their loss ignores it; ours are the loss's."""
    inputs = inputs_of(arrays)
    name, options = CASES[key]
    _, metrics = PairLoss(name, options)(inputs)
    for side in ("chosen", "rejected"):
        with_reference = metrics[f"rewards/{side}"] - options["beta"] * arrays[f"reference_{side}_logps"]
        torch.testing.assert_close(with_reference, arrays[f"{key}__{side}_rewards"], **TOLERANCE)


def test_rewards_equal_the_metrics_of_the_authors(arrays: dict[str, Tensor]) -> None:
    cases = {case["key"]: case for case in json.loads((DATA / "preference.json").read_text())["cases"]}
    _, metrics = PairLoss("ipo", {"beta": 0.1})(inputs_of(arrays))
    recorded = cases["official_branch_ipo"]["metrics"]
    for name in ("chosen", "rejected", "accuracies", "margins"):
        expected = torch.tensor(recorded[f"rewards_train/{name}"]).double()
        torch.testing.assert_close(metrics[f"rewards/{name}"], expected, rtol=0, atol=1e-6)
    _, metrics = PairLoss("orpo", {"beta": 0.25})(inputs_of(arrays))
    sft = cases["official_orpo__beta0.25"]["metrics"]["loss/train_sft"]
    assert metrics["nll_loss"].mean().item() == pytest.approx(sft, abs=1e-9)


@pytest.mark.parametrize("key", SORTED)
def test_optimal_transport_equals_trl(key: str, arrays: dict[str, Tensor]) -> None:
    """TRL leaves the losses in sorted order; ours stand at the pair whose rank it is."""
    inputs = inputs_of(arrays)
    losses, _ = PairLoss(SORTED[key], {"beta": 0.1, "label_smoothing": 0.1})(inputs)
    other = "rejected_logps" if SORTED[key] == "aot" else "reference_chosen_logps"
    order = (inputs["chosen_logps"] - inputs[other]).argsort()
    assert not torch.equal(order, torch.arange(8))
    assert_recorded(SORTED[key], losses[order], losses.mean(), inputs, arrays, key)


def test_exo_equals_trl_but_for_the_logarithms_of_the_label(arrays: dict[str, Tensor]) -> None:
    """TRL takes log(1 - ε) and log(ε) in float32, and multiplies them by q = σ(h) and 1 - q in float64."""
    inputs = inputs_of(arrays)
    losses, _ = PairLoss("exo", {"beta": 0.1, "label_smoothing": 1e-3})(inputs)
    chosen = inputs["chosen_logps"] - inputs["reference_chosen_logps"]
    rejected = inputs["rejected_logps"] - inputs["reference_rejected_logps"]
    q = (0.1 * (chosen - rejected)).sigmoid()
    # Rounded once, as TRL's were where they were recorded; another processor's float32 logarithm may end otherwise.
    epsilon = float(np.float32(1e-3))
    losses = losses + q * (math.log1p(-1e-3) - float(np.float32(math.log1p(-epsilon))))
    losses = losses + (1 - q) * (math.log(1e-3) - float(np.float32(math.log(epsilon))))
    assert_recorded("exo", losses, losses.mean(), inputs, arrays, EXO)


def test_dpo_without_a_rejected_answer_equals_the_authors(arrays: dict[str, Tensor]) -> None:
    """Their ``rejected_free`` is DPO with a rejected answer that policy and reference agree on."""
    inputs = inputs_of(arrays)
    inputs["rejected_logps"] = inputs["reference_rejected_logps"]
    losses, metrics = PairLoss("dpo", {"beta": 0.1})(inputs)
    torch.testing.assert_close(metrics["rewards/chosen"], arrays[f"{REJECTED_FREE}__chosen_rewards"], **TOLERANCE)
    assert_recorded("dpo", losses, losses.mean(), inputs, arrays, REJECTED_FREE)


def test_sft_weighted_by_length_equals_trl(arrays: dict[str, Tensor]) -> None:
    inputs = inputs_of(arrays)
    losses, _ = PairLoss("sft")(inputs)
    loss = (losses * inputs["chosen_lengths"]).sum() / inputs["chosen_lengths"].sum()
    assert_recorded("sft_on_pairs", loss.expand(8), loss, inputs, arrays, TOKEN_MEAN)


def test_odds_ratio_term_of_orpo_equals_trl(arrays: dict[str, Tensor]) -> None:
    inputs = inputs_of(arrays)
    losses, metrics = PairLoss("orpo", {"beta": 0.1})(inputs)
    terms = losses + inputs["chosen_logps"] / inputs["chosen_lengths"]  # less the nll
    torch.testing.assert_close(metrics["log_odds_ratio"], arrays[f"{ODDS_ONLY}__log_odds"], **TOLERANCE)
    assert_recorded("orpo", terms, terms.mean(), inputs, arrays, ODDS_ONLY, recorded="or_losses")
