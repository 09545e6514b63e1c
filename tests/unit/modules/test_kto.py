"""KTO of a batch against its formula on each answer alone."""

import pytest
import torch
from feedback import answer_logps, dummy, encoded_row, feedback_batch
from tiny import tiny_model

from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError
from lit_ift.modules import KTOModule

ROWS = [encoded_row("unpaired", "answer", "mismatched", score=float(i % 2), seed=i) for i in range(4)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("high", [False, True])
def test_losses_by_hand(packed: bool, high: bool) -> None:
    model = tiny_model()
    module = KTOModule(model, beta=0.2, desirable_weight=1.5, reference="cached")
    alone = answer_logps(model, ROWS)
    # A reference far above the policy on mismatched answers makes the baseline negative, hence 0.
    shift = torch.tensor([0.7, 5.0 if high else -5.0] * 4, dtype=torch.float64)
    reference = torch.stack([logp for one in alone for logp in one.values()]).detach() + shift
    losses, metrics = module.example_losses(feedback_batch(ROWS, packed=packed, reference=reference))

    baseline = 0.0 if high else 5.0
    expected = []
    for one, row, own in zip(alone, ROWS, reference.view(-1, 2)[:, 0], strict=True):
        ratio = one["answer"] - own
        if row.score == 1:
            expected.append(1.5 * (1 - torch.sigmoid(0.2 * (ratio - baseline))))
        else:
            expected.append(1 - torch.sigmoid(0.2 * (baseline - ratio)))
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(metrics["kl"], torch.full((4,), baseline, dtype=torch.float64), rtol=1e-7, atol=1e-9)
    assert metrics["rewards/chosen"].weights.tolist() == [0, 1, 0, 1]


def test_a_dummy_row_has_no_share_in_the_baseline() -> None:
    module = KTOModule(tiny_model(), reference="cached")
    batch = feedback_batch(ROWS)
    batch["reference_logps"] -= 100
    more = feedback_batch([*ROWS, dummy(ROWS[0])])
    more["reference_logps"] = torch.cat([batch["reference_logps"], torch.zeros(2, dtype=torch.float64)])
    assert module.example_weights(more).tolist() == [1, 1, 1, 1, 0]
    torch.testing.assert_close(module.example_losses(more)[0][:4], module.example_losses(batch)[0])


def taken_apart(rows: list[EncodedRow]) -> list[EncodedRow]:
    """A thumb for each judged answer. The first of a row keeps its mismatched answer, so that the baseline is equal."""
    made = []
    for row in rows:
        mismatched = {name: side for name, side in row.sides.items() if name == "mismatched"}
        scores = {"chosen": 1.0, "rejected": 0.0, "answer": row.score}
        for name in row.sides.keys() & scores.keys():
            sides = {"answer": row.sides[name], **mismatched}
            made.append(EncodedRow("unpaired", row.row_id, sides, scores[name]))
            mismatched = {}
    return made


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_is_a_thumb_up_and_a_thumb_down(packed: bool) -> None:
    """The weighted sum of losses, and its gradient, are those of the answers as rows of their own."""
    rows = [encoded_row("preference", "chosen", "rejected", "mismatched", seed=10 + i) for i in range(3)]
    rows = [*rows, *ROWS[:2], dummy(rows[0])]
    apart = taken_apart(rows)
    model = tiny_model()
    module = KTOModule(model, beta=0.2, desirable_weight=1.5, reference="cached")
    found = []
    for some in (rows, apart):
        reference = torch.stack([logp - 2 for one in answer_logps(model, some) for logp in one.values()]).detach()
        batch = feedback_batch(some, packed=packed, reference=reference)
        losses, metrics = module.example_losses(batch)
        weights = module.example_weights(batch)
        gradient = torch.autograd.grad((losses * weights).sum(), model.get_input_embeddings().weight)
        found.append(((losses * weights).sum(), weights.sum(), metrics["kl"][0], *gradient))
    assert found[0][1].item() == 8
    assert found[0][2].item() == pytest.approx(2)
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-9)


def test_metrics_of_pairs() -> None:
    rows = [encoded_row("preference", "chosen", "rejected", "mismatched", seed=5), ROWS[1], ROWS[0]]
    model = tiny_model()
    alone = answer_logps(model, rows)
    shift = torch.tensor([-3.0, -1.0, 0.0, -2.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    reference = torch.stack([logp for one in alone for logp in one.values()]).detach() + shift
    _, metrics = KTOModule(model, beta=0.5, reference="cached").example_losses(
        feedback_batch(rows, reference=reference)
    )
    expected = {
        "rewards/chosen": ([1.5, 1.0, 0.0], [1, 1, 0]),
        "rewards/rejected": ([0.5, 0.0, -0.5], [1, 0, 1]),
        "rewards/margins": ([1.0], [1, 0, 0]),
        "rewards/accuracies": ([1.0], [1, 0, 0]),
        "logps/rejected": ([alone[0]["rejected"].item(), 0.0, alone[2]["answer"].item()], [1, 0, 1]),
    }
    for name, (values, weights) in expected.items():
        assert metrics[name].values.tolist()[: len(values)] == pytest.approx(values, abs=1e-9), name
        assert metrics[name].weights.tolist() == weights, name


def test_a_batch_without_mismatched_answers_is_refused() -> None:
    batch = feedback_batch([encoded_row("unpaired", "answer", score=1.0)])
    for variant in ("apo_zero", "bco"):
        KTOModule(tiny_model(), reference="cached", variant=variant).check_batch(batch)
    with pytest.raises(UserError, match="no mismatched answers"):
        KTOModule(tiny_model(), reference="cached").check_batch(batch)
