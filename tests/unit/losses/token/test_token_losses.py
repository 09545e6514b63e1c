"""Every token loss of the registry: of its own row alone, at the limits of its options, and in any precision."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_ift.losses import TOKEN_LOSSES, TokenLoss

NEEDED: dict[str, dict[str, Any]] = {"deformed_log": {"alpha": 0.3}}
LOSSES = {name: TokenLoss(name, NEEDED.get(name)) for name in TOKEN_LOSSES}
ROW_WISE = [name for name, loss in LOSSES.items() if not loss.in_batch]


def some_inputs(rows: int = 3, length: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Whatever a token loss may ask for; rows have 6, 5, 4, ... trained tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.arange(length) < torch.arange(length, length - rows, -1)[:, None]
    nll = (3 * draw(rows, length) + 0.05).masked_fill(~mask, 0.0)
    inputs = {
        "nll": nll,
        "token_logps": -nll,
        "mask": mask,
        "data_weights": draw(rows, length),
        "token_entropies": 2 * draw(rows, length),
        "token_top_entropies": 2 * draw(rows, length),
        "token_log_sum_sq_probs": -draw(rows, length),
        "reference_token_logps": -3 * draw(rows, length),
        "reference_token_kl": draw(rows, length),
        "old_token_logps": -nll + draw(rows, length) - 0.5,
    }
    return {**inputs, "reference_logps": (inputs["reference_token_logps"] * mask).sum(-1)}


def value_and_gradient(loss: TokenLoss, inputs: dict[str, Tensor], **changes: Tensor) -> tuple[Tensor, Tensor]:
    """Losses, and the gradient of their sum in the nll, (B, T)."""
    inputs = {**inputs, **changes}
    nll = inputs["nll"].clone().requires_grad_()
    losses, _ = loss({**inputs, "nll": nll, "token_logps": -nll})
    (gradient,) = torch.autograd.grad(losses.sum(), nll)
    return losses.detach(), gradient


@pytest.mark.parametrize("name", ROW_WISE)
def test_a_row_has_the_loss_that_it_has_alone(name: str) -> None:
    inputs = some_inputs()
    losses, gradient = value_and_gradient(LOSSES[name], inputs)
    for row in range(3):
        size = 6 - row
        alone = {
            key: value[row : row + 1, ..., :size] if value.ndim > 1 else value[row : row + 1]
            for key, value in inputs.items()
        }
        expected, expected_gradient = value_and_gradient(LOSSES[name], alone)
        torch.testing.assert_close(losses[row : row + 1], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient[row : row + 1, :size], expected_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.in_batch])
def test_the_mark_is_deserved(name: str) -> None:
    inputs = some_inputs()
    alone = {key: value[:1] for key, value in inputs.items()}
    together, _ = value_and_gradient(LOSSES[name], inputs)
    by_itself, _ = value_and_gradient(LOSSES[name], alone)
    assert abs(float(together[0] - by_itself[0])) > 1e-4


def test_the_registry_tells_whose_gradient_is_known_with_the_token_logps_of_a_row() -> None:
    for name, loss in LOSSES.items():
        inputs = {key: value.detach().clone() for key, value in some_inputs().items() if key in loss.inputs}
        others = {key: v.requires_grad_() for key, v in inputs.items() if v.is_floating_point() and "nll" not in key}
        others.pop("token_logps", None)
        if "nll" in inputs:
            inputs["nll"].requires_grad_()
        if "token_logps" in inputs:
            inputs["token_logps"].requires_grad_()
        loss(inputs)[0].sum().backward()
        of_policy = {key for key, value in others.items() if value.grad is not None and key == "reference_token_kl"}
        assert (not of_policy and not loss.in_batch) is loss.row_wise, name


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_what_stands_off_the_mask_has_no_say(name: str) -> None:
    inputs = some_inputs()
    off = ~inputs["mask"]
    # A policy that is sure of a wrong token, or a model that overflows there.
    strange = {
        key: value.masked_fill(off, filler)
        for key, value in inputs.items()
        for filler in [math.nan if key in ("nll", "token_logps", "reference_token_kl") else 50.0]
        if value.dtype == torch.float64 and value.shape == off.shape
    }
    for ours, expected in zip(
        value_and_gradient(LOSSES[name], inputs, **strange), value_and_gradient(LOSSES[name], inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_a_row_without_trained_tokens_is_zero_and_attached(name: str) -> None:
    inputs = some_inputs()
    inputs["mask"] = inputs["mask"].clone()
    inputs["mask"][1] = False
    losses, gradient = value_and_gradient(LOSSES[name], inputs)
    assert losses[1] == 0.0
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("name", TOKEN_LOSSES)
@pytest.mark.parametrize("nll", [0.0, 1e-12, 80.0, 1e4])
def test_extreme_probabilities_are_finite(name: str, nll: float) -> None:
    inputs = some_inputs(dtype=torch.float32)
    inputs["nll"] = torch.full_like(inputs["nll"], nll)
    if name == "anchored_k3":  # e^d overflows where the reference is certain of what the policy excludes.
        inputs["reference_token_logps"] = -inputs["nll"] - 1
    losses, gradient = value_and_gradient(LOSSES[name], inputs)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    rounded = {k: v.to(dtype) if v.is_floating_point() else v for k, v in some_inputs().items()}
    exact = {k: v.double() if v.is_floating_point() else v for k, v in rounded.items()}
    losses, gradient = value_and_gradient(LOSSES[name], rounded)
    expected, expected_gradient = value_and_gradient(LOSSES[name], exact)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=1e-6)
    rtol = 1e-5 if dtype == torch.float32 else 8e-3  # The gradient itself is rounded to bfloat16.
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.takes_data_weights])
def test_data_weights_are_factors_of_tokens(name: str) -> None:
    inputs = some_inputs()
    plain = value_and_gradient(LOSSES[name], {k: v for k, v in inputs.items() if k != "data_weights"})
    ones = value_and_gradient(LOSSES[name], inputs, data_weights=torch.ones(3, 6, dtype=torch.float64))
    halves = value_and_gradient(LOSSES[name], inputs, data_weights=torch.full((3, 6), 0.5, dtype=torch.float64))
    for alone, one, half in zip(plain, ones, halves, strict=True):
        assert torch.equal(alone, one)
        torch.testing.assert_close(half, alone / 2, rtol=1e-12, atol=0)
    without_first = torch.ones(3, 6, dtype=torch.float64).index_fill(1, torch.tensor([0]), 0.0)
    assert (value_and_gradient(LOSSES[name], inputs, data_weights=without_first)[1][:, 0] == 0).all()


@pytest.mark.parametrize(
    ("name", "options", "changes", "twin"),
    [
        ("deformed_log", {"alpha": 0.0}, {}, "nll"),
        ("deformed_log", {"alpha": 1e-9}, {}, "nll"),
        ("focal", {"gamma": 0.0}, {}, "nll"),
        ("eaft", {"alpha": 0.0}, {}, "nll"),
        ("anchored", {"kappa": 0.0, "base": "nll"}, {}, "nll"),
        ("anchored", {"kappa": 0.0}, {}, "dft"),
        ("anchored_k3", {"kappa": 0.0, "base": "nll"}, {}, "nll"),
        ("iw", {"tau": 0.0}, {}, "nll"),
        ("propagation", {"gamma": 0.0}, {}, "nll"),
        ("cayley", {"floor": 1.0}, {}, "deformed_log"),
    ],
)
def test_limits(name: str, options: dict, changes: dict, twin: str) -> None:
    inputs = {k: v for k, v in some_inputs().items() if k != "data_weights"} | changes
    ours = value_and_gradient(TokenLoss(name, options), inputs)
    theirs = value_and_gradient(TokenLoss(twin, {"alpha": 1.0} if twin == "deformed_log" else None), inputs)
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("name", "options"), [("deformed_log", {"alpha": 1.0}), ("dft", {})])
def test_the_gradient_of_minus_p(name: str, options: dict) -> None:
    inputs = some_inputs()
    _, gradient = value_and_gradient(TokenLoss(name, options), {k: v for k, v in inputs.items() if k != "data_weights"})
    expected = (-inputs["nll"]).exp() * inputs["mask"] / inputs["mask"].sum(-1, keepdim=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_psft_is_nll_where_the_old_policy_is_the_present_one_and_stops_above_the_bound() -> None:
    inputs = {k: v for k, v in some_inputs().items() if k != "data_weights"}
    losses, gradient = value_and_gradient(LOSSES["psft"], inputs, old_token_logps=-inputs["nll"])
    torch.testing.assert_close(losses, -torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, value_and_gradient(LOSSES["nll"], inputs)[1], rtol=1e-12, atol=0)
    losses, gradient = value_and_gradient(LOSSES["psft"], inputs, old_token_logps=-inputs["nll"] - math.log(1.29))
    torch.testing.assert_close(losses, torch.full((3,), -1.28, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (gradient == 0).all()
    _, metrics = LOSSES["psft"]({**inputs, "old_token_logps": -inputs["nll"] - math.log(1.29)})
    assert metrics["clipped"].tolist() == [1.0] * 3


def test_iw_weighs_rows_by_their_mean_ratio_up_to_a_bound() -> None:
    nll = torch.tensor([[1.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    losses, metrics = TokenLoss("iw", {"tau": 2.0, "max_weight": 3.0})(
        {"nll": nll, "mask": mask, "reference_logps": torch.tensor([-3.4, -9.0], dtype=torch.float64)}
    )
    weight = math.exp(2 * (-1.5 + 1.7))
    torch.testing.assert_close(losses, torch.tensor([1.5 * weight, 3.0], dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(metrics["weight"], torch.tensor([weight, 3.0], dtype=torch.float64), rtol=1e-12, atol=0)


def test_tokens_beyond_a_threshold_count_nothing() -> None:
    p = torch.tensor([[0.1, 0.3, 0.6, 0.9]], dtype=torch.float64)
    nll, mask = (-p.log()).requires_grad_(), torch.tensor([[True, True, True, False]])
    for options, values in (
        ({"at_least": 0.2}, [0, 0.7, 0.4]),
        ({"at_most": 0.5}, [0.9, 0.7, 0]),
        ({"at_least": 0.2, "at_most": 0.5}, [0, 0.7, 0]),
    ):
        losses, _ = TokenLoss("deformed_log", {"alpha": 1.0, **options})({"nll": nll, "mask": mask})
        assert losses.item() == pytest.approx(sum(values) / 3, abs=1e-12)
        (gradient,) = torch.autograd.grad(losses, nll)
        assert (gradient != 0).tolist() == [[value > 0 for value in values] + [False]]
    with pytest.raises(ValueError, match=r"at_least=0.6 must not be above at_most=0.5"):
        TokenLoss("deformed_log", {"alpha": 1.0, "at_least": 0.6, "at_most": 0.5})
