"""The arithmetic that pair losses share."""

from math import exp, expm1, log

import pytest
import torch
from rounding import CLOSE32, NEAR32

from lit_ift.losses.masking import mean_logps
from lit_ift.losses.pair.arithmetic import MAX_EXPONENT, bounded_expm1, log_complement, log_odds


def test_mean_over_one_token_and_over_none() -> None:
    assert mean_logps(torch.tensor([-3.0, -3.0, 0.0]), torch.tensor([1.0, 2.0, 0.0])).tolist() == [-3.0, -1.5, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounded_expm1_is_exact_below_and_straight_above_the_bound(dtype: torch.dtype) -> None:
    """Small gradients must not suffer from the large slope above the bound."""
    tolerance = 16 * torch.finfo(dtype).eps
    exponent = torch.tensor([-100.0, -1e-6, 0.0, 1e-6, 2.0, 29.0], dtype=dtype, requires_grad=True)
    value = bounded_expm1(exponent)
    torch.testing.assert_close(value.detach(), exponent.detach().expm1(), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), exponent)
    torch.testing.assert_close(gradient, exponent.detach().exp(), rtol=tolerance, atol=tolerance)

    beyond = torch.tensor([MAX_EXPONENT, MAX_EXPONENT + 1, 1e4], dtype=dtype, requires_grad=True)
    value = bounded_expm1(beyond)
    slope = exp(MAX_EXPONENT)
    expected = torch.tensor([slope - 1, 2 * slope - 1, slope * (1e4 - MAX_EXPONENT + 1) - 1], dtype=dtype)
    torch.testing.assert_close(value.detach(), expected, rtol=NEAR32, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), beyond)
    torch.testing.assert_close(gradient, torch.full((3,), slope, dtype=dtype), rtol=NEAR32, atol=0)


def test_log_complement_is_accurate_on_both_sides() -> None:
    """In float32 against float64, where e^a is 1e-20 as well as where it is 1 - 1e-6."""
    logps = torch.tensor([-46.0, -20.0, -5.0, -log(2), -0.5, -1e-3, -1e-6])
    truth = torch.log1p(-torch.exp(logps.double()))
    truth[-2:] = torch.log(-torch.expm1(logps[-2:].double()))
    torch.testing.assert_close(log_complement(logps).double(), truth, rtol=NEAR32, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_keep_their_digits(dtype: torch.dtype) -> None:
    """log p - log(1 - p) and its slope 1 / (1 - p), from p of next to 1 to p of next to 0."""
    exact = [-1e-6, -1e-5, -1e-3, -0.1, -log(2), -3.0, -40.0, -1e4]
    logp = torch.tensor(exact, dtype=dtype, requires_grad=True)
    odds = log_odds(logp)
    (slope,) = torch.autograd.grad(odds.sum(), logp)
    given = [value.item() for value in logp.detach()]
    # log(1 - p) below p = e^-40 is nothing next to log p
    assert odds.tolist() == pytest.approx([x - log(-expm1(x)) for x in given], rel=NEAR32, abs=NEAR32)
    assert slope.tolist() == pytest.approx([-1 / expm1(x) for x in given], rel=NEAR32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_end_in_their_tangent(dtype: torch.dtype) -> None:
    """At p = 1 they are those of 1 - p = 2^-23, plus 2^-23 times the slope 2^23; both dtypes agree."""
    logp = torch.tensor([-(2.0**-23), 0.0], dtype=dtype, requires_grad=True)
    odds = log_odds(logp)
    assert odds.tolist() == pytest.approx([23 * log(2), 23 * log(2) + 1], rel=NEAR32)
    (slope,) = torch.autograd.grad(odds.sum(), logp)
    assert slope.tolist() == pytest.approx([2.0**23, 2.0**23], rel=NEAR32)


@pytest.mark.parametrize("logp", [0.0, -1e-4, -1e-3])
def test_log_complement_has_a_finite_gradient_in_bfloat16(logp: float) -> None:
    """There, 1 - p is 0 from p = 0.998 on."""
    value = torch.tensor(logp, dtype=torch.bfloat16, requires_grad=True)
    result = log_complement(value)
    result.backward()
    torch.testing.assert_close(result, log_complement(value.float()), **CLOSE32)
    assert -torch.inf < float(value.grad) < 0
