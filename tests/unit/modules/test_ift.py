"""IFT's two passes on real architectures: equality with SFT, the slow twin, gradients."""

from typing import Any

import pytest
import torch
from tiny import CONFIGS, VOCABULARY_SIZE, tiny_batch, tiny_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from lit_ift.errors import UserError
from lit_ift.losses import ift_loss
from lit_ift.modules import CausalLMModule, IFTModule, SFTModule

UNTIED = ["llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi", "phi3"]
CASES = [(name, True) for name in CONFIGS] + [(name, False) for name in UNTIED]


def model_of(name: str, tied: bool) -> Any:
    # Gemma 2 caps attention logits, which sdpa cannot.
    return tiny_model(name, tied=tied, attn_implementation="eager" if name == "gemma2" else "sdpa")


def losses_and_gradients(module: CausalLMModule, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | None]]:
    losses, _ = module.example_losses(batch)
    losses.sum().backward()
    return losses.detach(), {name: p.grad for name, p in module.model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("name", "tied"), CASES)
def test_without_lam_and_gamma_it_is_sft_bit_for_bit(name: str, tied: bool, detach: bool) -> None:
    batch = tiny_batch()
    ift = IFTModule(model_of(name, tied), lam=0.0, gamma=0.0, detach_input_embeddings=detach)
    sft = SFTModule(model_of(name, tied), detach_input_embeddings=detach)
    ours, gradients = losses_and_gradients(ift, batch)
    theirs, expected = losses_and_gradients(sft, batch)
    assert torch.equal(ours, theirs)
    assert sum(g is not None for g in gradients.values()) >= len(gradients) - 1
    for key, gradient in expected.items():
        assert (gradients[key] is None) == (gradient is None), key
        if gradient is not None:
            assert torch.equal(gradients[key], gradient), key


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tied"), CASES)
def test_both_passes_equal_the_slow_twin(name: str, tied: bool) -> None:
    """Written out with the whole model's logits and transformers' own inputs, a row at a time, without padding."""
    batch, lam = tiny_batch(), 0.3
    module = IFTModule(model_of(name, tied), lam=lam, gamma=0.9)
    ours, gradients = losses_and_gradients(module, batch)

    model = model_of(name, tied).eval()
    model.requires_grad_(True)
    embed = model.get_input_embeddings()
    if not tied:
        embed.requires_grad_(False)
    total, losses = 0.0, []
    for row in range(len(ours)):
        size = int(batch["attention_mask"][row].sum())
        ids, labels = batch["input_ids"][row : row + 1, :size], batch["labels"][row : row + 1, :size]
        with torch.no_grad():
            predicted = model(input_ids=ids).logits.argmax(-1)
            plain = embed(ids)
            mixed = plain.clone()
            for t in range(1, size):
                if labels[0, t] != -100:
                    mixed[0, t] = (1 - lam) * plain[0, t] + lam * embed(predicted[:, t - 1])[0]
        logits = model(inputs_embeds=mixed).logits
        nll = cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="none")[None]
        loss, _ = ift_loss(nll, labels[:, 1:] != -100, gamma=0.9)
        losses.append(loss.detach())
        total = total + loss.sum()
    total.backward()
    # RMSNorm and rotary angles are float32 inside transformers, so padding changes the last bits.
    torch.testing.assert_close(ours, torch.cat(losses), rtol=1e-5, atol=1e-6)
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (gradients[key] is None), key
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-5)


def test_metrics() -> None:
    batch = tiny_batch()
    model = tiny_model()
    module = IFTModule(model, lam=0.4, gamma=0.9)
    _, metrics = module.example_losses(batch)
    assert set(metrics) == {"sft_loss", "fused_loss", "lam", "token_accuracy"}
    assert all(value.shape == (4,) and not value.requires_grad for value in metrics.values())
    assert metrics["lam"].tolist() == [0.4] * 4
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    mask, targets = batch["labels"][:, 1:] != -100, batch["labels"][:, 1:]
    right = ((logits.argmax(-1) == targets) & mask).sum(-1) / mask.sum(-1)
    torch.testing.assert_close(metrics["token_accuracy"].double(), right.double())
    nll = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    sft = (nll * mask).sum(-1) / mask.sum(-1)
    torch.testing.assert_close(metrics["sft_loss"], sft, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(metrics["fused_loss"], metrics["sft_loss"])


def test_accuracy_stays_greedy_under_other_predictions() -> None:
    batch = tiny_batch()
    greedy = IFTModule(tiny_model(), lam=0.4).example_losses(batch)[1]
    second = IFTModule(tiny_model(), lam=0.4, prediction="top-k", top_k=2).example_losses(batch)[1]
    assert torch.equal(greedy["token_accuracy"], second["token_accuracy"])
    assert not torch.allclose(greedy["fused_loss"], second["fused_loss"])


def test_gradient_reaches_a_live_embedding_only_if_asked() -> None:
    batch = tiny_batch()
    for detach in (True, False):
        module = IFTModule(tiny_model(), lam=0.3, detach_input_embeddings=detach)
        _, gradients = losses_and_gradients(module, batch)
        assert (gradients["model.embed_tokens.weight"] is None) == detach
    tied = IFTModule(tiny_model(tied=True), lam=0.3)
    _, gradients = losses_and_gradients(tied, batch)
    assert gradients["model.embed_tokens.weight"].norm() > 0


def test_the_callers_embeddings_are_frozen_for_the_run_only() -> None:
    model = tiny_model()
    embedding = model.get_input_embeddings().weight
    module = IFTModule(model)
    assert embedding.requires_grad
    module.configure_model()
    assert not embedding.requires_grad  # DDP would wait for its gradient.
    module.teardown("fit")
    assert embedding.requires_grad
    tied = IFTModule(tiny_model(tied=True))
    tied.configure_model()
    assert tied.model.get_input_embeddings().weight.requires_grad
    embedding.requires_grad_(False)
    with pytest.warns(UserWarning, match="will not be trained"):
        SFTModule(model).configure_model()
    module.configure_model()
    module.teardown("fit")
    assert not embedding.requires_grad  # It was the caller who froze it.


def test_autocast_keeps_every_gradient() -> None:
    """Older releases of torch reuse the weight casts of the pass without gradient in the one with."""
    batch = tiny_batch()
    module = IFTModule(tiny_model(dtype=torch.float32), lam=0.3)
    module.configure_model()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = module.example_losses(batch)
    losses.sum().backward()
    trained = {n: p for n, p in module.model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.norm() > 0 for p in trained.values())
    exact = IFTModule(tiny_model(dtype=torch.float32), lam=0.3)
    _, expected = losses_and_gradients(exact, batch)
    for name, parameter in trained.items():
        similarity = torch.cosine_similarity(parameter.grad.flatten(), expected[name].flatten(), dim=0)
        assert similarity > 0.9, name


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    batch = tiny_batch()
    plain, expected = losses_and_gradients(IFTModule(tiny_model(name), lam=0.3), batch)
    module = IFTModule(tiny_model(name), lam=0.3, gradient_checkpointing=True)
    assert module.model.is_gradient_checkpointing
    ours, gradients = losses_and_gradients(module, batch)
    torch.testing.assert_close(ours, plain)
    for key, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(gradients[key], gradient, rtol=1e-5, atol=1e-7)


def test_a_row_without_targets_counts_for_nothing() -> None:
    batch = tiny_batch()
    batch["labels"][2] = -100
    module = IFTModule(tiny_model(), lam=0.3)
    losses, _ = module.example_losses(batch)
    assert losses[2] == 0
    assert module.example_weights(batch).tolist() == [1, 1, 0, 1]
    losses.sum().backward()
    module.reduction = "token"
    assert module.example_weights(batch)[2] == 0


def test_wrong_options() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="gamma=2"):
        IFTModule(model, gamma=2.0)
    with pytest.raises(ValueError, match="reduction='mean'"):
        IFTModule(model, reduction="mean")
    with pytest.raises(ValueError, match=r"temperature=1.0 has no effect"):
        IFTModule(model, temperature=1.0)
    with pytest.raises(UserError, match=f"top_k=1000 is more than the model's {VOCABULARY_SIZE} tokens"):
        IFTModule(model, prediction="top-k", top_k=1000).configure_model()
    with pytest.raises(TypeError, match="must override"):
        CausalLMModule(model).example_losses(tiny_batch())
