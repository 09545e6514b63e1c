"""SFTMix's mixup loss: values by hand, limits, gradients, and which positions meet."""

import math

import pytest
import torch
from torch import Tensor, nn

from lit_ift.losses import head_logps
from lit_ift.losses.sftmix import confidence_pairs, mean_by_pair, mixup_loss, paired_positions

D, V, M = 4, 7, 9


def identity(hidden: Tensor) -> Tensor:
    return hidden


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    hidden = [torch.randn(M, D, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    targets = [torch.randint(V, (M,)) for _ in range(2)]
    return (*hidden, *targets, torch.rand(M, dtype=torch.float64))


def test_value_by_hand() -> None:
    # Logits ln 8 * (1, 0) and ln 8 * (0, 1) mixed by 2/3: (2/3, 1/3) ln 8 = (ln 4, ln 2), so p = (4/6, 2/6).
    # The targets 0 and 1 weigh 2/3 and 1/3: loss = 2/3 ln(3/2) + 1/3 ln 3.
    z_c = torch.tensor([[math.log(8), 0.0]], dtype=torch.float64, requires_grad=True)
    z_u = torch.tensor([[0.0, math.log(8)]], dtype=torch.float64)
    lam = torch.tensor([2 / 3], dtype=torch.float64)
    loss = mixup_loss(z_c, z_u, torch.tensor([0]), torch.tensor([1]), lam, identity)
    assert loss.tolist() == pytest.approx([2 / 3 * math.log(1.5) + math.log(3) / 3], rel=1e-12)
    # The gradient in z_c is lam * (p - mixed one-hot) = 2/3 * (2/3 - 2/3, 1/3 - 1/3) = 0.
    loss.sum().backward()
    torch.testing.assert_close(z_c.grad, torch.zeros(1, 2).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("lam", "side"), [(1.0, 0), (0.0, 1)])
def test_without_mixing_it_is_the_nll_of_one_example(lam: float, side: int) -> None:
    z_c, z_u, y_c, y_u, share = inputs()
    head = nn.Linear(D, V).double()
    loss = mixup_loss(z_c, z_u, y_c, y_u, torch.full_like(share, lam), head)
    expected, _ = head_logps((z_c, z_u)[side], (y_c, y_u)[side], head, select=None)
    torch.testing.assert_close(loss, -expected, rtol=1e-12, atol=1e-12)
    other = torch.autograd.grad(loss.sum(), (z_c, z_u)[1 - side])[0]
    assert not other.any()


def test_gradcheck() -> None:
    z_c, z_u, y_c, y_u, lam = inputs()
    head = nn.Linear(D, V).double()
    assert torch.autograd.gradcheck(lambda a, b: mixup_loss(a, b, y_c, y_u, lam, head), (z_c, z_u))


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_chunks_change_nothing_and_bound_the_logits(chunk_size: int) -> None:
    z_c, z_u, y_c, y_u, lam = inputs()
    linear, sizes = nn.Linear(D, V).double(), []

    def head(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return linear(hidden)

    whole = mixup_loss(z_c, z_u, y_c, y_u, lam, linear)
    parts = mixup_loss(z_c, z_u, y_c, y_u, lam, head, chunk_size=chunk_size)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    leaves = [z_c, z_u, *linear.parameters()]
    weights = torch.rand(M).double()
    for ours, theirs in zip(
        torch.autograd.grad((parts * weights).sum(), leaves),
        torch.autograd.grad((whole * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert max(sizes) == chunk_size
    assert sum(sizes) == 2 * M  # The head runs once, for both targets, and again in the backward pass.
    with torch.no_grad():
        torch.testing.assert_close(mixup_loss(z_c, z_u, y_c, y_u, lam, linear, chunk_size=chunk_size), whole)


def test_extreme_logits_stay_finite() -> None:
    z = torch.tensor([[1e4, -1e4]])
    loss = mixup_loss(z, -z, torch.tensor([1]), torch.tensor([0]), torch.tensor([1.0]), identity)
    assert loss.tolist() == [2e4]


def test_wrong_input() -> None:
    z_c, z_u, y_c, y_u, lam = inputs()
    with pytest.raises(ValueError, match=r"must be \(M, D\), \(M, D\), \(M,\)"):
        mixup_loss(z_c, z_u[:-1], y_c, y_u, lam, identity)
    with pytest.raises(ValueError, match="chunk_size=0"):
        mixup_loss(z_c, z_u, y_c, y_u, lam, identity, chunk_size=0)
    with pytest.raises(ValueError, match=r"must be \(B,\), \(B,\)"):
        confidence_pairs(torch.zeros(3), torch.ones(2))


@pytest.mark.parametrize(
    ("confidence", "trained", "pairs"),
    [
        ([0.1, 0.9, 0.5, 0.7], [1, 1, 1, 1], [[1, 2], [3, 0]]),  # order 1 3 | 2 0
        ([0.1, 0.9, 0.5], [1, 1, 1], [[1, 0]]),  # 2 stands in the middle
        ([0.1, 0.9, 0.5], [1, 0, 1], [[2, 0]]),
        ([0.5, 0.5], [1, 1], [[0, 1]]),
        ([0.5, 0.6], [1, 0], []),
    ],
)
def test_confident_half_meets_the_other(confidence: list, trained: list, pairs: list) -> None:
    found = confidence_pairs(torch.tensor(confidence), torch.tensor(trained).bool())
    assert found.shape == (len(pairs), 2)
    assert found.tolist() == pairs


def test_positions_up_to_the_shorter_answer() -> None:
    # Example 0 owns positions 1, 4; example 1 owns 0, 2, 5; example 2 owns 3. Pairs (1, 0) and (2, 1).
    owners = torch.tensor([1, 0, 1, 2, 0, 1])
    positions, pair_of, lengths = paired_positions(owners, torch.tensor([[1, 0], [2, 1]]), 3)
    assert positions.tolist() == [[0, 1], [2, 4], [3, 0]]
    assert pair_of.tolist() == [0, 0, 1]
    assert lengths.tolist() == [2, 1]
    assert mean_by_pair(torch.tensor([1.0, 3.0, 5.0]), pair_of, lengths).tolist() == [2.0, 5.0]
