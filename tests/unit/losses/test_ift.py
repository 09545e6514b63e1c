"""Propagation weights and the IFT loss: hand-derived cases, edges, gradients."""

from itertools import product

import pytest
import torch

from lit_ift.losses import ift_loss, propagation_weights, sft_loss, temporal_residual

OPTIONS = [
    {"source": source, "side": side, "norm": norm}
    for source, side, norm in product(("loss", "logps", "mask"), ("left", "right"), ("l1", "l2", "softmax", "log"))
]


def random_case(rows: int = 3, length: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    nll = -torch.rand(rows, length, dtype=torch.float64, generator=generator).clamp(min=1e-3).log()
    mask = torch.rand(rows, length, generator=generator) < 0.7
    mask[:, 3] = True
    return nll, mask


def test_left_by_hand() -> None:
    # nll = [2, 4], both trained, gamma = 1/2, source logps: c = [2 + 4/2, 4] = [4, 4]; l1 rescales to [1, 1].
    # nll = [4, 2]: c = [5, 2], sum 7, weights [10/7, 4/7], loss = (10/7*4 + 4/7*2)/2 = 24/7.
    nll = torch.tensor([[2.0, 4.0], [4.0, 2.0]], dtype=torch.float64)
    mask = torch.ones(2, 2, dtype=torch.bool)
    weights = propagation_weights(nll, mask, gamma=0.5, source="logps")
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0], [10 / 7, 4 / 7]], dtype=torch.float64))
    losses, metrics = ift_loss(nll, mask, gamma=0.5, source="logps")
    torch.testing.assert_close(losses, torch.tensor([3.0, 24 / 7], dtype=torch.float64))
    torch.testing.assert_close(metrics["fused_loss"], torch.tensor([3.0, 3.0], dtype=torch.float64))


def test_right_by_hand() -> None:
    # nll = [4, 2], gamma = 1/2, source logps: c = [4, 2 + 4/2] = [4, 4], plus the row's minimum 4: [8, 8] -> [1, 1].
    # nll = [2, 4]: c = [2, 5], plus 2: [4, 7]; 1/c = [7, 4]/28 -> weights [14/11, 8/11].
    nll = torch.tensor([[4.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    weights = propagation_weights(nll, torch.ones(2, 2), gamma=0.5, source="logps", side="right")
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0], [14 / 11, 8 / 11]], dtype=torch.float64))


def test_a_gap_counts_in_the_discount() -> None:
    # Two turns with one untrained token between: c[0] = 1 + gamma^2 * 1 = 1.25, c[2] = 1 for source mask, gamma 1/2.
    mask = torch.tensor([[True, False, True]])
    weights = propagation_weights(torch.ones(1, 3), mask, gamma=0.5, source="mask")
    torch.testing.assert_close(weights, torch.tensor([[2.5 / 2.25, 0.0, 2 / 2.25]]))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95, 1.0])
def test_weights_sum_to_the_count_and_vanish_off_mask(options: dict, gamma: float) -> None:
    nll, mask = random_case()
    weights = propagation_weights(nll, mask, gamma=gamma, **options)
    torch.testing.assert_close(weights.sum(-1), mask.sum(-1).double())
    assert (weights[~mask] == 0).all()
    assert (weights[mask] > 0).all()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_gradcheck(options: dict) -> None:
    nll, mask = random_case(rows=2, length=6)
    assert torch.autograd.gradcheck(lambda x: ift_loss(x, mask, gamma=0.9, **options)[0], nll.requires_grad_())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_empty_and_lossless_rows(options: dict, gamma: float) -> None:
    """No trained token gives loss 0 attached to the graph; no loss anywhere gives weight 1; neither gives NaN."""
    nll = torch.zeros(3, 5, dtype=torch.float64)
    nll[2] = torch.tensor([0.0, 3.0, 0.0, 0.0, 1.0])
    nll.requires_grad_()
    mask = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    weights = propagation_weights(nll, mask, gamma=gamma, **options)
    if options["source"] != "mask":
        torch.testing.assert_close(weights[1].detach(), mask[1].double())
    losses, _ = ift_loss(nll, mask, gamma=gamma, **options)
    assert losses[0] == 0
    (gradient,) = torch.autograd.grad(losses.sum(), nll)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[0] == 0).all()


def test_gamma_zero_is_sft_bit_for_bit() -> None:
    nll, mask = random_case()
    a, b = nll.clone().requires_grad_(), nll.clone().requires_grad_()
    ift, sft = ift_loss(a, mask, gamma=0.0)[0], sft_loss(b, mask)[0]
    assert torch.equal(ift, sft)
    ift.sum().backward()
    sft.sum().backward()
    assert torch.equal(a.grad, b.grad)


def test_detached_weights_change_the_gradient_only() -> None:
    nll, mask = random_case()
    a, b = nll.clone().requires_grad_(), nll.clone().requires_grad_()
    attached, detached = ift_loss(a, mask, gamma=0.9)[0], ift_loss(b, mask, gamma=0.9, detach_weights=True)[0]
    torch.testing.assert_close(attached, detached)
    attached.sum().backward()
    detached.sum().backward()
    assert not torch.allclose(a.grad, b.grad)
    weights = propagation_weights(nll, mask, gamma=0.9)
    torch.testing.assert_close(b.grad, weights / mask.sum(-1, keepdim=True))


def test_values_off_the_mask_are_ignored() -> None:
    nll, mask = random_case()
    broken = nll.masked_fill(~mask, float("nan")).requires_grad_()
    losses, metrics = ift_loss(broken, mask, gamma=0.9)
    torch.testing.assert_close(losses, ift_loss(nll, mask, gamma=0.9)[0])
    (gradient,) = torch.autograd.grad(losses.sum(), broken)
    assert gradient.isfinite().all()
    assert metrics["fused_loss"].isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_confident_tokens_do_not_overflow_float32(options: dict) -> None:
    """Losses from 1e-7 (a sure token) to 20, and a long stretch of exact zeros in between."""
    nll = torch.zeros(1, 400)
    nll[0, 0], nll[0, 350], nll[0, 399] = 1e-7, 20.0, 1e-7
    nll.requires_grad_()
    losses, _ = ift_loss(nll, torch.ones(1, 400, dtype=torch.bool), gamma=0.5, **options)
    (gradient,) = torch.autograd.grad(losses.sum(), nll)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_bfloat16_and_float32_follow_float64(options: dict) -> None:
    nll, mask = random_case(rows=2, length=2000)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = nll.to(dtype)
        ours = propagation_weights(rounded, mask, gamma=0.95, **options)
        truth = propagation_weights(rounded.double(), mask, gamma=0.95, **options)
        assert ours.dtype == torch.float32
        # softmax has an absolute scale: an error of 1e-6 in c of size 20 is what float32 can do.
        torch.testing.assert_close(ours.double(), truth, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.5}, "gamma=1.5 must be at least 0 and at most 1"),
        ({"gamma": 0.0, "source": "los"}, "source='los' must be one of 'loss', 'logps', 'mask'"),
        ({"side": "up"}, "side='up'"),
        ({"norm": "L1"}, "norm='L1' must be one of 'l1'"),
    ],
)
def test_wrong_options(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ift_loss(torch.ones(1, 2), torch.ones(1, 2), **change)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\), mask of shape \(1, 2\)"):
        ift_loss(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"must be \(B, T\), \(B, T\)"):
        sft_loss(torch.ones(3), torch.ones(3))


def test_temporal_residual_mixes_only_predicted_positions() -> None:
    embeddings = torch.arange(2 * 4 * 3, dtype=torch.float64).reshape(2, 4, 3).requires_grad_()
    mask = torch.tensor([[False, True, False], [True, False, True]])
    predicted = torch.full((3, 3), 100.0, dtype=torch.float64)
    fused = temporal_residual(embeddings, predicted, mask, 0.25)
    expected = embeddings.detach().clone()
    for row, position in ((0, 2), (1, 1), (1, 3)):  # A prediction made at t stands at t+1.
        expected[row, position] = 0.75 * expected[row, position] + 25.0
    torch.testing.assert_close(fused, expected)
    (gradient,) = torch.autograd.grad(fused.sum(), embeddings)
    assert gradient[0, 2, 0] == 0.75
    assert gradient[0, 0, 0] == 1.0
    assert torch.equal(temporal_residual(embeddings, predicted, mask, 0.0), embeddings)
    with pytest.raises(IndexError, match="shape of the mask"):
        temporal_residual(embeddings, predicted, mask[:, :2], 0.5)
