"""TDPO1 and TDPO2: values by hand, where the gradient goes, the limit of DPO."""

import math

import pytest
import torch
from torch import Tensor

from lit_ift.losses import PairLoss
from lit_ift.losses.pair.by_token import tdpo_loss
from lit_ift.losses.pair.reference import dpo_loss


def inputs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    logps = [-4 * torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(4)]
    return [*logps, *(torch.rand(count, t, generator=generator, dtype=torch.float64) for t in (4, 6))]


def test_values_by_hand() -> None:
    """Log-ratios 3 and 1; D of the chosen answer 0.5 + 1.5 = 2, of the rejected 4. β = 0.5.

    TDPO1: 0.5 (3 - 1 - (4 - 2)) = 0. TDPO2 with α = 0.25: 0.5 (2 - 0.25 · 2) = 0.75.
    Rewards: 0.5 (3 + 2) = 2.5 and 0.5 (1 + 4) = 2.5.
    """
    f = torch.float64
    arguments = [torch.tensor([v], dtype=f) for v in (-2.0, -8.0, -5.0, -9.0)]
    arguments += [torch.tensor([[0.5, 1.5, 0.0]], dtype=f), torch.tensor([[4.0]], dtype=f)]
    first, metrics = tdpo_loss(*arguments, beta=0.5, variant="tdpo1")
    second, _ = tdpo_loss(*arguments, beta=0.5, alpha=0.25)
    assert first.item() == pytest.approx(math.log(2), abs=1e-12)
    assert second.item() == pytest.approx(math.log(1 + math.exp(-0.75)), abs=1e-12)
    assert metrics["rewards/chosen"].item() == metrics["rewards/rejected"].item() == 2.5
    assert (metrics["kl/chosen"].item(), metrics["kl/rejected"].item()) == (2.0, 4.0)


def test_alpha_0_is_dpo_and_alpha_1_is_tdpo1_but_for_the_gradient() -> None:
    arguments = inputs()
    torch.testing.assert_close(tdpo_loss(*arguments, alpha=0)[0], dpo_loss(*arguments[:4])[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(tdpo_loss(*arguments, alpha=1)[0], tdpo_loss(*arguments, variant="tdpo1")[0])
    assert torch.equal(tdpo_loss(*arguments)[0], tdpo_loss(*arguments, alpha=0.5)[0])


def test_only_tdpo1_sends_gradient_into_the_divergence_of_the_chosen_answer() -> None:
    arguments = inputs()
    chosen_kl, rejected_kl = (tensor.requires_grad_() for tensor in arguments[4:])
    for variant, reaches in (("tdpo1", True), ("tdpo2", False)):
        losses, _ = tdpo_loss(*arguments, variant=variant)
        to_chosen, to_rejected = torch.autograd.grad(losses.sum(), [chosen_kl, rejected_kl], allow_unused=True)
        assert (to_rejected > 0).all()
        if reaches:
            assert (to_chosen < 0).all()
        else:
            assert to_chosen is None


def test_gradcheck() -> None:
    arguments = inputs()
    for index in (0, 1, 4, 5):
        arguments[index].requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: tdpo_loss(*a, variant="tdpo1")[0], arguments)
    arguments[4].requires_grad_(False)  # What tdpo2 detaches, finite differences would see.
    assert torch.autograd.gradcheck(lambda *a: tdpo_loss(*a)[0], arguments)


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_extremes_are_finite(variant: str, size: float) -> None:
    chosen = torch.tensor([size], requires_grad=True)
    kl = torch.tensor([[1e4, 0.0]], requires_grad=True)
    zeros = torch.zeros(1)
    losses, _ = tdpo_loss(chosen, zeros, zeros, zeros, kl, kl, variant=variant)
    gradients = torch.autograd.grad(losses.sum(), [chosen, kl])
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.5 has no effect on variant='tdpo1'"):
        tdpo_loss(*inputs(), variant="tdpo1", alpha=0.5)
    with pytest.raises(ValueError, match="variant='tdpo3' must be one of 'tdpo1', 'tdpo2'"):
        PairLoss("tdpo", {"variant": "tdpo3"})
    with pytest.raises(ValueError, match="alpha=-1 must be at least 0"):
        PairLoss("tdpo", {"alpha": -1})
    arguments = inputs()
    with pytest.raises(ValueError, match=r"chosen_kl \(2,\)"):
        tdpo_loss(*arguments[:4], arguments[4][:2], arguments[5])
