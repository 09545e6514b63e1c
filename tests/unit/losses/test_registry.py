"""A loss is found by name or import path, and tells what it asks for before a model is loaded."""

import re
from pathlib import Path

import pytest
import torch

from lit_ift.losses import INPUTS, PAIR_LOSSES, PairLoss

OWN = """
import torch

NUMBER = 3

def simple(chosen_logps, rejected_logps, *, scale=2.0):
    if scale <= 0:
        raise ValueError(f"scale={scale} must be above 0")
    return scale * (rejected_logps - chosen_logps), {"margin": (chosen_logps - rejected_logps).detach()}

def token(chosen_token_logps, reference_chosen_token_logps, chosen_mask):
    losses = ((reference_chosen_token_logps - chosen_token_logps) * chosen_mask).sum(-1)
    return losses, {}

def divergence(rejected_token_kl):
    return rejected_token_kl.sum(-1), {}

def demanding(chosen_logps, *, weight):
    return -weight * chosen_logps, {}

def strange(chosen_logps, entropy):
    return chosen_logps, {}

def keyword_only(*, beta=1.0):
    return torch.zeros(2), {}

def mean(chosen_logps):
    return -chosen_logps.mean(), {}

def mean_metric(chosen_logps):
    return -chosen_logps, {"length": torch.tensor(1.0)}

def number_metric(chosen_logps):
    return -chosen_logps, {"length": 1.0}

def bare(chosen_logps):
    return -chosen_logps

def failing(chosen_logps, *, scale):
    return -chosen_logps / scale, {}

def detached(chosen_logps):
    return -chosen_logps.detach(), {}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_pair_losses.py").write_text(OWN)
    (tmp_path / "unfinished_losses.py").write_text("def loss(chosen_logps:")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_pair_losses"


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_listed_losses_have_usable_defaults(name: str) -> None:
    loss = PairLoss(name)
    assert loss.function is PAIR_LOSSES[name]
    assert set(loss.inputs) <= set(INPUTS)


def test_inputs_are_the_positional_parameters_in_order() -> None:
    assert PairLoss("simpo").inputs == ["chosen_logps", "rejected_logps", "chosen_lengths", "rejected_lengths"]
    assert PairLoss("sft").inputs == ["chosen_logps", "chosen_lengths"]


def test_what_a_loss_needs_follows_from_its_inputs(own: str) -> None:
    dpo, simpo, tpo = PairLoss("dpo"), PairLoss("simpo"), PairLoss("tpo")
    assert (dpo.needs_reference, dpo.needs_reference_tokens, dpo.needs_gold) == (True, False, False)
    assert (simpo.needs_reference, simpo.needs_reference_tokens, simpo.needs_gold) == (False, False, False)
    assert (tpo.needs_reference, tpo.needs_reference_tokens, tpo.needs_gold) == (False, False, True)
    for name in ("token", "divergence"):
        loss = PairLoss(f"{own}.{name}")
        assert (loss.needs_reference, loss.needs_reference_tokens) == (True, True)


def test_a_call_passes_inputs_and_options(own: str) -> None:
    loss = PairLoss(f"{own}.simple", {"scale": 3.0})
    inputs = {"rejected_logps": torch.tensor([-2.0, -5.0]), "chosen_logps": torch.tensor([-1.0, -7.0]), "other": None}
    losses, metrics = loss(inputs)
    assert losses.tolist() == [-3.0, 6.0]
    assert metrics["margin"].tolist() == [1.0, -2.0]


def test_options_left_out_keep_their_defaults(own: str) -> None:
    inputs = {"chosen_logps": torch.tensor([-1.0]), "rejected_logps": torch.tensor([-2.0])}
    assert PairLoss(f"{own}.simple")(inputs)[0].tolist() == [-2.0]


def test_options_are_copied(own: str) -> None:
    options = {"scale": 3.0}
    loss = PairLoss(f"{own}.simple", options)
    options["scale"] = -1.0
    assert loss.options == {"scale": 3.0}


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("dop", {}, "loss='dop' is none of dpo, robust_dpo, "),
        (
            "no.such.module",
            {},
            "loss='no.such.module' cannot be imported: No module named 'no'. Start from the folder",
        ),
        ("unfinished_losses.loss", {}, "loss='unfinished_losses.loss' cannot be imported: SyntaxError: "),
        ("own_pair_losses.missing", {}, "loss='own_pair_losses.missing' cannot be imported"),
        ("own_pair_losses.NUMBER", {}, "loss='own_pair_losses.NUMBER' is not a Python function, but int 3"),
        (PAIR_LOSSES["dpo"], {}, "import path of a function: loss='lit_ift.losses.pair.reference.dpo_loss'"),
        (3, {}, "loss=3 must be a name or the import path"),
        (
            "dpo",
            {"gamma": 1.0},
            "The loss 'dpo' has no option 'gamma'; it takes beta, label_smoothing, reference_free.",
        ),
        ("sft", {"beta": 1.0}, "The loss 'sft' has no option 'beta'; it takes none."),
        ("dpo", {"chosen_logps": 1.0}, "The loss 'dpo' has no option 'chosen_logps'"),
        ("dpo", {"beta": -1.0}, "beta=-1.0 must be above 0"),
        ("own_pair_losses.simple", {"scale": 0.0}, "scale=0.0 must be above 0"),
        ("own_pair_losses.demanding", {}, "The loss 'own_pair_losses.demanding' needs the option 'weight'."),
        ("own_pair_losses.strange", {}, "The loss 'own_pair_losses.strange' asks for entropy."),
        ("own_pair_losses.keyword_only", {}, "The loss 'own_pair_losses.keyword_only' asks for nothing."),
        ("own_pair_losses.mean", {}, "returned losses of shape () for 2 pairs"),
        ("own_pair_losses.number_metric", {}, "returned length of 1.0 for 2 pairs"),
        ("own_pair_losses.bare", {}, "must return losses and a mapping of metrics, not tensor("),
        ("own_pair_losses.failing", {"scale": "1"}, "fails on two made-up pairs: TypeError: unsupported operand"),
        ("own_pair_losses.detached", {}, "has no gradient in its inputs (chosen_logps), so nothing would train"),
        ("os.system", {}, "loss='os.system' is not a Python function, but builtin_function_or_method"),
        ("subprocess.Popen", {}, "loss='subprocess.Popen' is not a Python function, but type"),
        ("subprocess.call", {}, "The loss 'subprocess.call' asks for nothing."),
        ("..own", {}, "loss='..own' is none of dpo"),
        ("own_pair_losses.mean_metric", {}, "returned length of shape () for 2 pairs"),
    ],
)
@pytest.mark.usefixtures("own")
def test_unusable_choices_are_refused(loss: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PairLoss(loss, options)
