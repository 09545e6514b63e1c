"""Under autocast, the gradient of the head's weight is as exact with many chunks of positions as with one."""

from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model

from lit_ift.losses import logprobs
from lit_ift.modules import CausalLMModule, IFTModule, SFTMixModule, SFTModule

ROWS = 24
LENGTH = 32


def head_gradient(
    monkeypatch: pytest.MonkeyPatch, module: CausalLMModule, chunk_size: int | None
) -> tuple[torch.Tensor, int]:
    """Of a batch's mean loss; and in how many chunks the positions were."""
    chunks = 0
    run = module.model.get_output_embeddings().register_forward_hook(lambda *_: seen())  # type: ignore[func-returns-value]

    def seen() -> None:
        nonlocal chunks
        chunks += 1

    size = 10**9 if chunk_size is None else chunk_size
    monkeypatch.setattr("lit_ift.modules.language_model.chunk_size_for", lambda _: size)
    monkeypatch.setattr("lit_ift.modules.sftmix.chunk_size_for", lambda _: size)
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = module.example_losses(tiny_batch(ROWS, LENGTH))
    losses.mean().backward()
    run.remove()
    gradient = module.model.get_output_embeddings().weight.grad
    assert gradient is not None
    return gradient.clone(), chunks


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("module_class", "options"), [(SFTModule, {}), (IFTModule, {"lam": 0.3}), (SFTMixModule, {"mu": 0.5})]
)
def test_it_does_not_depend_on_the_number_of_chunks(
    monkeypatch: pytest.MonkeyPatch, module_class: type[CausalLMModule], options: dict[str, Any], tied: bool
) -> None:
    module = module_class(tiny_model(dtype=torch.float32, tied=tied), **options)
    whole, _ = head_gradient(monkeypatch, module, None)
    gaps = {}
    for chunk_size in (40, 6):
        gradient, chunks = head_gradient(monkeypatch, module, chunk_size)
        gaps[chunks] = float((gradient - whole).norm() / whole.norm())
    print(gaps)
    assert max(gaps) > 100
    assert max(gaps.values()) < 4e-3  # Each is rounded once, which is 2e-3.


def test_the_budget_of_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same hidden states, so that the head's rounding is all there is: at most 3e-3, whatever the chunks."""
    module = SFTModule(tiny_model(dtype=torch.float32))
    batch = tiny_batch(ROWS, LENGTH)
    hidden = torch.randn(ROWS, LENGTH, 16, generator=torch.Generator().manual_seed(1))
    weight = module.model.get_output_embeddings().weight

    def gradient(chunk_size: int, *, autocast: bool) -> torch.Tensor:
        weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            scores = logprobs.score_tokens(hidden, batch["labels"], module.head, chunk_size=chunk_size)
        scores.nll.sum().backward()
        assert weight.grad is not None
        return weight.grad

    exact = gradient(10**9, autocast=False)
    for chunk_size in (10**9, 50, 10, 3):
        assert float((gradient(chunk_size, autocast=True) - exact).norm() / exact.norm()) < 3e-3
