"""f-DPO by hand: u is 9 for the chosen and 1/4 for the rejected answer."""

from math import exp, log

import pytest
import torch

from lit_ift.losses import f_dpo_loss

RATIOS = torch.tensor([[2 * log(3)], [-2 * log(2)], [0.0], [0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "chosen", "rejected"),
    [
        ({"divergence": "reverse_kl"}, log(9), log(1 / 4)),
        ({"divergence": "forward_kl"}, 8 / 9, -3.0),  # 1 - 1/u
        ({"divergence": "js"}, log(18 / 10), log(2 / 5)),  # log(2u / (1 + u))
        ({"divergence": "alpha", "alpha": 0.5}, 4 / 3, -2.0),  # 2 (1 - u^-1/2)
    ],
)
def test_hand_derived(options: dict[str, object], chosen: float, rejected: float) -> None:
    """loss = log(1 + e^-h), h = β (f'(9) - f'(1/4))."""
    losses, metrics = f_dpo_loss(*RATIOS, beta=0.5, **options)  # type: ignore[arg-type]
    assert losses.item() == pytest.approx(log(1 + exp(-(chosen - rejected) / 2)), abs=1e-12)
    assert metrics["rewards/chosen"].item() == pytest.approx(chosen / 2, abs=1e-12)
    assert metrics["rewards/rejected"].item() == pytest.approx(rejected / 2, abs=1e-12)


def test_gradient_of_the_forward_kl() -> None:
    """With u = 1 for both, h = 0: d loss / d log u = -β/2 · 1/u = -β/2."""
    chosen = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    losses, _ = f_dpo_loss(chosen, *torch.zeros(3, 1, dtype=torch.float64), beta=0.5, divergence="forward_kl")
    assert torch.autograd.grad(losses.sum(), chosen)[0].item() == pytest.approx(-0.25, abs=1e-12)
