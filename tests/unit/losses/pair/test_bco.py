"""BCO for pairs by hand."""

import math

import torch

from lit_ift.losses import PairLoss
from lit_ift.losses.pair.absolute import bco_loss, bco_pair_loss


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_values_by_hand() -> None:
    """β = 0.5; log-ratios 2 and -1, with a mean of 0.5 so far: rewards 1 and -0.5, δ = 0.25."""
    chosen, rejected, mean = torch.tensor([[-3.0], [-6.0], [0.5]], dtype=torch.float64)
    references = torch.tensor([-5.0], dtype=torch.float64)
    losses, metrics = bco_loss(chosen, rejected, references, references, mean, beta=0.5)
    torch.testing.assert_close(losses, torch.tensor([-log_sigmoid(0.75) - log_sigmoid(0.75)], dtype=torch.float64))
    assert [metrics[f"rewards/{side}"].item() for side in ("chosen", "rejected")] == [1.0, -0.5]
    losses, _ = bco_pair_loss(chosen, rejected, references, references, beta=0.5)
    torch.testing.assert_close(losses, torch.tensor([-log_sigmoid(1.0) - log_sigmoid(0.5)], dtype=torch.float64))


def test_only_bco_asks_for_the_running_mean() -> None:
    assert PairLoss("bco").needs_log_ratio_mean
    assert not PairLoss("bco_pair").needs_log_ratio_mean
