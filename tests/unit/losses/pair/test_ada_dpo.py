"""Ada-DPO: the inner minimum against a dense grid, its gradient, its limits."""

import math

import pytest
import torch
from torch import Tensor

from lit_ift.losses import PairLoss
from lit_ift.losses.pair.reference import ada_dpo_loss, dpo_loss

LOG2 = math.log(2)


def from_margins(margins: Tensor, **options: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of pairs whose h is given, at β = 1."""
    zeros = torch.zeros_like(margins)
    return ada_dpo_loss(margins, zeros, zeros, zeros, beta=1.0, **options)


@pytest.mark.parametrize("rho0", [0.01, 0.1, 0.3, 0.6])
@pytest.mark.parametrize(("tau_min", "tau_max"), [(0.1, 5.0), (0.5, 1.0), (0.01, 50.0)])
def test_equals_the_minimum_over_a_dense_grid(tau_min: float, tau_max: float, rho0: float) -> None:
    margins = torch.linspace(-8, 8, 65, dtype=torch.float64)
    losses, metrics = from_margins(margins, tau_min=tau_min, tau_max=tau_max, rho0=rho0)
    grid = torch.logspace(math.log10(tau_min), math.log10(tau_max), 4001, dtype=torch.float64)
    values = -grid * torch.nn.functional.logsigmoid(margins[:, None] / grid) + (rho0 - LOG2) * grid
    assert (losses <= values.amin(-1) + 1e-12).all()
    torch.testing.assert_close(losses, values.amin(-1), rtol=0, atol=1e-4)
    assert ((metrics["tau"] >= tau_min) & (metrics["tau"] <= tau_max)).all()
    # Not one of the ends everywhere: the search is put to use.
    best = grid[values.argmin(-1)]
    torch.testing.assert_close(metrics["tau"], best, rtol=0.05, atol=1e-6)


def test_value_by_hand() -> None:
    """With ρ0 such that the coin of σ(2) has entropy log 2 - ρ0, τ = |h| / 2.

    h = 3 gives τ = 1.5 and the loss -1.5 log σ(2) + (ρ0 - log 2) · 1.5, ρ0 - log 2 = -H(σ(2)).
    """
    p = 1 / (1 + math.exp(-2))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    losses, metrics = from_margins(torch.tensor([3.0, -3.0], dtype=torch.float64), rho0=LOG2 - entropy)
    torch.testing.assert_close(metrics["tau"], torch.full((2,), 1.5, dtype=torch.float64))
    assert losses[0].item() == pytest.approx(-1.5 * math.log(p) - 1.5 * entropy, abs=1e-12)
    assert losses[1].item() == pytest.approx(-1.5 * math.log(1 - p) - 1.5 * entropy, abs=1e-12)


def test_a_fixed_tau_of_1_gives_dpo_plus_rho() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(5, dtype=torch.float64) for _ in range(4)]
    losses, metrics = ada_dpo_loss(*inputs, beta=0.4, tau_min=1, tau_max=1, rho0=0.2)
    torch.testing.assert_close(losses, dpo_loss(*inputs, beta=0.4)[0] + 0.2 - LOG2, rtol=0, atol=1e-12)
    assert (metrics["tau"] == 1).all()


def test_no_gradient_through_tau_and_none_is_missing() -> None:
    """With τ held, dloss/dh = -σ(-h/τ); finite differences of the minimum itself agree (envelope theorem)."""
    margins = torch.tensor([-6.0, -0.4, 0.05, 0.7, 3.0, 9.0], dtype=torch.float64, requires_grad=True)
    losses, metrics = from_margins(margins)
    (gradient,) = torch.autograd.grad(losses.sum(), margins)
    torch.testing.assert_close(gradient, -torch.sigmoid(-margins / metrics["tau"]).detach())
    assert not metrics["tau"].requires_grad
    assert torch.autograd.gradcheck(lambda m: from_margins(m)[0], [margins])


def test_tau_grows_with_the_margin() -> None:
    _, metrics = from_margins(torch.tensor([0.0, 0.3, -1.0, 2.0, 100.0]))
    assert metrics["tau"][0] == pytest.approx(0.1)
    assert metrics["tau"].diff().gt(0).all()
    assert metrics["tau"][-1] == 5.0


@pytest.mark.parametrize("margin", [-1e4, 0.0, 1e4])
def test_extremes_are_finite(margin: float) -> None:
    margins = torch.tensor([margin], requires_grad=True)
    for rho0 in (1e-12, 0.1, LOG2 - 1e-12):
        losses, _ = from_margins(margins, rho0=rho0)
        (gradient,) = torch.autograd.grad(losses.sum(), margins)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()
        assert gradient <= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_min": 0.0}, "tau_min=0.0 must be above 0"),
        ({"tau_min": 2.0, "tau_max": 1.0}, "tau_max=1.0 must be at least tau_min=2.0"),
        ({"tau_max": math.inf}, "tau_max=inf"),
        ({"rho0": 0.0}, "rho0=0.0 must be above 0 and below 0.693"),
        ({"rho0": 0.7}, "rho0=0.7"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairLoss("ada_dpo", options)
