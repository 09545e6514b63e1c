"""Pair losses against TRL 1.16, WPO and DiscoPOP, from logits to gradients with respect to logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deviations import TRL as TRL_1_16
from deviations import assert_same
from torch import Tensor

from lit_ift.losses import score_tokens
from lit_ift.losses.logprobs import log_sum_sq_probs
from lit_ift.losses.pair.objective import PairObjective
from lit_ift.losses.pair_sum import pair_objective

DATA = Path(__file__).parent / "data" / "pairs.npz"
EXACT = {"rtol": 1e-12, "atol": 1e-14}
DPO = {"name": "dpo", "beta": 0.1}
SFT = {"name": "sft_token_mean"}
TRL: dict[str, tuple[Any, dict[str, Any] | None]] = {
    "sigmoid": ("dpo", {"beta": 0.1}),
    "bco_pair": ("bco_pair", {"beta": 0.1}),
    "sigmoid_norm": ("sigmoid_norm", {"beta": 2.0}),
    "discopop": ("discopop", {"beta": 0.05}),
    "discopop/tau": ("discopop", {"beta": 0.5, "tau": 1.0}),
    "sft": ("sft_token_mean", {}),
    "ld_dpo": ("dpo", {"beta": 0.1, "ld_dpo": {"alpha": 0.5}}),
    "ld_dpo/0": ("dpo", {"beta": 0.1, "ld_dpo": {"alpha": 0.0}}),
    "ld_dpo/ipo": ("ipo", {"beta": 0.1, "average": True, "ld_dpo": {"alpha": 0.3}}),
    "wpo": ("dpo", {"beta": 0.1, "wpo": {"clamp": False}}),
    "wpo/bco_pair": ("bco_pair", {"beta": 0.1, "wpo": {"clamp": False}}),
    "irpo": ([DPO, SFT], None),
    "mpo": ([{**DPO, "weight": 0.8}, {"name": "bco_pair", "beta": 0.1, "weight": 0.2}, SFT], None),
    "smoothed": ([{"name": name, "label_smoothing": 0.1} for name in ("robust_dpo", "aot", "aot_unpaired")], None),
}
"""What ours is called, by TRL's case in ``record_pairs.py``."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    with np.load(DATA) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def identity(logits: Tensor) -> Tensor:
    return logits


def losses_of(loss: PairObjective, recorded: dict[str, Tensor], logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    labels = recorded["inputs/input_ids"].where(recorded["inputs/completion_mask"] == 1, -100)
    scores = score_tokens(logits, labels, identity, select=None, statistics={"log_sum_sq_probs": log_sum_sq_probs})
    reference = -score_tokens(recorded["inputs/reference_logits"], labels, identity, select=None).nll
    given: dict[str, Tensor] = {}
    for side, rows in (("chosen", slice(0, 4)), ("rejected", slice(4, 8))):
        given |= {
            f"{side}_logps": -scores.nll[rows].sum(-1),
            f"{side}_token_logps": -scores.nll[rows],
            f"reference_{side}_logps": reference[rows].sum(-1),
            f"reference_{side}_token_logps": reference[rows],
            f"{side}_lengths": scores.mask[rows].sum(-1).double(),
            f"{side}_mask": scores.mask[rows],
            f"{side}_token_log_sum_sq_probs": scores.statistics["log_sum_sq_probs"][rows],
        }
    return loss(given)


def test_every_recorded_case_is_covered(recorded: dict[str, Tensor]) -> None:
    assert {name.removesuffix("/mean") for name in recorded if name.endswith("/mean")} == {f"trl/{key}" for key in TRL}


@pytest.mark.parametrize("case", TRL)
def test_equals_trl(case: str, recorded: dict[str, Tensor]) -> None:
    loss, name = pair_objective(*TRL[case]), case.split("/")[0]
    name = name if name in ("ld_dpo", "wpo", "irpo", "mpo") else loss.name
    logits = recorded["inputs/logits"].clone().requires_grad_()
    losses, _ = losses_of(loss, recorded, logits)
    assert_same(name, TRL_1_16, "value", losses.mean(), recorded[f"trl/{case}/mean"], **EXACT)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    assert_same(name, TRL_1_16, "gradient", gradient, recorded[f"trl/{case}/grad"], **EXACT)
    if not loss.in_batch:
        assert_same(name, TRL_1_16, "value", losses, recorded[f"trl/{case}/alone"], **EXACT)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_wpo(smoothing: float, recorded: dict[str, Tensor]) -> None:
    loss = pair_objective("dpo", {"beta": 0.1, "label_smoothing": smoothing, "wpo": {}})
    logits = recorded["inputs/logits"].clone().requires_grad_()
    losses, metrics = losses_of(loss, recorded, logits)
    assert (metrics["wpo/weight"] == 1).any()  # The clamp is put to use,
    assert (metrics["wpo/weight"] < 1).any()  # and is not all there is.
    torch.testing.assert_close(metrics["wpo/weight"], recorded[f"wpo/{smoothing}/weights"], **EXACT)
    source = "wzhouad/WPO a104458"
    assert_same("wpo", source, "value", losses, recorded[f"wpo/{smoothing}/losses"], **EXACT)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    assert_same("wpo", source, "gradient", gradient, recorded[f"wpo/{smoothing}/grad"], **EXACT)


def test_equals_discopop(recorded: dict[str, Tensor]) -> None:
    logits = recorded["inputs/logits"].clone().requires_grad_()
    losses, _ = losses_of(pair_objective("discopop"), recorded, logits)
    source = "luchris429/DiscoPOP 3307865"
    assert_same("discopop", source, "value", losses, recorded["discopop/losses"], **EXACT)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    assert_same("discopop", source, "gradient", gradient, recorded["discopop/grad"], **EXACT)
