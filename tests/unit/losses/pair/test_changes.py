"""LD-DPO's log-probabilities and WPO's weights, derived by hand and by loops."""

import math

import pytest
import torch
from pair_variants import VARIANTS, some_inputs
from torch import Tensor

from lit_ift.losses import PairLoss
from lit_ift.losses.logprobs import log_sum_sq_probs
from lit_ift.losses.pair.changes import desensitised_logps, policy_weights
from lit_ift.losses.pair_sum import pair_objective


def with_sums(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over answers that are those of the tokens."""
    own = {name: name.replace("_token_logps", "_logps") for name in inputs if name.endswith("_token_logps")}
    return {**inputs, **{sums: inputs[tokens].sum(-1) for tokens, sums in own.items()}}


def test_tokens_beyond_the_shorter_answer_count_by_alpha() -> None:
    """Trained tokens are counted, wherever they stand: here the second answer has a gap."""
    logps = torch.tensor([[-1.0, -2.0, -4.0, 0.0], [-1.0, 0.0, -3.0, -8.0]])
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    found = desensitised_logps(logps, mask, torch.tensor([2, 1]), alpha=0.25)
    assert found.tolist() == [-1 - 2 - 0.25 * 4, -1 - 0.25 * 3 - 0.25 * 8]


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_ld_dpo_is_dpo_on_those_sums(alpha: float) -> None:
    inputs = some_inputs()
    expected = []
    for pair in range(5):
        lengths = [int(inputs[f"{side}_lengths"][pair]) for side in ("chosen", "rejected")]
        shared, sums = min(lengths), {}
        for name in ("chosen", "rejected", "reference_chosen", "reference_rejected"):
            tokens = inputs[f"{name}_token_logps"][pair].tolist()
            sums[name] = sum(tokens[:shared]) + alpha * sum(tokens[shared:])
        h = 0.3 * (sums["chosen"] - sums["reference_chosen"] - sums["rejected"] + sums["reference_rejected"])
        expected.append(math.log1p(math.exp(-h)))
    losses, _ = pair_objective("dpo", {"beta": 0.3, "ld_dpo": {"alpha": alpha}})(inputs)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("variant", [name for name, (loss, _) in VARIANTS.items() if loss != "tis_dpo"])
def test_alpha_1_changes_no_loss(variant: str) -> None:
    name, options = VARIANTS[variant]
    inputs = with_sums(some_inputs())
    changed = pair_objective(name, {**options, "ld_dpo": {"alpha": 1.0}})
    torch.testing.assert_close(changed(inputs)[0], PairLoss(name, options)(inputs)[0])


def test_the_weight_of_an_answer_is_1_where_the_policy_is_as_sure_as_of_its_own() -> None:
    """A uniform policy gives every token the probability 1/V, and Σ_v π(v)² = 1/V."""
    logits = torch.zeros(2, 3, 7, dtype=torch.float64)
    logps = logits.log_softmax(-1)[..., 0]
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.equal(policy_weights(logps, log_sum_sq_probs(logits), mask), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("variant", ["dpo", "simpo", "orpo", "aot", "sft"])
def test_wpo_weights_any_loss(variant: str, clamp: bool) -> None:
    inputs = some_inputs(40)
    weights = []
    for pair in range(40):
        product = 1.0
        for side in ("chosen", "rejected"):
            n = int(inputs[f"{side}_lengths"][pair])
            gaps = inputs[f"{side}_token_logps"][pair] - inputs[f"{side}_token_log_sum_sq_probs"][pair]
            product *= math.exp(sum(gaps.tolist()[:n]) / n)
        weights.append(min(product, 1.0) if clamp else product)
    losses, metrics = pair_objective(variant, {"wpo": {"clamp": clamp}})(inputs)
    assert min(weights) < 1
    assert (max(weights) > 1) != clamp
    expected = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(metrics["wpo/weight"], expected)
    torch.testing.assert_close(losses, expected * PairLoss(variant)(inputs)[0])


def test_no_gradient_flows_into_the_weights() -> None:
    inputs = some_inputs()
    inputs["chosen_token_logps"].requires_grad_()
    inputs["chosen_logps"].requires_grad_()
    losses, _ = pair_objective("dpo", {"wpo": {}})(inputs)
    gradients = torch.autograd.grad(
        losses.sum(), [inputs["chosen_token_logps"], inputs["chosen_logps"]], materialize_grads=True
    )
    assert [bool(gradient.any()) for gradient in gradients] == [False, True]
