"""Mixtures of experts are trained with transformers' balancing loss where their configuration asks for it."""

from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from feedback import feedback_batch, pairs
from tiny import SIZES, tiny_batch, tiny_tokenizer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, DogeConfig, MixtralConfig, OlmoeConfig, Qwen3MoeConfig

from lit_ift.chat.example import Example
from lit_ift.data.batch.collate import collate_packed
from lit_ift.errors import UserError
from lit_ift.models.balancing import balancing_of
from lit_ift.models.lora import add_lora
from lit_ift.modules import IFTModule, MixedModule, ObjectivePart, PreferenceModule, SFTModule
from lit_ift.modules.generate import generate_answers
from lit_ift.modules.optim import ConstantSchedule

EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.5, "output_router_logits": True}
CONFIGS: dict[str, Any] = {
    "mixtral": (MixtralConfig, {**EXPERTS, "num_local_experts": 4}),
    "qwen3_moe": (Qwen3MoeConfig, {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 8}),
    "olmoe": (OlmoeConfig, {**EXPERTS, "num_experts": 4, "num_key_value_heads": 2}),
}


def experts(name: str = "mixtral", **changes: Any) -> Any:
    config_class, values = CONFIGS[name]
    torch.manual_seed(0)
    config = config_class(**{**SIZES, **values, **changes})
    # The default knows no float64.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, experts_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0)
    return model


def expected(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """transformers' loss, the balancing loss in it, and the gradients."""
    inputs = {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}
    output = model.train()(**inputs)
    gradients = torch.autograd.grad(output.loss, [*model.parameters()], allow_unused=True)
    return output.loss.detach(), output.aux_loss.detach(), [g for g in gradients if g is not None]


def ours(module: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    losses, metrics = module.all_losses(batch)
    weights = module.example_weights(batch).double()
    mean = (losses * weights).sum() / weights.sum()
    gradients = torch.autograd.grad(mean, [*module.model.parameters()], allow_unused=True)
    return mean.detach(), metrics["balancing_loss"][0], [g for g in gradients if g is not None]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_batch_is_as_in_transformers(name: str, checkpointing: bool) -> None:
    batch = tiny_batch(4)
    loss, balancing, gradients = expected(experts(name), batch)
    module = SFTModule(experts(name), reduction="token", gradient_checkpointing=checkpointing)
    found_loss, found_balancing, found_gradients = ours(module, batch)
    assert float(balancing) > 1
    torch.testing.assert_close(found_loss.float(), loss.float())  # As exact as transformers computes it.
    torch.testing.assert_close(found_balancing.float(), balancing.float())
    for found, wanted in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_padding_and_packing_make_no_difference() -> None:
    module = SFTModule(experts(), reduction="token")
    short = tiny_batch(4)
    loss, balancing, _ = ours(module, short)
    longer = {
        name: torch.nn.functional.pad(short[name], (0, 9), value=value)
        for name, value in (("input_ids", 2), ("labels", -100), ("attention_mask", 0))
    }
    examples = [
        Example(ids[mask.bool()].tolist(), labels[mask.bool()].tolist(), "row")
        for ids, labels, mask in zip(*(short[n] for n in ("input_ids", "labels", "attention_mask")), strict=True)
    ]
    packed: dict[str, Any] = dict(collate_packed(examples, pad_token_id=0))
    for other in (longer, packed):
        other_loss, other_balancing, _ = ours(module, other)
        torch.testing.assert_close(other_loss, loss)
        torch.testing.assert_close(other_balancing, balancing, rtol=1e-6, atol=0)


@pytest.mark.parametrize("changes", [{"output_router_logits": False}, {"router_aux_loss_coef": 0.0}])
def test_a_model_that_does_not_ask_has_none(changes: dict[str, Any]) -> None:
    module = SFTModule(experts(**changes), reduction="token")
    batch = tiny_batch(4)
    losses, metrics = module.all_losses(batch)
    assert "balancing_loss" not in metrics
    assert torch.equal(losses, module.example_losses(batch)[0])


def test_the_pass_without_gradient_does_not_count() -> None:
    module, batch = IFTModule(experts(), lam=0.3), tiny_batch(4)
    plain, _ = module.example_losses(batch)
    losses, metrics = module.all_losses(batch)
    torch.testing.assert_close(losses - plain, 0.5 * metrics["balancing_loss"])
    assert 1 < float(metrics["balancing_loss"][0]) < 4 * 2
    with torch.no_grad():  # As in a validation.
        torch.testing.assert_close(module.all_losses(batch)[0], plain, rtol=1e-12, atol=0)


def test_other_objectives_and_adapters() -> None:
    lora = add_lora(experts(), {"r": 2, "target_modules": ["q_proj"]})
    for model in (experts(), lora):
        module = PreferenceModule(model, loss="simpo")
        losses, metrics = module.all_losses(feedback_batch(pairs(3)))
        assert losses.shape == metrics["balancing_loss"].shape == (3,)
        assert float(metrics["balancing_loss"][0]) > 1


def fit(module: Any, batches: list[Any]) -> dict[str, float]:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_it_is_logged() -> None:
    batch = tiny_batch(4)
    loss, balancing, _ = expected(experts(), batch)
    options: dict[str, Any] = {
        "optimizer": partial(torch.optim.SGD, lr=1e-9),
        "lr_scheduler": partial(ConstantSchedule, warmup=0),
    }
    metrics = fit(SFTModule(experts(), reduction="token", **options), [batch])
    assert metrics["train/loss"] == pytest.approx(float(loss), rel=1e-6)
    assert metrics["train/balancing_loss"] == pytest.approx(float(balancing), rel=1e-6)
    assert metrics["val/loss"] == pytest.approx(float(loss - 0.5 * balancing), rel=1e-6)
    assert "val/balancing_loss" not in metrics
    parts = {"mine": ObjectivePart("SFTModule", {"reduction": "token"})}
    mixed = fit(MixedModule(experts(), parts=parts, **options), [{"mine": batch}])
    assert mixed["train/loss"] == pytest.approx(float(loss), rel=1e-6)
    assert mixed["train/mine/balancing_loss"] == pytest.approx(float(balancing), rel=1e-6)


def test_answers() -> None:
    """transformers would compare the router's logits of one token with a mask over all of them."""
    asking, other = experts(), experts(output_router_logits=False)
    prompts = [[10, 11, 12, 13], [20, 21]]
    found = dict(generate_answers(asking, tiny_tokenizer(), prompts, max_new_tokens=5))
    assert found == dict(generate_answers(other, tiny_tokenizer(), prompts, max_new_tokens=5))


def test_an_unknown_way_is_refused() -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    config = DogeConfig(**sizes, is_moe=True, num_experts=4, num_experts_per_tok=2, output_router_logits=True)
    with pytest.raises(UserError, match=r"DogeForCausalLM asks for a balancing loss.*not known how"):
        balancing_of(AutoModelForCausalLM.from_config(config))
