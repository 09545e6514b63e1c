"""AOT by hand: two pairs, ranked otherwise by policy and reference."""

from math import log

import pytest
import torch
from torch import Tensor

from lit_ift.losses import aot_loss, aot_unpaired_loss


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_paired() -> None:
    """Policy margins 2 log 3 and 0, reference margins -2 log 2 and 2.

    Sorted: (0, 2 log 3) against (-2 log 2, 2), so β δ = log 2 for the second pair and log 3 - 1 for the first.
    """
    chosen, rejected = column(2 * log(3) - 1, -4.0), column(-1.0, -4.0)
    losses, metrics = aot_loss(chosen, rejected, column(-5 - 2 * log(2), -3.0), column(-5.0, -5.0), beta=0.5)
    first, second = losses.tolist()
    assert first == pytest.approx(log(1 + torch.e / 3), abs=1e-12)
    assert second == pytest.approx(log(3 / 2), abs=1e-12)
    # Rewards are those of each pair, as in other losses.
    assert metrics["rewards/chosen"].tolist() == pytest.approx([log(3) + 2 + log(2), -0.5], abs=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), chosen)
    assert gradient[1].item() == pytest.approx(-1 / 6, abs=1e-12)


def test_paired_ranks_the_reference_by_itself() -> None:
    """Which pair a reference margin belongs to makes no difference."""
    policy = column(-1.0, -2.0, -7.0), column(-4.0, -3.0, -5.0)
    chosen, rejected = column(-2.0, -9.0, -1.0), column(-3.0, -4.0, -8.0)
    order = [2, 0, 1]
    torch.testing.assert_close(
        aot_loss(*policy, chosen, rejected)[0], aot_loss(*policy, chosen[order], rejected[order])[0]
    )


def test_unpaired() -> None:
    """Log-ratios (2 log 3, 0) of the chosen and (2, -2 log 2) of the rejected answers: sorted as in the paired test."""
    chosen = column(2 * log(3) - 1, -4.0)
    losses, _ = aot_unpaired_loss(
        chosen, column(-3.0, -5 - 2 * log(2)), column(-1.0, -4.0), column(-5.0, -5.0), beta=0.5
    )
    assert losses.tolist() == pytest.approx([log(1 + torch.e / 3), log(3 / 2)], abs=1e-12)


def test_label_smoothing() -> None:
    """One pair with h = log 2: 3/4 log(3/2) + 1/4 log 3."""
    pair = column(2 * log(2)), column(0.0), column(0.0), column(0.0)
    for loss in (aot_loss, aot_unpaired_loss):
        value = loss(*pair, beta=0.5, label_smoothing=0.25)[0].item()
        assert value == pytest.approx(0.75 * log(1.5) + 0.25 * log(3), abs=1e-12)
