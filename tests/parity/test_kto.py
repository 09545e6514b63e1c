"""KTO and unpaired APO-zero against TRL's values and gradients, as ``data`` has them.

There the 8 chosen answers are desirable, then the 8 rejected ones undesirable; gradients are of the mean over all 16.
``kl_swapped`` swaps policy and reference in the baseline alone, which makes it negative before it is cut at 0.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from deviations import TRL, assert_same

from lit_ift.losses.kto import kto_loss

DATA = Path(__file__).parent / "data"
VARIANTS = {"kto": "kto", "apo_zero_unpaired": "apo_zero"}
TOLERANCE = {"rtol": 0.0, "atol": 1e-9}


def test_kto_equals_trl() -> None:
    index, arrays = json.loads((DATA / "preference.json").read_text()), np.load(DATA / "preference.npz")
    cases = [case for case in index["cases"] if case["key"].startswith("trl_kto_")]
    assert len(cases) == 3
    sides = torch.arange(16) < 8
    seen = 0
    for case in cases:
        options = dict(case["kwargs"])
        variant = VARIANTS[options.pop("loss_type")]
        for key, kl in ((case["key"], case["kl"]), (f"{case['key']}__kl_swapped", max(-case["kl_before_clamp"], 0.0))):
            if f"{key}__losses" not in arrays:
                assert variant == "apo_zero"
                continue
            seen += 1
            logps, reference = (
                torch.from_numpy(np.concatenate([arrays[f"{who}_{side}_logps"] for side in ("chosen", "rejected")]))
                for who in ("policy", "reference")
            )
            losses, _ = kto_loss(
                logps.requires_grad_(), reference, sides, torch.tensor(kl).double(), variant=variant, **options
            )
            (gradient,) = torch.autograd.grad(losses.mean(), logps)
            expected = np.concatenate([arrays[f"{key}__grad_policy_{side}"] for side in ("chosen", "rejected")])
            assert_same("kto", TRL, "value", losses, torch.from_numpy(arrays[f"{key}__losses"]), **TOLERANCE)
            assert_same("kto", TRL, "gradient", gradient, torch.from_numpy(expected), **TOLERANCE)
            if key == case["key"]:
                assert losses.mean().item() == pytest.approx(case["loss"], abs=1e-9)
    assert seen == 5
