"""Half fine-tuning: what is frozen stays to the bit, and the halves are balanced."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import CONFIGS, tiny_batch, tiny_model
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lit_ift.callbacks import HalfFineTuning
from lit_ift.callbacks.half_fine_tuning import frozen_half, layer_groups, trained_units
from lit_ift.errors import UserError
from lit_ift.modules import CausalLMModule, IFTModule, SFTModule
from lit_ift.modules.optim import ConstantSchedule

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: AdamW(params, lr=0.01, weight_decay=0.1),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}
UNITS = {  # Of a layer: attention, feed-forward, norm.
    "gpt2": (2, 2, 2),
    "phi": (4, 2, 1),
    "phi3": (2, 2, 2),
    "qwen3": (4, 3, 4),
    "gemma2": (4, 3, 4),
    "gemma3": (4, 3, 6),
}


class Weights(Callback):
    """The weights after every optimizer step, and the gradient norm that other callbacks see."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        self.norms: list[float] = []
        self.steps = -1

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._note(module)
        self.steps = trainer.global_step

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > self.steps:
            self._note(module)
            self.steps = trainer.global_step

    def _note(self, module: L.LightningModule) -> None:
        self.seen.append({name: p.detach().clone() for name, p in module.named_parameters()})

    def moved(self, step: int) -> set[str]:
        before, after = self.seen[step], self.seen[step + 1]
        return {name for name, values in after.items() if not torch.equal(values, before[name])}


def loader(batches: int = 4) -> DataLoader:
    return DataLoader([tiny_batch(2, first=2 * i) for i in range(batches)], batch_size=None)


def fit(
    half: HalfFineTuning, module: CausalLMModule, ckpt_path: Any = None, **options: Any
) -> tuple[Weights, L.Trainer]:
    weights = Weights()
    trainer = L.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[half, weights],
        **{"logger": False, "enable_checkpointing": False, "max_steps": 3, **options},
    )
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=False)
    return weights, trainer


def frozen_names(module: CausalLMModule, seed: int = 0, number: int = 0) -> set[str]:
    frozen = frozen_half(layer_groups(trained_units(module)), seed, number)
    return {name for name, _ in module.named_parameters() if name.rpartition(".")[0] in frozen}


@pytest.mark.parametrize("module_class", [SFTModule, IFTModule])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_frozen_half_does_not_move(name: str, module_class: type) -> None:
    """AdamW with decay, micro-batches, clipping."""
    module = module_class(tiny_model(name), detach_input_embeddings=False, **OPTIONS)
    expected = frozen_names(module)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 2}
    weights, trainer = fit(HalfFineTuning(), module, **options)
    assert len(weights.seen) == 4
    for step in range(3):
        assert weights.moved(step) == set(weights.seen[0]) - expected
    assert all(parameter.requires_grad for parameter in module.parameters())
    share = 1 - sum(weights.seen[0][n].numel() for n in expected) / sum(v.numel() for v in weights.seen[0].values())
    assert float(trainer.callback_metrics["hft/trainable_share"]) == pytest.approx(share)
    # Norm and clipping are the trained half's.
    assert float(trainer.callback_metrics["train/grad_norm"]) == pytest.approx(weights.norms[-1], rel=1e-6)


def test_rounds_take_other_halves() -> None:
    """Momentum of an earlier round must not move a parameter of a later one."""
    module = SFTModule(tiny_model(), **OPTIONS)
    weights, _ = fit(HalfFineTuning(every_n_steps=2, seed=5), module, max_steps=6, max_epochs=2)
    names = set(weights.seen[0])
    expected = [names - frozen_names(module, 5, step // 2) for step in range(6)]
    assert [weights.moved(step) for step in range(6)] == expected
    assert expected[0] != expected[2]
    module = SFTModule(tiny_model(), **OPTIONS)
    weights, _ = fit(HalfFineTuning(every_n_epochs=1), module, max_steps=8, max_epochs=2)
    assert [weights.moved(step) for step in (3, 4)] == [names - frozen_names(module, 0, n) for n in (0, 1)]


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Any = None) -> tuple[Weights, L.Trainer]:
        half = HalfFineTuning(every_n_steps=3)
        options = {"max_steps": -1, "max_epochs": epochs, "enable_checkpointing": True, "default_root_dir": tmp_path}
        return fit(half, SFTModule(tiny_model(), **OPTIONS), ckpt_path, **options)

    whole, _ = run(3)
    _, trainer = run(1)
    resumed, _ = run(3, trainer.checkpoint_callback.best_model_path)
    assert (len(whole.seen), len(resumed.seen)) == (13, 9)
    for name, values in whole.seen[-1].items():
        assert torch.equal(resumed.seen[-1][name], values), name


@pytest.mark.parametrize("layers", [4, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_halves_are_balanced(name: str, layers: int) -> None:
    changes = {"n_layer": layers} if name == "gpt2" else {"num_hidden_layers": layers}
    if name == "gemma2" or name == "gemma3":
        changes["layer_types"] = ["full_attention"] * layers
    module = SFTModule(tiny_model(name, **changes))
    units = trained_units(module)
    found = layer_groups(units)
    assert sorted(number for _, number in found) == list(range(layers))
    sizes = dict(zip(("attention", "feed-forward", "norm"), UNITS.get(name, (4, 3, 2)), strict=True))
    outside = set(units) - {unit for groups in found.values() for members in groups.values() for unit in members}
    assert len(outside) == (4 if name == "gpt2" else 3)  # Embeddings (GPT-2 learns positions), head, last norm.
    chosen = [frozen_half(found, 0, number) for number in range(8)]
    for frozen in chosen:
        assert not frozen & outside
        for group, size in sizes.items():
            counts = [len(frozen & set(groups[group])) for groups in found.values()]
            assert all(len(groups[group]) == size for groups in found.values())
            low, more = divmod(size, 2)
            # As often the larger part as the smaller one, or once less.
            assert Counter(counts) == Counter({low: layers - more * (layers // 2), low + 1: more * (layers // 2)})
    assert len({frozenset(frozen) for frozen in chosen}) == 8
    assert frozen_half(found, 0, 3) == chosen[3]
    assert frozen_half(found, 1, 3) != chosen[3]
    # Every unit of a layer has its turn.
    often = Counter(unit for number in range(400) for unit in frozen_half(found, 0, number))
    for groups in found.values():
        for members in groups.values():
            assert all(120 < often[unit] < 280 for unit in members)


def test_adapters_are_halved_by_layer() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=True)
    module = SFTModule(peft.get_peft_model(tiny_model(dtype=torch.float32), config), **OPTIONS)
    units = trained_units(module)
    assert {unit.rpartition(".")[2] for unit in units} == {"q_proj", "v_proj", "down_proj"}
    assert {len(parameters) for parameters in units.values()} == {3}  # A, B and magnitude stay together.
    groups = layer_groups(units)
    assert [{group: len(members) for group, members in layer.items()} for layer in groups.values()] == [
        {"attention": 2, "feed-forward": 1}
    ] * 2
    weights, _ = fit(HalfFineTuning(), module)
    frozen = frozen_half(groups, 0, 0)
    assert len(frozen) == 3
    for name in weights.moved(1):
        assert "lora" in name
        assert not any(name.startswith(unit + ".") for unit in frozen)
    assert len(weights.moved(1)) == 9


def test_refuses() -> None:
    for options in ({"every_n_steps": 0}, {"every_n_epochs": -1}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}={options[name]} must be at least 1"):
            HalfFineTuning(**options)
    with pytest.raises(ValueError, match="every_n_steps=2 and every_n_epochs=1"):
        HalfFineTuning(2, 1)
    model = tiny_model()
    model.model.layers.requires_grad_(False)
    with pytest.raises(UserError, match=r"finds no numbered layers.*embed_tokens"):
        fit(HalfFineTuning(), SFTModule(model, **OPTIONS))
