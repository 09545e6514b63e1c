"""Unified fine-tuning of all kinds of rows in one batch."""

import pytest
import torch
from feedback import answer_logps, encoded_row, feedback_batch, pairs
from tiny import tiny_model

from lit_ift.errors import UserError
from lit_ift.modules import UFTModule
from lit_ift.modules.window import Weighted

ROWS = [
    encoded_row("instruction", "answer", seed=1),
    *pairs(1, first_seed=2),
    encoded_row("unpaired", "answer", score=0.0, seed=3),
    encoded_row("scored", "answer", score=0.25, seed=4),
    encoded_row("preference", "chosen", "rejected", score=0.8, seed=5),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("discrepancy", ["mse", "bce"])
def test_losses_of_all_kinds_by_hand(discrepancy: str, packed: bool) -> None:
    model = tiny_model()
    module = UFTModule(model, beta=0.2, discrepancy=discrepancy, reference="cached")
    batch = feedback_batch(ROWS, packed=packed)
    losses, metrics = module.example_losses(batch)

    reference = iter(batch["reference_logps"])
    rewards = [
        {name: 0.2 * (logp - next(reference)) for name, logp in one.items()} for one in answer_logps(model, ROWS)
    ]

    def single(i: int, score: float) -> torch.Tensor:
        p = torch.sigmoid(rewards[i]["answer"])
        if discrepancy == "mse":
            return (p - score) ** 2
        return -score * torch.log(p) - (1 - score) * torch.log(1 - p)

    h, soft = (rewards[i]["chosen"] - rewards[i]["rejected"] for i in (1, 4))
    expected = [
        single(0, 1.0),
        -torch.log(torch.sigmoid(h)),
        single(2, 0.0),
        single(3, 0.25),
        -0.8 * torch.log(torch.sigmoid(soft)) - 0.2 * torch.log(torch.sigmoid(-soft)),
    ]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-7, atol=1e-9)
    pair_metric = metrics["rewards/margins"]
    assert isinstance(pair_metric, Weighted)
    assert pair_metric.weights.tolist() == [0, 1, 0, 0, 1]
    torch.testing.assert_close(pair_metric.values[[1, 4]], torch.stack([h, soft]).detach())
    assert metrics["loss/scored"].weights.tolist() == [0, 0, 0, 1, 0]


def test_a_step_on_instruction_rows_raises_their_likelihood() -> None:
    model = tiny_model()
    module = UFTModule(model, beta=0.1, reference="cached")
    rows = [encoded_row("instruction", "answer", seed=i) for i in range(4)]
    before = sum(one["answer"] for one in answer_logps(model, rows))
    reference = torch.stack([one["answer"] for one in answer_logps(model, rows)]).detach()
    module.example_losses(feedback_batch(rows, reference=reference))[0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-4 * parameter.grad
    assert sum(one["answer"] for one in answer_logps(model, rows)) > before


def test_unfit_options_are_refused() -> None:
    with pytest.raises(ValueError, match="beta=0"):
        UFTModule("never loaded", beta=0)
    with pytest.raises(ValueError, match="discrepancy"):
        UFTModule("never loaded", discrepancy="mae")  # type: ignore[arg-type]


@pytest.mark.parametrize("score", [None, -0.1, 7.0])
def test_a_batch_without_usable_scores_is_refused(score: float | None) -> None:
    module = UFTModule(tiny_model(), reference="cached")
    module.check_batch(feedback_batch([encoded_row("instruction", "answer"), encoded_row("scored", "answer", score=1)]))
    with pytest.raises(UserError, match="need scores in"):
        module.check_batch(feedback_batch([encoded_row("scored", "answer", score=score)]))
