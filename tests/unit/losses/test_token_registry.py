"""A token loss is found by name or import path, and tells what it asks for before a model is loaded."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_ift.losses import TOKEN_INPUTS, TokenLoss
from lit_ift.losses.logprobs import entropy, log_sum_sq_probs, top_entropy

ALL = ", ".join(TOKEN_INPUTS)
OWN = """
from lit_ift.options import Positive

def squared(token_logps, mask, *, scale: Positive = 2.0):
    return (scale * token_logps.square() * mask).sum(-1) / mask.sum(-1).clamp(min=1), {}

def of_entropy(nll, mask, token_entropies, token_log_sum_sq_probs):
    return (nll * token_entropies * mask).sum(-1), {}

def top(nll, token_top_entropies):
    return (nll * token_top_entropies).sum(-1), {}

def old(nll, old_token_logps):
    return (nll * old_token_logps).sum(-1), {}

def per_token(nll, mask):
    return nll * mask, {}

def pairs(chosen_logps):
    return -chosen_logps, {}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_token_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_loss_of_ones_own() -> None:
    loss = TokenLoss("own_token_losses.squared", {"scale": 3.0})
    assert loss.inputs == ["token_logps", "mask"]
    assert loss.row_wise
    assert (loss.needs_reference, loss.takes_data_weights, loss.statistics) == (False, False, {})
    nll, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]])
    assert loss({"nll": nll, "token_logps": -nll, "mask": mask})[0].tolist() == [7.5]


@pytest.mark.usefixtures("own")
def test_only_what_is_asked_for_is_computed() -> None:
    assert set(TokenLoss("own_token_losses.of_entropy").statistics) == {"token_entropies", "token_log_sum_sq_probs"}
    assert set(TokenLoss("eaft").statistics) == {"token_top_entropies"}
    assert TokenLoss("dft").statistics == {}
    asked = {"anchored": (True, True), "anchored_k3": (True, True), "iw": (True, False), "dft": (False, False)}
    for name, expected in asked.items():
        loss = TokenLoss(name)
        assert (loss.needs_reference, loss.needs_reference_tokens) == expected
    assert TokenLoss("psft", {"old_policy_steps": 4}).old_policy_steps == 4
    assert TokenLoss("nll").old_policy_steps is None


def test_statistics_of_logits() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]], dtype=torch.float64)
    p, top = logits.softmax(-1)[0], torch.tensor([3.0, 2.0], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(entropy(logits)[0], -sum(x * x.log() for x in p))
    torch.testing.assert_close(top_entropy(logits, 2)[0], -sum(x * x.log() for x in top))
    torch.testing.assert_close(top_entropy(logits, 9), entropy(logits))
    torch.testing.assert_close(log_sum_sq_probs(logits)[0], sum(x * x for x in p).log())


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("dpo", {}, "loss='dpo' is none of nll, propagation, dft,"),
        ("dft", {"alpha": 1.0}, "The loss 'dft' has no option 'alpha'; it takes none."),
        ("deformed_log", {}, "The loss 'deformed_log' needs the option 'alpha'."),
        ("deformed_log", {"alpha": -1}, "alpha=-1 must be at least 0"),
        ("eaft", {"top_k": 1}, "top_k=1 must be at least 2"),
        ("eaft", {"normaliser": 0}, "normaliser=0 must be above 0"),
        ("anchored", {"base": "sft"}, "base='sft' must be one of 'dft', 'nll'"),
        ("cayley", {"floor": 1.5}, "floor=1.5 must be at least 0 and at most 1"),
        ("psft", {"old_policy_steps": 0}, "old_policy_steps=0 must be at least 1"),
        ("own_token_losses.squared", {"scale": 0}, "scale=0 must be above 0"),
        ("own_token_losses.top", {}, "asks for token_top_entropies, which needs its option top_k"),
        ("own_token_losses.old", {}, "asks for old_token_logps, which needs its option old_policy_steps"),
        ("own_token_losses.per_token", {}, "returned losses of shape (2, 2) for 2 rows, not a tensor (2,)"),
        (
            "own_token_losses.pairs",
            {},
            f"asks for chosen_logps. Its positional parameters must be among {ALL}",
        ),
    ],
)
@pytest.mark.usefixtures("own")
def test_bad_losses_and_options_are_refused(loss: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenLoss(loss, options)
