"""DPO per token, and DiscoPOP, by hand and in their limits."""

import math

import pytest
import torch
from pair_variants import some_inputs

from lit_ift.losses import PairLoss
from lit_ift.losses.pair.shaped import discopop_loss


def test_sigmoid_norm_of_answers_of_one_length_is_dpo_at_another_beta() -> None:
    inputs = some_inputs()
    inputs["chosen_lengths"] = inputs["rejected_lengths"] = torch.full((5,), 4.0, dtype=torch.float64)
    torch.testing.assert_close(
        PairLoss("sigmoid_norm", {"beta": 0.4})(inputs)[0], PairLoss("dpo", {"beta": 0.1})(inputs)[0]
    )


def test_sigmoid_norm_by_hand() -> None:
    """Log-ratios 6 over 3 tokens and 2 over 4 tokens at β = 2: h = 2 (2 - 0.5) = 3."""
    inputs = {
        "chosen_logps": torch.tensor([-4.0]),
        "reference_chosen_logps": torch.tensor([-10.0]),
        "rejected_logps": torch.tensor([-5.0]),
        "reference_rejected_logps": torch.tensor([-7.0]),
        "chosen_lengths": torch.tensor([3.0]),
        "rejected_lengths": torch.tensor([4.0]),
    }
    losses, metrics = PairLoss("sigmoid_norm", {"beta": 2.0})(inputs)
    assert losses.item() == pytest.approx(math.log1p(math.exp(-3)))
    assert metrics["rewards/chosen"].item() == 4


def of_margin(h: float, tau: float = 0.05) -> torch.Tensor:
    zero = torch.zeros(1, dtype=torch.float64)
    return discopop_loss(torch.tensor([h], dtype=torch.float64), zero, zero, zero, beta=1.0, tau=tau)[0]


def test_discopop_by_hand() -> None:
    """At h = 0 the two losses have equal shares: (log 2 + 1) / 2."""
    assert of_margin(0.0).item() == pytest.approx((math.log(2) + 1) / 2)
    m = 1 / (1 + math.exp(-0.1 / 0.05))
    assert of_margin(0.1).item() == pytest.approx((1 - m) * math.log1p(math.exp(-0.1)) + m * math.exp(-0.1))


def test_discopop_is_dpo_below_and_exponential_above() -> None:
    assert of_margin(-3.0).item() == pytest.approx(math.log1p(math.exp(3.0)))
    assert of_margin(3.0).item() == pytest.approx(math.exp(-3.0))


def test_discopop_rises_where_training_begins() -> None:
    """As its docstring says: from -2.4 τ to 1.5 τ."""
    slopes = [(of_margin(h + 1e-6) - of_margin(h - 1e-6)).item() for h in (-0.13, -0.11, 0.0, 0.07, 0.08)]
    assert [slope > 0 for slope in slopes] == [False, True, True, True, False]
