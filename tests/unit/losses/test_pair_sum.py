"""A list of pair losses is their weighted sum, with metrics by name, and says what is wrong with it and where."""

import re
from typing import Any

import pytest
import torch
from pair_variants import VARIANTS, differentiable, some_inputs

from lit_ift.losses import PairLoss
from lit_ift.losses.pair_sum import pair_objective


def test_a_sum_is_the_sum_of_its_weighted_terms() -> None:
    inputs = some_inputs()
    summed = pair_objective(
        [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.2}, {"name": "simpo", "weight": 2}]
    )
    losses, metrics = summed(inputs)
    dpo, sft, simpo = (PairLoss(*term)(inputs) for term in (("dpo", {"beta": 0.3}), ("sft",), ("simpo",)))
    torch.testing.assert_close(losses, dpo[0] + 0.2 * sft[0] + 2 * simpo[0], rtol=1e-12, atol=0)
    assert torch.equal(metrics["dpo/rewards/margins"], dpo[1]["rewards/margins"])
    assert torch.equal(metrics["simpo/rewards/margins"], simpo[1]["rewards/margins"])
    assert torch.equal(metrics["sft/loss"], sft[0])
    assert len(metrics) == len(dpo[1]) + len(sft[1]) + len(simpo[1]) + 3


def test_inputs_are_the_union_without_repeats() -> None:
    summed = pair_objective([{"name": "simpo"}, {"name": "sft"}, {"name": "tpo"}])
    lengths = ["chosen_lengths", "rejected_lengths"]
    assert summed.inputs == ["chosen_logps", "rejected_logps", *lengths, "gold_logps", "gold_lengths"]
    assert (summed.needs_reference, summed.needs_gold, summed.in_batch) == (False, True, False)
    assert pair_objective([{"name": "sft"}, {"name": "rpo"}]).in_batch


def test_terms_of_one_name_are_told_apart_by_their_place() -> None:
    summed = pair_objective([{"name": "dpo", "beta": 0.1}, {"name": "sft"}, {"name": "dpo", "beta": 0.5}])
    _, metrics = summed(some_inputs())
    assert {name.split("/")[0] for name in metrics} == {"dpo.0", "sft", "dpo.2"}
    assert not torch.equal(metrics["dpo.0/loss"], metrics["dpo.2/loss"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_loss_can_be_a_term_beside_an_nll(variant: str) -> None:
    name, options = VARIANTS[variant]
    inputs = some_inputs()
    losses, _ = pair_objective([{"name": name, **options}, {"name": "sft", "weight": 0.5}])(inputs)
    expected = PairLoss(name, options)(inputs)[0] - 0.5 * inputs["chosen_logps"] / inputs["chosen_lengths"]
    torch.testing.assert_close(losses, expected)


def test_a_name_with_options_is_that_loss_alone() -> None:
    inputs = some_inputs()
    losses, metrics = pair_objective("dpo", {"beta": 0.3})(inputs)
    expected, plain = PairLoss("dpo", {"beta": 0.3})(inputs)
    assert torch.equal(losses, expected)
    assert set(metrics) == set(plain)


def test_an_nll_by_tokens_is_the_mean_over_all_chosen_tokens() -> None:
    inputs = some_inputs(4)
    inputs["chosen_lengths"][2] = inputs["chosen_logps"][2] = 0  # An answer without trained tokens counts for nothing.
    losses, _ = PairLoss("sft_token_mean")(inputs)
    expected = -inputs["chosen_logps"].sum() / inputs["chosen_lengths"].sum()
    torch.testing.assert_close(losses[[0, 1, 3]].mean(), expected)
    assert losses[2] == 0


def test_options_are_not_changed() -> None:
    term = {"name": "dpo", "weight": 0.5, "beta": 0.3, "wpo": {"clamp": False}}
    given = dict(term)
    pair_objective([term])
    assert term == given


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ([], None, "loss=[] names no loss"),
        (["dpo"], None, "loss[0]='dpo' must be a mapping with a name"),
        ([{"beta": 0.1}], None, "loss[0]={'beta': 0.1} must be a mapping with a name"),
        ([{"name": "dpo"}, {"name": "dop"}], None, "loss[1]: loss='dop' is none of dpo, robust_dpo"),
        ([{"name": "dpo"}, {"name": "sft", "beta": 1.0}], None, "loss[1]: The loss 'sft' has no option 'beta'"),
        ([{"name": "dpo", "beta": -1.0}], None, "loss[0]: beta=-1.0 must be above 0"),
        ([{"name": "dpo", "weight": "1"}], None, "loss[0]: weight='1' must be a finite number"),
        ([{"name": "dpo", "weight": float("nan")}], None, "loss[0]: weight=nan must be a finite number"),
        ([{"name": "dpo", "weight": 0}], None, "loss[0]: weight=0 must be above 0"),
        ([{"name": "dpo"}], {"beta": 0.1}, "options={'beta': 0.1} has no effect beside a list"),
        ([{"name": "dpo", "ld_dpo": {}}], None, "loss[0]: ld_dpo: "),
        ("dpo", {"ld_dpo": {"alpha": 1.5}}, "ld_dpo: alpha=1.5 must be at least 0 and at most 1"),
        ("dpo", {"wpo": True}, "wpo=True must be a mapping of its options"),
        ("dpo", {"wpo": {"clamp": 1}}, "wpo: clamp=1 must be true or false"),
        ("tis_dpo", {"ld_dpo": {"alpha": 0.5}}, "ld_dpo has no effect: the loss 'tis_dpo' takes no sums"),
    ],
)
def test_unfit_descriptions_are_refused(loss: Any, options: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pair_objective(loss, options)


def test_gradients_of_a_sum_are_those_of_its_values() -> None:
    summed = pair_objective([{"name": "dpo", "ld_dpo": {"alpha": 0.3}, "wpo": {}}, {"name": "orpo", "weight": 0.5}])
    inputs = some_inputs()
    free = [name for name in differentiable(summed.inputs) if name in ("chosen_logps", "rejected_logps")]
    assert torch.autograd.gradcheck(
        lambda *tensors: summed(inputs | dict(zip(free, tensors, strict=True)))[0],
        [inputs[name].requires_grad_() for name in free],
    )
