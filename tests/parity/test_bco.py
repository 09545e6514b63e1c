"""BCO of thumbs against its authors' trainer, and MPO with BCO against InternVL's, over three steps; `record_bco.py`.

Theirs take the rewards of a step into the shift before its loss, ours after it. So ours are given their shift, and the
running mean is compared apart.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from deviations import assert_same
from torch import Tensor

from lit_ift.losses import score_tokens
from lit_ift.losses.kto import kto_loss
from lit_ift.losses.pair_sum import pair_objective
from lit_ift.modules.feedback_module import RunningMean

TRAINER, INTERNVL = "huggingface/trl f2cd577", "OpenGVLab/InternVL 2410d1d"
EXACT = {"rtol": 1e-12, "atol": 1e-14}
STEPS, FACTORS = range(3), (1.0, 0.5, 0.8)
BETA, PAIRS = 0.3, 4
SIDES = {"chosen": slice(0, PAIRS), "rejected": slice(PAIRS, 2 * PAIRS)}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "data" / "bco.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def logits_of(recorded: dict[str, Tensor], step: int) -> Tensor:
    return (FACTORS[step] * recorded["inputs/logits"]).requires_grad_()


def sums(recorded: dict[str, Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the trained tokens of each answer, and their number."""
    labels = recorded["inputs/input_ids"].where(recorded["inputs/completion_mask"] == 1, -100)
    scores = score_tokens(logits, labels, lambda states: states, select=None)
    return -scores.nll.sum(-1), scores.mask.sum(-1).double()


@pytest.mark.parametrize("step", STEPS)
def test_bco_of_thumbs(step: int, recorded: dict[str, Tensor]) -> None:
    logits, judged = logits_of(recorded, step), slice(0, PAIRS + 2)
    policy, reference = sums(recorded, logits)[0], sums(recorded, recorded["inputs/reference_logits"])[0]
    is_good = torch.arange(PAIRS + 2) < PAIRS
    shift = recorded[f"bco/{step}/delta"] / BETA
    losses, _ = kto_loss(policy[judged], reference[judged], is_good, shift, beta=BETA, variant="bco")
    assert_same("kto", TRAINER, "value", losses, recorded[f"bco/{step}/losses"], **EXACT)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    assert_same("kto", TRAINER, "gradient", gradient, recorded[f"bco/{step}/grad"], **EXACT)


@pytest.mark.parametrize("step", STEPS)
def test_mpo(step: int, recorded: dict[str, Tensor]) -> None:
    loss = pair_objective(
        [
            {"name": "dpo", "weight": 0.8, "beta": BETA},
            {"name": "bco", "weight": 0.2, "beta": BETA},
            {"name": "sft_token_mean"},
        ]
    )
    logits = logits_of(recorded, step)
    (policy, lengths), (reference, _) = (
        sums(recorded, given) for given in (logits, recorded["inputs/reference_logits"])
    )
    given = {"log_ratio_mean": (recorded[f"mpo/{step}/delta"] / BETA).expand(PAIRS)}
    for side, rows in SIDES.items():
        given |= {f"{side}_logps": policy[rows], f"reference_{side}_logps": reference[rows]}
        given[f"{side}_lengths"] = lengths[rows]
    losses, _ = loss(given)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    for name in ("mpo", "bco"):  # One term of it is the only recorded case of `bco` on pairs.
        assert_same(name, INTERNVL, "value", losses.mean(), recorded[f"mpo/{step}/loss"], **EXACT)
        assert_same(name, INTERNVL, "gradient", gradient, recorded[f"mpo/{step}/grad"], **EXACT)


@pytest.mark.parametrize(("case", "answers"), [("bco", PAIRS + 2), ("mpo", 2 * PAIRS)])
def test_the_running_mean(case: str, answers: int, recorded: dict[str, Tensor]) -> None:
    reference, mean = sums(recorded, recorded["inputs/reference_logits"])[0], RunningMean()
    for step in STEPS:
        policy = sums(recorded, logits_of(recorded, step))[0]
        mean.add((policy - reference)[:answers].mean().item())
        assert BETA * mean.mean == pytest.approx(recorded[f"{case}/{step}/delta"].item(), rel=1e-12)
