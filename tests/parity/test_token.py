"""Token losses against others' own code, values and gradients in float64; `record_token.py` made the numbers.

Theirs are means over all trained tokens, as ours are with ``reduction: token``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deviations import assert_same
from torch import Tensor

from lit_ift.losses import TokenLoss, score_tokens
from lit_ift.losses.token_kl import token_kl

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llamafactory/dft": ("dft", {}),
    "llamafactory/eaft": ("eaft", {"alpha": 1.5, "normaliser": 3.0}),
    "llamafactory/anchored": ("anchored", {"kappa": 0.3}),
    "official/nll": ("nll", {}),
    "official/dft": ("dft", {}),
    "official/anchored_nll": ("anchored", {"kappa": 0.3, "base": "nll"}),
    "official/anchored": ("anchored", {"kappa": 0.3}),
    "official/iw": ("iw", {}),
    "official/psft": ("psft", {}),
    "official/deformed_log": ("deformed_log", {"alpha": 0.3}),
    "official/deft": ("deft", {}),
    "official/cayley_in_batch": ("cayley_in_batch", {}),
    "beyond/GeneralFamily-0.5": ("deformed_log", {"alpha": 0.5}),
    "beyond/OnlyTopP-0.03": ("deformed_log", {"alpha": 1.0, "at_least": 0.03}),
    "beyond/OnlyTopLogP-0.03": ("deformed_log", {"alpha": 0.0, "at_least": 0.03}),
    "beyond/OnlyBottomP-0.03": ("deformed_log", {"alpha": 1.0, "at_most": 0.03}),
    "beyond/OnlyBottomLogP-0.03": ("deformed_log", {"alpha": 0.0, "at_most": 0.03}),
}

ASFT, DEFT = "zhuchichi56/ASFT 6ec682f", "luludus/DEFT bbe7896"
SOURCES = {
    **dict.fromkeys(("official/nll", "official/dft", "official/anchored_nll", "official/anchored"), ASFT),
    **dict.fromkeys(("official/deformed_log", "official/deft", "official/cayley_in_batch"), DEFT),
    "official/iw": "emmyqin/iw_sft 9a3e4e4",
    "official/psft": "zwhong714/PSFT 569b1ba",
    **{case: "hiyouga/LLaMA-Factory ff6d4d1" for case in CASES if case.startswith("llamafactory/")},
    **{case: "GaotangLi/Beyond-Log-Likelihood 220589d" for case in CASES if case.startswith("beyond/")},
}

TRAINED = 13
DIVISORS = {
    **dict.fromkeys(("official/deformed_log", "official/deft", "official/cayley_in_batch"), TRAINED),
    **{case: 2 if "Top" in case else 11 if "Bottom" in case else TRAINED for case in CASES if "beyond" in case},
}
"""Code of two papers adds 1e-8 to the number of tokens, and one of them counts those alone that a threshold keeps."""


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "data" / "token.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def mean_loss(loss: TokenLoss, logits: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    """The mean over tokens, by the functions that a module calls; logits are their own hidden states."""
    reference, old, labels = (arrays[f"inputs/{name}"] for name in ("reference", "old", "labels"))

    def head(states: Tensor) -> Tensor:
        return states

    scores = score_tokens(logits, labels, head, statistics=loss.statistics, chunk_size=4)
    logps = {name: -score_tokens(values, labels, head).nll for name, values in (("ref", reference), ("old", old))}
    losses, _ = loss(
        {
            "nll": scores.nll,
            "mask": scores.mask,
            **scores.statistics,
            "reference_logps": logps["ref"].sum(-1),
            "reference_token_logps": logps["ref"],
            "reference_token_kl": token_kl(logits, reference, labels, head, head, chunk_size=4),
            "old_token_logps": logps["old"],
        }
    )
    counts = scores.mask.sum(-1)
    return (losses * counts).sum() / counts.sum()


@pytest.mark.parametrize("case", CASES)
def test_recorded_values_and_gradients(case: str, arrays: dict[str, Tensor]) -> None:
    logits = arrays["inputs/logits"].clone().requires_grad_()
    loss = mean_loss(TokenLoss(*CASES[case]), logits, arrays)
    if case in DIVISORS:
        loss = loss * (TRAINED / (DIVISORS[case] + 1e-8))
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = arrays[f"{case}/gradient"]
    assert expected.abs().max() > 1e-3
    assert_same(CASES[case][0], SOURCES[case], "value", loss, arrays[f"{case}/loss"], atol=1e-12)
    assert_same(CASES[case][0], SOURCES[case], "gradient", gradient, expected, atol=1e-12)


def test_every_recorded_case_is_compared(arrays: dict[str, Tensor]) -> None:
    assert {name.removesuffix("/loss") for name in arrays if name.endswith("/loss")} == set(CASES)


def test_chord_and_k3_as_their_code_writes_them(arrays: dict[str, Tensor]) -> None:
    """Trinity-RFT, ``SFTPhiLossFn``: ``masked_mean(-logprob * phi.detach())``; NeMo RL: k3 on target tokens."""
    labels = arrays["inputs/labels"]
    logits = arrays["inputs/logits"].clone().requires_grad_()
    on = labels[:, 1:] != -100

    def of_targets(values: Tensor) -> Tensor:
        return values[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0][on]

    policy, reference = of_targets(logits), of_targets(arrays["inputs/reference"])
    p = policy.exp()
    chord = (-policy * (p * (1 - p)).detach()).mean()
    log_ratio = reference - policy
    anchored = (-policy * p.detach() + 0.2 * (log_ratio.exp() - log_ratio - 1)).mean()
    focal = (-policy * (1 - p) ** 2).mean()
    for expected, name, options, source in (
        (chord, "chord_phi", {}, "Trinity-RFT's formula"),
        (anchored, "anchored_k3", {"kappa": 0.2}, "NeMo RL's formula"),
        (focal, "focal", {}, "the paper's formula"),
    ):
        ours = mean_loss(TokenLoss(name, options), logits, arrays)
        assert_same(name, source, "value", ours, expected, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, expected)]
        assert_same(name, source, "gradient", *gradients, rtol=1e-10, atol=1e-12)
