"""Losses against the authors' own code, values and gradients in float64; `record.py` made the numbers.

A departure from their code is written out where it is compared, so that it is exact as well.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deviations import assert_same
from torch import Tensor

from lit_ift.losses import PairLoss
from lit_ift.losses.kto import kl_baseline, kto_loss
from lit_ift.losses.logprobs import score_tokens
from lit_ift.losses.pair.by_token import importance_weights, tis_dpo_loss
from lit_ift.losses.token_kl import token_kl
from lit_ift.losses.uft import uft_loss

TOLERANCE = {"rtol": 0.0, "atol": 1e-12}
SOURCES = {
    "tdpo": "Vance0124/Token-level-Direct-Preference-Optimization 2a736ec",
    "tis_dpo": "exlaw/TIS-DPO cbad7c1",
    "rpo": "yinyueqin/relative-preference-optimization c1b5163",
    "f_dpo": "alecwangcq/f-divergence-dpo 07d9369",
    "kto": "ContextualAI/HALOs 4831988",
    **dict.fromkeys(("asft", "apo_zero"), "turbo-llm/turbo-alignment 72e737d"),
    "uft": "ZhichaoWang970201/UNA-UFT 9a49524",
}
SUMS = ("policy_chosen_logps", "policy_rejected_logps")
BETA = 0.1

Arrays = dict[str, Tensor]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    with np.load(Path(__file__).parent / "data" / "official.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def leaves_of(arrays: Arrays, *names: str) -> Arrays:
    return {name: arrays[f"inputs/{name}"].clone().requires_grad_() for name in names}


def assert_recorded(arrays: Arrays, key: str, losses: Tensor, leaves: Arrays) -> None:
    """Losses, and the gradient of their mean with respect to each leaf, are the recorded ones."""
    objective = {"UNA": "uft", "kto": "kto"}.get(key.split("_")[0], key.split("/")[0])
    assert_same(objective, SOURCES[objective], "value", losses, arrays[f"{key}/losses"], **TOLERANCE)
    for name, gradient in zip(leaves, torch.autograd.grad(losses.mean(), list(leaves.values())), strict=True):
        expected = arrays[f"{key}/grad/{name}"]
        assert expected.abs().max() > 1e-4
        assert_same(objective, SOURCES[objective], "gradient", gradient, expected, **TOLERANCE)


def assert_rewards(arrays: Arrays, key: str, metrics: Arrays) -> None:
    for side in ("chosen", "rejected"):
        torch.testing.assert_close(metrics[f"rewards/{side}"], arrays[f"{key}/{side}_rewards"], **TOLERANCE)


def pair_loss(arrays: Arrays, name: str, **options: Any) -> tuple[Tensor, Arrays, Arrays]:
    """Losses, metrics and leaves of a loss of whole answers."""
    leaves = leaves_of(arrays, *SUMS)
    given = {name.removeprefix("policy_"): value for name, value in leaves.items()}
    given |= {name.removeprefix("inputs/"): value for name, value in arrays.items() if name.startswith("inputs/")}
    losses, metrics = PairLoss(name, options)(given)
    return losses, metrics, leaves


# By token, from logits on ---------------------------------------------------------------------------------------


def identity(hidden: Tensor) -> Tensor:
    """A head for hidden states that are logits."""
    return hidden


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen and rejected answers."""
    return values[:3], values[3:]


@pytest.fixture
def answers(arrays: Arrays) -> dict[str, Any]:
    """Log-probabilities of tokens under policy and reference, with the policy's logits as leaf."""
    leaves = leaves_of(arrays, "logits")
    labels, reference = arrays["inputs/labels"], arrays["inputs/reference_logits"]
    scores = score_tokens(leaves["logits"], labels, identity)
    return {
        "leaves": leaves,
        "labels": labels,
        "logps": -scores.nll,
        "reference_logps": -score_tokens(reference, labels, identity).nll,
        "mask": scores.mask,
        "weights": arrays["inputs/token_weights"][:, 1:] * scores.mask,
    }


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_tdpo(arrays: Arrays, answers: dict[str, Any], variant: str) -> None:
    leaves = answers["leaves"]
    divergence = token_kl(
        leaves["logits"], arrays["inputs/reference_logits"], answers["labels"], identity, identity, chunk_size=4
    )
    given: Arrays = {}
    for name, values in (("", answers["logps"].sum(-1)), ("reference_", answers["reference_logps"].sum(-1))):
        given[f"{name}chosen_logps"], given[f"{name}rejected_logps"] = halves(values)
    given["chosen_token_kl"], given["rejected_token_kl"] = halves(divergence)
    losses, metrics = PairLoss("tdpo", {"beta": BETA, "variant": variant})(given)
    assert_recorded(arrays, f"tdpo/{variant}", losses, leaves)
    assert_rewards(arrays, f"tdpo/{variant}", metrics)


@pytest.mark.parametrize(("key", "eta"), [("weighted", 0.0), ("weighted_kl", 0.5)])
def test_tis_dpo(arrays: Arrays, answers: dict[str, Any], key: str, eta: float) -> None:
    """Their α is η here. Inside σ they weight the divergences by it, in the rewards they do not."""
    divergence = token_kl(
        answers["leaves"]["logits"],
        arrays["inputs/reference_logits"],
        answers["labels"],
        identity,
        identity,
        reverse=True,
        chunk_size=4,
    )
    parts = [halves(answers[name]) for name in ("logps", "reference_logps", "weights")]
    losses, metrics = tis_dpo_loss(
        *(side for both in (*parts, halves(divergence)) for side in both), beta=BETA, eta=eta
    )
    assert_recorded(arrays, f"tis_dpo/{key}", losses, answers["leaves"])
    weighted = (BETA * answers["weights"] * divergence.detach()).sum(-1)
    for side, more in zip(("chosen", "rejected"), halves(weighted * (1 - eta) if eta else 0 * weighted), strict=True):
        expected = arrays[f"tis_dpo/{key}/{side}_rewards"]
        torch.testing.assert_close(metrics[f"tis_dpo/{side}"] - more, expected, **TOLERANCE)


def test_weights_of_tis_dpo_are_clamped_as_the_authors_do(arrays: Arrays) -> None:
    """Theirs are a straight line, from 0.7 to 1.3 over [-1.5, 1.5]; ours, as in the paper, the exponential."""
    ratios = arrays["inputs/log_ratios"]
    weights = importance_weights(ratios, torch.ones_like(ratios, dtype=torch.bool), low=-1.5, high=1.5)
    torch.testing.assert_close(1 + 0.2 * weights.log(), arrays["tis_dpo/weights"], **TOLERANCE)


# Of whole answers -----------------------------------------------------------------------------------------------


def test_rpo(arrays: Arrays) -> None:
    """The authors take the mean over a row of contrasts; the default here is the sum."""
    losses, metrics, leaves = pair_loss(arrays, "rpo", beta=BETA, temperature=0.5, reduction="mean")
    assert_recorded(arrays, "rpo", losses, leaves)
    assert_rewards(arrays, "rpo", metrics)
    losses, _, leaves = pair_loss(arrays, "rpo", beta=BETA, temperature=0.5)
    assert_recorded(arrays, "rpo", losses / len(losses), leaves)


@pytest.mark.parametrize(
    ("divergence", "alpha", "at_1"),
    [
        ("reverse_kl", None, 0.0),
        ("forward_kl", None, 1.0),
        ("js", None, math.log(2) - 0.6931471806),
        ("alpha", 0.4, 2.5),
    ],
)
def test_f_dpo(arrays: Arrays, divergence: str, alpha: float | None, at_1: float) -> None:
    """The authors leave out the constant of f' (of JS its digits after the tenth), which rewards here have."""
    losses, metrics, leaves = pair_loss(arrays, "f_dpo", beta=BETA, divergence=divergence, alpha=alpha)
    key = f"f_dpo/{divergence}"
    assert_recorded(arrays, key, losses, leaves)
    assert_rewards(arrays, key, {name: values - BETA * at_1 for name, values in metrics.items()})


def test_apo_zero(arrays: Arrays) -> None:
    losses, metrics, leaves = pair_loss(arrays, "apo_zero", beta=BETA)
    assert_recorded(arrays, "apo_zero", losses, leaves)
    assert_rewards(arrays, "apo_zero", metrics)


def test_asft(arrays: Arrays) -> None:
    """Their β inside the sigmoid is 1, as in the paper; their weight of the two terms is β here."""
    losses, metrics, leaves = pair_loss(arrays, "asft", beta=0.3)
    assert_recorded(arrays, "asft", losses, leaves)
    assert_rewards(arrays, "asft", {name: values / 0.3 for name, values in metrics.items()})


@pytest.mark.parametrize("key", ["kto", "kto_swapped"])
def test_kto(arrays: Arrays, key: str) -> None:
    """Their rewards are without β. What they call an empty sequence is a row of weight 0 here."""
    leaves = leaves_of(arrays, "policy_chosen_tokens", "policy_rejected_tokens")
    policy = torch.cat(list(leaves.values())).sum(-1)
    reference = torch.cat([arrays[f"inputs/reference_{side}_tokens"] for side in ("chosen", "rejected")]).sum(-1)
    mismatched = [arrays[f"inputs/{who}_mismatched_tokens"] for who in ("policy", "reference")]
    weights = (mismatched[0] != 0).any(-1).double()
    assert weights.sum() == 7
    order = 1 if key == "kto" else -1
    baseline = kl_baseline(*(tokens.sum(-1) for tokens in mismatched[::order]), weights)
    torch.testing.assert_close(baseline, arrays[f"{key}/baseline"], **TOLERANCE)
    assert (baseline > 1) == (key == "kto")
    losses, metrics = kto_loss(
        policy, reference, torch.arange(16) < 8, baseline, beta=BETA, desirable_weight=1.33, undesirable_weight=0.75
    )
    assert_recorded(arrays, key, losses, leaves)
    rewards = torch.cat([arrays[f"{key}/{side}_rewards"] for side in ("chosen", "rejected")])
    torch.testing.assert_close(metrics["rewards"], BETA * rewards, **TOLERANCE)


def right_and_wrong(ratings: Tensor) -> Tensor:
    return torch.tensor([1.0, 0.0]).double().expand_as(ratings)


@pytest.mark.parametrize(
    ("key", "scores_of", "discrepancy"),
    [
        ("UNA_score", torch.Tensor.double, "mse"),
        ("UNA_MSE", right_and_wrong, "mse"),
        ("UNA_BCE", right_and_wrong, "bce"),
    ],
)
def test_una(arrays: Arrays, key: str, scores_of: Callable[[Tensor], Tensor], discrepancy: Any) -> None:
    """UFT's losses of scored and of right and wrong answers are UNA's, whose code adds up both answers of a pair."""
    leaves, ratings = leaves_of(arrays, *SUMS), arrays["inputs/ratings"]
    references = [arrays[f"inputs/{name.replace('policy', 'reference')}"] for name in SUMS]
    losses = torch.zeros(8).double()
    for side, (policy, reference) in enumerate(zip(leaves.values(), references, strict=True)):
        of_side, _ = uft_loss(BETA * (policy - reference), scores_of(ratings)[:, side], discrepancy=discrepancy)
        losses = losses + torch.where(ratings[:, side] >= 0, of_side, 0)
    assert (ratings < 0).sum() == 2
    assert_recorded(arrays, key, losses, leaves)
