"""A token loss on the chosen answers of pairs is given what it names, from the chosen side."""

import sys
from types import ModuleType

import pytest
import torch
from pair_variants import some_inputs
from torch import Tensor

from lit_ift.losses import PairLoss
from lit_ift.losses.logprobs import log_sum_sq_probs, top_entropy
from lit_ift.losses.pair_sum import pair_objective
from lit_ift.losses.token.anchors import anchored_loss, iw_loss
from lit_ift.losses.token.likelihood import deft_loss


def test_inputs_are_those_of_the_chosen_side() -> None:
    given = some_inputs()
    nll, mask, weights = -given["chosen_token_logps"], given["chosen_mask"], given["chosen_data_weights"]
    for name, expected in {
        "deft": deft_loss(nll, mask, given["chosen_token_log_sum_sq_probs"], weights),
        "anchored": anchored_loss(nll, mask, given["chosen_token_kl"], weights),
        "iw": iw_loss(nll, mask, given["reference_chosen_logps"], weights),
    }.items():
        loss = pair_objective(name)
        losses, metrics = loss({key: given[key] for key in loss.inputs})
        torch.testing.assert_close((losses, metrics), expected, rtol=0, atol=0)


def test_what_the_reference_must_give() -> None:
    asked = {name: pair_objective(name) for name in ("nll", "iw", "anchored", "anchored_k3")}
    assert [loss.needs_reference for loss in asked.values()] == [False, True, True, True]
    assert [loss.needs_reference_tokens for loss in asked.values()] == [False, False, True, True]
    assert pair_objective([{"name": "dpo"}, {"name": "cayley_in_batch"}]).in_batch


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    def halved(nll: Tensor, mask: Tensor, *, factor: float = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
        return factor * (nll * mask).sum(-1), {}

    def weighted(nll: Tensor, mask: Tensor, data_weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (nll * mask * data_weights).sum(-1), {}

    def contrast(
        chosen_token_logps: Tensor,
        rejected_token_logps: Tensor,
        chosen_data_weights: Tensor,
        rejected_data_weights: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = chosen_token_logps * chosen_data_weights, rejected_token_logps * rejected_data_weights
        return (rejected - chosen).sum(-1), {}

    def one_sided(
        chosen_token_logps: Tensor, rejected_token_logps: Tensor, chosen_data_weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return (rejected_token_logps - chosen_token_logps * chosen_data_weights).sum(-1), {}

    module = ModuleType("own_token_losses")
    for function in (halved, weighted, contrast, one_sided):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_a_function_from_elsewhere_is_known_by_its_parameters(own: str) -> None:
    given = some_inputs()
    losses, _ = pair_objective([{"name": f"{own}.halved", "factor": 3.0}, {"name": "simpo"}])(given)
    expected = 3 * -(given["chosen_token_logps"] * given["chosen_mask"]).sum(-1) + PairLoss("simpo")(given)[0]
    torch.testing.assert_close(losses, expected)
    losses, _ = pair_objective(f"{own}.weighted")(given)
    torch.testing.assert_close(
        losses, -(given["chosen_token_logps"] * given["chosen_mask"] * given["chosen_data_weights"]).sum(-1)
    )
    with pytest.raises(ValueError, match="'psft' asks for old_token_logps, which chosen answers of pairs come without"):
        pair_objective("psft")


def test_two_losses_may_ask_for_entropies_of_as_many_tokens_as_each_says() -> None:
    loss = pair_objective([{"name": "eaft", "top_k": 3}, {"name": "eaft", "top_k": 20, "wpo": {}}, {"name": "simpo"}])
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    found = {name: make(logits) for name, make in loss.statistics.items()}
    expected = {f"top_{k}_entropies": top_entropy(logits, k) for k in (3, 20)}
    torch.testing.assert_close(found, {**expected, "log_sum_sq_probs": log_sum_sq_probs(logits)})


def test_which_losses_make_use_of_weights_of_tokens(own: str) -> None:
    asked = {
        "nll": [],
        "dpo": ["dpo"],
        "tpo": ["tpo"],
        "propagation": ["propagation"],
        f"{own}.contrast": [],
        f"{own}.one_sided": [f"{own}.one_sided"],
    }
    assert {name: pair_objective(name).losses_without_weights for name in asked} == asked
    assert pair_objective("nll", {"wpo": {}}).losses_without_weights == ["nll"]  # Rejected tokens count there.


def test_changes_of_pair_losses_know_that_it_takes_no_sums() -> None:
    with pytest.raises(ValueError, match="ld_dpo has no effect: the loss 'propagation' takes no sums"):
        pair_objective("propagation", {"ld_dpo": {"alpha": 0.5}})
