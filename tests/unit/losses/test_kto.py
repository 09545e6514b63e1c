"""KTO, unpaired APO-zero and unpaired BCO: values by hand, the baseline, gradients."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from lit_ift.losses.kto import Variant, kl_baseline, kto_loss
from lit_ift.losses.pair.absolute import bco_loss

DESIRABLE = torch.tensor([True, False, True, False])


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logps, reference = (-9 * torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2))
    return logps, reference


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_by_hand() -> None:
    """β = 0.5, z0 = 1: a desirable answer of log-ratio 3 has 1 - σ(0.5 · 2) = σ(-1), an undesirable one of -2 has
    1 - σ(0.5 · (1 + 2)) = σ(-1.5). Without z0: σ(-1.5) and σ(-1). BCO with a mean of 1: -log σ(1) and -log σ(1.5).
    """
    logps, reference = torch.tensor([-2.0, -7.0]).double(), torch.tensor([-5.0, -5.0]).double()
    sides, kl = torch.tensor([True, False]), torch.tensor(1.0).double()
    options = {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0}
    kto, metrics = kto_loss(logps, reference, sides, kl, **options)
    apo, _ = kto_loss(logps, reference, sides, kl, variant="apo_zero", **options)
    assert kto.tolist() == pytest.approx([2 * sigmoid(-1), 3 * sigmoid(-1.5)], abs=1e-12)
    assert apo.tolist() == pytest.approx([2 * sigmoid(-1.5), 3 * sigmoid(-1)], abs=1e-12)
    bco, _ = kto_loss(logps, reference, sides, kl, variant="bco", **options)
    assert bco.tolist() == pytest.approx([2 * -math.log(sigmoid(1)), 3 * -math.log(sigmoid(1.5))], abs=1e-12)
    assert metrics["rewards"].tolist() == [1.5, -1.0]


def test_bco_of_a_good_and_a_bad_answer_is_that_of_the_pair() -> None:
    logps, reference = inputs()
    thumbs, _ = kto_loss(logps, reference, DESIRABLE, torch.tensor(-0.7, dtype=torch.float64), variant="bco")
    shift = torch.full((2,), -0.7, dtype=torch.float64)
    pairs, _ = bco_loss(logps[::2], logps[1::2], reference[::2], reference[1::2], shift)
    torch.testing.assert_close(thumbs.view(2, 2).sum(1), pairs, rtol=1e-12, atol=0)


def test_baseline_by_hand() -> None:
    """Log-ratios 2, -1 and one of a row that counts for nothing: (2 · 1 - 1 · 0.5) / 1.5 = 1."""
    policy = torch.tensor([-1.0, -4.0, math.nan], requires_grad=True)
    reference = torch.tensor([-3.0, -3.0, 0.0])
    kl = kl_baseline(policy, reference, torch.tensor([1.0, 0.5, 0.0]))
    assert kl.item() == 1.0
    assert not kl.requires_grad
    assert kl.shape == ()
    assert kl_baseline(policy[:2], reference[:2]).item() == 0.5


def test_baseline_is_never_negative_and_0_without_rows() -> None:
    assert kl_baseline(torch.tensor([-5.0]), torch.tensor([-1.0])).item() == 0
    assert kl_baseline(torch.ones(2), torch.zeros(2), torch.zeros(2)).item() == 0
    assert kl_baseline(torch.ones(0), torch.zeros(0)).item() == 0


def test_a_baseline_of_0_is_apo_zero() -> None:
    kl = torch.zeros((), dtype=torch.float64)
    assert torch.equal(
        kto_loss(*inputs(), DESIRABLE, kl)[0], kto_loss(*inputs(), DESIRABLE, kl + 3, variant="apo_zero")[0]
    )


def test_desirable_goes_up_undesirable_goes_down_and_the_baseline_gets_nothing() -> None:
    logps, reference = inputs()
    kl = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    losses, _ = kto_loss(logps.requires_grad_(), reference, DESIRABLE, kl)
    to_logps, to_kl = torch.autograd.grad(losses.sum(), [logps, kl], allow_unused=True)
    assert torch.equal(to_logps < 0, DESIRABLE)
    assert (to_logps != 0).all()
    assert to_kl is None


@pytest.mark.parametrize("variant", get_args(Variant))
def test_gradcheck(variant: str) -> None:
    logps, reference = inputs()
    kl = torch.tensor(0.4, dtype=torch.float64)
    options = {"desirable_weight": 1.3, "undesirable_weight": 0.7, "variant": variant}
    assert torch.autograd.gradcheck(
        lambda x: kto_loss(x, reference, DESIRABLE, kl, **options)[0], [logps.requires_grad_()]
    )


@pytest.mark.parametrize("size", [-1e5, 1e5])
@pytest.mark.parametrize("variant", get_args(Variant))
def test_extremes_are_finite(size: float, variant: str) -> None:
    logps = torch.full((4,), size, requires_grad=True)
    losses, _ = kto_loss(logps, torch.zeros(4), DESIRABLE, torch.tensor(1e4), variant=variant)
    (gradient,) = torch.autograd.grad(losses.sum(), logps)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert ((losses >= 0) & (losses <= (1.2e4 if variant == "bco" else 1))).all()


def test_small_losses_keep_their_digits() -> None:
    """1 - σ(20) is 2e-9; in float32 σ(20) is 1."""
    losses, _ = kto_loss(torch.tensor([200.0]), torch.zeros(1), torch.tensor([True]), torch.tensor(0.0))
    assert losses.item() == pytest.approx(math.exp(-20), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta=0 must be above 0"),
        ({"desirable_weight": -1}, "desirable_weight=-1 must be at least 0"),
        ({"undesirable_weight": math.inf}, "undesirable_weight=inf"),
        ({"variant": "nca"}, "variant='nca' must be one of 'kto', 'apo_zero', 'bco'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kto_loss(*inputs(), DESIRABLE, torch.tensor(0.0), **options)


def test_bad_shapes_and_types() -> None:
    logps, reference = inputs()
    with pytest.raises(ValueError, match=r"is_desirable \(2,\)"):
        kto_loss(logps, reference, DESIRABLE[:2], torch.tensor(0.0))
    with pytest.raises(ValueError, match="not bool"):
        kto_loss(logps, reference, DESIRABLE.long(), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"kl of shape \(4,\) must be \(\)"):
        kto_loss(logps, reference, DESIRABLE, logps)
    with pytest.raises(ValueError, match=r"weights \(1,\)"):
        kl_baseline(logps, reference, logps[:1])
