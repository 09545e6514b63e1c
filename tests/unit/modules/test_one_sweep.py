"""Which objectives have one sweep of the head, and that they are the same objectives."""

from typing import Any

import pytest
import torch
from feedback import dummy, encoded_row, feedback_batch, pairs
from tiny import tiny_batch, tiny_model

import lit_ift.modules.one_sweep as one_sweep
from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES
from lit_ift.losses.linear_head import HeadSweep
from lit_ift.losses.one_sweep import swept_losses
from lit_ift.losses.token_registry import TokenLoss
from lit_ift.modules import (
    CausalLMModule,
    IFTModule,
    KTOModule,
    PreferenceModule,
    SFTMixModule,
    SFTModule,
    UFTModule,
)
from lit_ift.modules.one_sweep import hindrance
from lit_ift.modules.window import Weighted

TWO_SWEEPS = {"anchored", "cayley_in_batch"}
"""KL to the reference has a gradient of its own; the other couples the rows of a batch."""
NEEDED: dict[str, dict[str, Any]] = {"deformed_log": {"alpha": 0.5}}


def module_of(name: str, **options: Any) -> CausalLMModule:
    if TokenLoss(name, NEEDED.get(name)).needs_reference:
        options["reference"] = "model"
    return SFTModule(tiny_model(), loss=name, options=NEEDED.get(name), **options)


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_the_path_of_every_token_loss(name: str) -> None:
    assert (hindrance(module_of(name)) is None) == (name not in TWO_SWEEPS)


def run(module: CausalLMModule, batch: dict[str, Any], *, sweeps: bool) -> tuple[Any, ...]:
    module.one_sweep = sweeps
    module.prepare()
    generator = torch.Generator().manual_seed(0)
    for weight in module.model.parameters():  # Away from the reference, from which all margins would be rounding.
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    module.zero_grad()
    losses, metrics = module.example_losses(batch)
    (losses * module.example_weights(batch)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
    return losses.detach(), metrics, gradients


@pytest.mark.parametrize("chunk_size", [10**6, 7])
@pytest.mark.parametrize("name", [name for name in TOKEN_LOSSES if name not in TWO_SWEEPS])
def test_one_sweep_gives_what_two_give(monkeypatch: pytest.MonkeyPatch, name: str, chunk_size: int) -> None:
    monkeypatch.setattr(one_sweep, "chunk_size_for", lambda _: chunk_size)
    swept = []
    monkeypatch.setattr(one_sweep, "swept_losses", lambda *a, **k: swept.append(1) or swept_losses(*a, **k))
    batch = tiny_batch(5, 12)
    for options in ({}, {"reduction": "token"}):
        ours, expected = (run(module_of(name, **options), batch, sweeps=sweeps) for sweeps in (True, False))
        assert_same(ours, expected)
    assert len(swept) == 2


def assert_same(ours: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for metrics in (ours[1], expected[1]):
        for name, metric in [*metrics.items()]:
            if isinstance(metric, Weighted):  # What has no weight may be anything.
                metrics[name] = torch.stack([metric.values.where(metric.weights > 0, 0), metric.weights])
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in expected[2].values()) > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: IFTModule(tiny_model(), lam=0.3),
        lambda: IFTModule(tiny_model(tied=True), lam=0.3, detach_input_embeddings=False),
        lambda: IFTModule(tiny_model(), lam=0.3, lora={"r": 2}),
        lambda: IFTModule(tiny_model(), lam=0.3, lora={"r": 2, "target_modules": ["q_proj", "lm_head"]}),
    ],
    ids=["ift", "tied", "lora", "lora on the head"],
)
def test_every_kind_of_head(make: Any) -> None:
    batch = tiny_batch(5, 12)
    assert_same(run(make(), batch, sweeps=True), run(make(), batch, sweeps=False))


ROWS = [
    encoded_row("instruction", "answer", seed=1),
    *pairs(2, first_seed=2),
    encoded_row("unpaired", "answer", score=0.0, seed=4),
    encoded_row("scored", "answer", score=0.25, seed=5),
    dummy(encoded_row("preference", "chosen", "rejected", score=0.8, seed=6)),
    encoded_row("preference", "chosen", "rejected", score=0.8, seed=7),
]


@pytest.mark.parametrize("chunk_size", [10**6, 7, 3])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda model: UFTModule(model, beta=0.2),
        lambda model: KTOModule(model, variant="bco"),
        lambda model: KTOModule(model, variant="apo_zero"),
        lambda model: PreferenceModule(model, loss="dpo"),
        lambda model: PreferenceModule(model, loss="dpo", options={"wpo": {}}),
        lambda model: PreferenceModule(model, loss="ipo", options={"ld_dpo": {"alpha": 0.5}}, reference="model"),
        lambda model: PreferenceModule(model, loss="simpo", input="temporal_residual", input_options={"lam": 0.3}),
        lambda model: PreferenceModule(model, loss=[{"name": "dpo"}, {"name": "propagation", "weight": 0.2}]),
    ],
    ids=["uft", "bco", "apo_zero", "dpo", "wpo", "ld_dpo", "simpo fused", "dpo and propagation"],
)
def test_objectives_on_whole_answers(monkeypatch: pytest.MonkeyPatch, make: Any, packed: bool, chunk_size: int) -> None:
    monkeypatch.setattr(one_sweep, "chunk_size_for", lambda _: chunk_size)
    rows = [row for row in ROWS if row.kind in make(tiny_model()).kinds]
    batch = feedback_batch(rows, packed=packed)
    assert hindrance(make(tiny_model())) is None
    assert_same(run(make(tiny_model()), batch, sweeps=True), run(make(tiny_model()), batch, sweeps=False))


@pytest.mark.parametrize("name", [name for name in PAIR_LOSSES if name != "tis_dpo"])
def test_the_path_of_every_pair_loss(name: str) -> None:
    module = PreferenceModule(tiny_model(), loss=name)
    divergences = any(asked.endswith("_kl") for asked in module.pair_loss.inputs)
    assert (hindrance(module) is None) == (not divergences and not module.pair_loss.in_batch)


def test_the_logits_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    scores = HeadSweep.scores
    monkeypatch.setattr(HeadSweep, "scores", lambda self, chunk: seen.append(1) or scores(self, chunk))
    monkeypatch.setattr(one_sweep, "chunk_size_for", lambda _: 12)
    batch = tiny_batch(6, 12)
    run(SFTModule(tiny_model()), batch, sweeps=True)
    positions = int((batch["labels"][:, 1:] != -100).sum())
    assert 2 <= len(seen) <= positions / 6


class Doubled(SFTModule):
    def example_losses(self, batch: Any) -> Any:
        losses, metrics = super().example_losses(batch)
        return losses * torch.arange(1, len(losses) + 1), metrics


class OwnHead(SFTModule):
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden) * 2


def test_what_stands_in_the_way() -> None:
    assert hindrance(Doubled(tiny_model())) == "Doubled overrides example_losses"
    assert hindrance(OwnHead(tiny_model())) == "the output head is no plain linear layer"
    assert "log-probabilities of one row" in str(hindrance(SFTMixModule(tiny_model())))
    module = SFTModule(tiny_model())
    assert hindrance(module) is None
    assert module.start_note() == "The output head takes one sweep."
    module.one_sweep = False
    assert module.start_note() == "The output head takes two sweeps: one_sweep is off."
    assert hindrance(module) == "one_sweep is off"
    module = SFTModule(tiny_model())
    module.model.get_output_embeddings().register_forward_hook(lambda *_: None)
    assert hindrance(module) == "the output head is no plain linear layer"


def test_a_subclass_that_weights_rows_is_trained_as_it_says() -> None:
    batch = tiny_batch(4, 10)
    expected = SFTModule(tiny_model())
    losses, _ = expected.example_losses(batch)
    (losses * torch.arange(1, 5)).sum().backward()
    own = Doubled(tiny_model())
    own.one_sweep = True
    own.example_losses(batch)[0].sum().backward()
    for ours, wanted in zip(own.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, wanted.grad)
