"""The discounted cumulative sum against a loop over positions."""

import pytest
import torch

from lit_ift.losses import discounted_cumsum


def slow_twin(values: torch.Tensor, gamma: float, reverse: bool) -> torch.Tensor:
    values = values.double()
    total, out = torch.zeros_like(values[..., 0]), [torch.empty(0)] * values.shape[-1]
    positions = range(values.shape[-1])
    for t in reversed(positions) if reverse else positions:
        total = values[..., t] + gamma * total
        out[t] = total
    return torch.stack(out, dim=-1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 129])
def test_equals_the_loop(length: int, gamma: float, reverse: bool) -> None:
    values = torch.randn(3, 2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    fast = discounted_cumsum(values, gamma, reverse=reverse)
    torch.testing.assert_close(fast, slow_twin(values, gamma, reverse), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_gradients(gamma: float, reverse: bool) -> None:
    values = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: discounted_cumsum(x, gamma, reverse=reverse), values)
    assert torch.autograd.gradgradcheck(lambda x: discounted_cumsum(x, gamma, reverse=reverse).square(), values)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.95, 0.9999, 1.0])
def test_long_rows_stay_accurate(dtype: torch.dtype, gamma: float) -> None:
    values = torch.rand(2, 32_768, generator=torch.Generator().manual_seed(0)).to(dtype)
    fast = discounted_cumsum(values, gamma, reverse=True)
    assert fast.dtype == torch.float32
    # Judged against the truth for the same rounded inputs: what is left is the rounding of float32 sums.
    torch.testing.assert_close(fast.double(), slow_twin(values, gamma, reverse=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_out_of_range(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        discounted_cumsum(torch.ones(3), gamma)
