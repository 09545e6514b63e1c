"""Padding after the tokens of a row needs no mask: no token attends to what comes after it."""

from typing import Any

import pytest
import torch
from rounding import CLOSE32
from tiny import IMPLEMENTATIONS, called_with, tiny_batch, tiny_model

from lit_ift import SFTModule


def given_masks(model: Any) -> list[Any]:
    """Notes the masks that the decoder is given from now on."""
    seen: list[Any] = []
    called_with(model, attention_mask=lambda kwargs: seen.append(mask := kwargs["attention_mask"]) or mask)
    return seen


def hidden_and_gradient(model: Any, batch: dict[str, Any], compute: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the real tokens, and the gradient of their embeddings from a weighted sum of them."""
    real = batch["attention_mask"].bool()
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    hidden = compute(embeddings)[real]
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    (gradient,) = torch.autograd.grad((hidden * weights).sum(), embeddings)
    return hidden, gradient[real]


@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_hidden_states_without_a_mask_are_those_with_it(name: str, implementation: str) -> None:
    model = tiny_model(name, attn_implementation=implementation)
    batch = tiny_batch(rows=4, length=20)
    batch["attention_mask"][3] = 0  # A row of padding alone, as ranks without data have.
    module = SFTModule(model)

    def with_mask(embeddings: torch.Tensor) -> torch.Tensor:
        mask = batch["attention_mask"]
        return model.get_decoder()(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state

    expected = hidden_and_gradient(model, batch, with_mask)
    seen = given_masks(model)
    found = hidden_and_gradient(model, batch, lambda embeddings: module.hidden_states(embeddings, batch))
    assert seen == [None]
    for ours, theirs in zip(found, expected, strict=True):  # Norms are float32 in any model.
        torch.testing.assert_close(ours, theirs, **CLOSE32)


@pytest.mark.parametrize("padding", ["before", "between"])
def test_other_padding_keeps_its_mask(padding: str) -> None:
    model, batch = tiny_model(), tiny_batch(rows=2, length=12)
    batch["attention_mask"] = torch.ones(2, 12, dtype=torch.long)
    batch["attention_mask"][1, slice(0, 3) if padding == "before" else slice(4, 6)] = 0
    module, seen = SFTModule(model), given_masks(model)
    module.hidden_states(model.get_input_embeddings()(batch["input_ids"]), batch)
    assert torch.equal(seen[0], batch["attention_mask"])


def test_rows_without_padding_need_none() -> None:
    model, batch = tiny_model(), tiny_batch(rows=2, length=12)
    del batch["attention_mask"]
    module, seen = SFTModule(model), given_masks(model)
    module.hidden_states(model.get_input_embeddings()(batch["input_ids"]), batch)
    assert seen == [None]
