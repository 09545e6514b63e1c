"""The chunked head against plain log_softmax, values and gradients."""

import pytest
import torch
from rounding import CLOSE32
from torch import nn

from lit_ift.losses import head_logps, score_tokens
from lit_ift.losses.logprobs import log_sum_sq_probs

V, D = 37, 8


def softcapped(linear: nn.Linear):
    return lambda hidden: 5.0 * torch.tanh(linear(hidden) / 5.0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 11, 100])
def test_equals_log_softmax(chunk_size: int | None, capped: bool, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(D, V, bias=bias, dtype=torch.float64)
    head = softcapped(linear) if capped else linear
    hidden = torch.randn(11, D, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(V, (11,))
    upstream = torch.randn(11, dtype=torch.float64)

    logps, best = head_logps(hidden, targets, head, chunk_size=chunk_size)
    ours = torch.autograd.grad((logps * upstream).sum(), [hidden, *linear.parameters()])
    logits = head(hidden)
    plain = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    theirs = torch.autograd.grad((plain * upstream).sum(), [hidden, *linear.parameters()])

    torch.testing.assert_close(logps, plain, rtol=1e-12, atol=1e-12)
    assert torch.equal(best, logits.argmax(-1))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_never_holds_more_than_a_chunk_of_logits() -> None:
    linear, sizes = nn.Linear(D, V), []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return linear(hidden)

    hidden = torch.randn(10, D, requires_grad=True)
    logps, _ = head_logps(hidden, torch.zeros(10, dtype=torch.long), head, chunk_size=4)
    logps.sum().backward()
    assert max(sizes) == 4
    assert sum(sizes) == 20  # Once in the forward pass, once more in the backward pass.


def test_only_masked_positions_meet_the_head() -> None:
    torch.manual_seed(0)
    linear, seen = nn.Linear(D, V), []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return linear(hidden)

    hidden = torch.randn(2, 5, D)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [1, -100, -100, -100, 7]])
    scores = score_tokens(hidden, labels, head, chunk_size=100)
    assert seen == [(3, D)]
    # Position t scores token t+1; the label at position 0 has nothing before it.
    assert scores.mask.tolist() == [[False, True, True, False], [False, False, False, True]]
    logps = linear(hidden).log_softmax(-1)
    expected = torch.stack([-logps[0, 1, 3], -logps[0, 2, 4], -logps[1, 3, 7]])
    torch.testing.assert_close(scores.nll[scores.mask], expected)
    assert (scores.nll[~scores.mask] == 0).all()
    assert scores.predictions.tolist() == [logps[0, 1].argmax(), logps[0, 2].argmax(), logps[1, 3].argmax()]


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_statistics_stand_beside_the_log_probabilities(chunk_size: int | None) -> None:
    linear = nn.Linear(D, V, dtype=torch.float64)
    hidden = torch.randn(2, 6, D, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (2, 6))
    labels[0, :3] = -100
    statistics = {"collision": log_sum_sq_probs, "largest": lambda logits: logits.softmax(-1).amax(-1)}
    scores = score_tokens(hidden, labels, linear, statistics=statistics, chunk_size=chunk_size)
    probs = linear(hidden).softmax(-1)[:, :-1].detach()
    torch.testing.assert_close(scores.statistics["collision"], probs.square().sum(-1).log() * scores.mask)
    torch.testing.assert_close(scores.statistics["largest"], probs.amax(-1) * scores.mask)
    assert not any(values.requires_grad for values in scores.statistics.values())
    plain = score_tokens(hidden, labels, linear)
    assert torch.equal(scores.nll, plain.nll)
    assert plain.statistics == {}


def test_no_trained_position_keeps_the_graph() -> None:
    linear = nn.Linear(D, V)
    hidden = torch.randn(1, 3, D, requires_grad=True)
    scores = score_tokens(hidden, torch.full((1, 3), -100), linear)
    scores.nll.sum().backward()
    assert (hidden.grad == 0).all()


def test_selection_may_return_several_ids_or_none() -> None:
    linear = nn.Linear(D, V)
    hidden, targets = torch.randn(6, D), torch.zeros(6, dtype=torch.long)
    _, two = head_logps(hidden, targets, linear, select=lambda z: z.topk(2).indices, chunk_size=4)
    assert two.shape == (6, 2)
    _, none = head_logps(hidden, targets, linear, select=None, chunk_size=4)
    assert none.numel() == 0


def test_bfloat16_logits_are_scored_in_float32() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(D, V, dtype=torch.bfloat16)
    hidden, targets = torch.randn(9, D, dtype=torch.bfloat16), torch.randint(V, (9,))
    logps, _ = head_logps(hidden, targets, linear)
    assert logps.dtype == torch.float32
    truth = linear(hidden).double().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(logps.double(), truth, **CLOSE32)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(N, D\), \(N,\)"):
        head_logps(torch.ones(2, D), torch.ones(3, dtype=torch.long), nn.Linear(D, V))
    with pytest.raises(ValueError, match="chunk_size=0"):
        head_logps(torch.ones(2, D), torch.ones(2, dtype=torch.long), nn.Linear(D, V), chunk_size=0)
    with pytest.raises(ValueError, match=r"\(B, T, D\), \(B, T\)"):
        score_tokens(torch.ones(1, 3, D), torch.ones(1, 2, dtype=torch.long), nn.Linear(D, V))
