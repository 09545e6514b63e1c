"""Frozen weights in 4 and 8 bits, by bitsandbytes itself."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from feedback import feedback_batch, pairs
from lightning.pytorch.plugins.precision import MixedPrecision
from rounding import CLOSE32, NEAR32
from tiny import tiny_batch, tiny_model
from torch import nn
from torch.utils.data import DataLoader

from lit_ift.callbacks import RunCheckpoint
from lit_ift.errors import UserError
from lit_ift.models import base_model, check_packing
from lit_ift.models.load import load_model
from lit_ift.models.quantized import compute_dtype_of, is_quantized, quantization_of, quantized_layers
from lit_ift.modules import IFTModule, PreferenceModule, SFTModule
from lit_ift.modules.kept_arrays import weights_digest
from lit_ift.modules.optim import ConstantSchedule

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes", reason="quantized weights need bitsandbytes: pip install 'lit-ift[quantization]'")

KINDS = ["nf4", "fp4", "int8"]
LAYERS = 2 * 7
"""Seven linear layers in each of two blocks."""


def folder_of(tmp_path: Path, **changes: Any) -> str:
    """Wide enough for blocks of 64 weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    tiny_model(dtype=torch.float32, **{**sizes, **changes}).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def loaded(module: Any) -> Any:
    """With an adapter that does something."""
    module.configure_model()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def dequantized(layer: Any) -> torch.Tensor:
    """What a layer's weights stand for, by the definition of the format and not by the library's kernels."""
    codes, state = layer.weight.data, getattr(layer.weight, "quant_state", None)
    if state is None:
        scb = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        return codes.float() * scb[:, None] / 127
    halves = torch.stack([codes.reshape(-1) >> 4, codes.reshape(-1) & 15], 1).flatten().long()
    blocks = state.state2.absmax.repeat_interleave(256)[: state.absmax.numel()]
    scales = state.state2.code[state.absmax.long()] * blocks + state.offset
    return (state.code[halves].view(-1, 64) * scales[:, None]).view(state.shape)


def full_precision_twin(module: Any) -> Any:
    """The same module on plain linear layers with the rounded weights."""
    model = copy.deepcopy(module.model)
    for name, layer in [(n, m) for n, m in model.named_modules() if m in set(quantized_layers(model))]:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = nn.Parameter(dequantized(layer), requires_grad=False)
        model.set_submodule(name, plain)
    twin = type(module)(tiny_model(dtype=torch.float32))
    twin.model = model
    return twin


def gradients(module: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module.zero_grad()
    loss = module.example_losses(batch)[0].mean()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", KINDS)
def test_what_is_quantized_and_what_trains(tmp_path: Path, quantization: Any, tied: bool) -> None:
    module = SFTModule(folder_of(tmp_path, tied=tied), lora={"r": 2}, quantization=quantization)
    module.configure_model()
    model = base_model(module.model)
    layers = list(quantized_layers(model))
    assert len(layers) == LAYERS
    for layer in layers:
        numbers = layer.in_features * layer.out_features
        assert layer.weight.untyped_storage().nbytes() == (numbers if quantization == "int8" else numbers // 2)
    assert model.get_output_embeddings().weight.dtype == model.get_input_embeddings().weight.dtype == torch.float32
    assert all("lora_" in name for name, p in module.named_parameters() if p.requires_grad)
    assert sum(p.requires_grad for p in module.parameters()) == 2 * LAYERS
    assert quantization_of(module.model) == quantization
    assert is_quantized(module.model)
    assert not is_quantized(tiny_model())


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.parametrize(("objective", "checkpointing"), [(SFTModule, False), (IFTModule, True)])
def test_loss_and_gradient_are_those_of_the_rounded_weights(
    tmp_path: Path, objective: Any, quantization: Any, checkpointing: bool
) -> None:
    """Also after passes in eval mode, in which a library of kernels may rearrange its weights."""
    options = {"gradient_checkpointing": checkpointing, "lora": {"r": 4}}
    module = loaded(objective(folder_of(tmp_path), quantization=quantization, **options))
    expected_loss, expected = gradients(full_precision_twin(module).train(), tiny_batch())
    for _ in range(2):
        loss, found = gradients(module.train(), tiny_batch())
        assert len(expected) == 2 * LAYERS
        torch.testing.assert_close(loss, expected_loss, **CLOSE32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=NEAR32)
        with torch.no_grad():
            module.eval().example_losses(tiny_batch())
    check_packing(module.model)


@pytest.mark.parametrize(
    ("precision", "expected"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), (None, torch.float32)]
)
def test_layers_compute_in_the_precision_of_the_run(tmp_path: Path, precision: Any, expected: torch.dtype) -> None:
    module = SFTModule(folder_of(tmp_path), lora={"r": 2}, quantization="nf4")
    if precision is not None:
        module.trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    module.configure_model()
    assert compute_dtype_of(module.model) == expected
    if precision == "bf16-mixed":
        with MixedPrecision("bf16-mixed", "cpu").forward_context():
            loss, found = gradients(module, tiny_batch())
        assert loss.isfinite()
        assert len(found) == 2 * LAYERS


@pytest.mark.parametrize("objective", [SFTModule, IFTModule])
def test_a_run_changes_the_adapter_alone(tmp_path: Path, objective: Any) -> None:
    module = objective(folder_of(tmp_path), lora={"r": 8}, quantization="nf4", optimizer=adam)
    module.configure_model()
    before = {n: p.data.clone() for n, p in module.named_parameters()}
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    fit(module, 30, callbacks=[Record()])
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    changed = {n for n, p in module.named_parameters() if not torch.equal(p.data, before[n])}
    assert changed == {n for n in before if "lora_" in n}


def test_a_checkpoint_holds_the_adapter_and_a_run_goes_on_from_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)

    def make() -> Any:
        lora = {"r": 4, "lora_dropout": 0.1}
        return SFTModule(folder, lora=lora, quantization="nf4", optimizer=adam, lr_scheduler=ConstantSchedule)

    whole, second = make(), make()
    path = tmp_path / "last-step=3.ckpt"
    fit(whole, 6, batches=1, callbacks=[RunCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=0, keep_last=2)])
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert len(saved) == 2 * LAYERS
    assert all("lora_" in name for name in saved)
    assert fit(second, 6, batches=1, ckpt_path=path).global_step == 6
    for (name, ours), expected in zip(second.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, expected), name
    again = SFTModule.load_from_checkpoint(path, weights_only=True)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in saved.items())


def test_a_checkpoint_must_have_the_whole_adapter(tmp_path: Path) -> None:
    module = SFTModule(folder_of(tmp_path), lora={"r": 2}, quantization="nf4")
    module.configure_model()
    state = module.state_dict()
    name = next(iter(state))
    with pytest.raises(UserError, match=r"1 missing: model.*lora_A"):
        module.load_state_dict({n: t for n, t in state.items() if n != name})
    with pytest.raises(UserError, match=r"1 not part of the model: model\.other"):
        module.load_state_dict({**state, "model.other": state[name]})
    assert len(base_model(module.model).state_dict()) > len(state)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("reference", ["adapter", "model"])
def test_the_reference_is_the_quantized_policy(tmp_path: Path, reference: Any, precision: Any) -> None:
    module = PreferenceModule(folder_of(tmp_path), lora={"r": 2}, quantization="nf4", reference=reference)
    module.trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    module.configure_model()
    batch = feedback_batch(pairs(3), dtype=torch.float32)
    with module.trainer.precision_plugin.forward_context():
        losses, metrics = module.example_losses(batch)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)), **CLOSE32)
    assert metrics["kl"].abs().max() < NEAR32
    if reference == "model":
        second: Any = module.reference._second
        assert compute_dtype_of(second.model) == compute_dtype_of(module.model)


def test_the_digest_of_weights_knows_their_scales(tmp_path: Path) -> None:
    model = load_model(folder_of(tmp_path), quantization="nf4")
    before = weights_digest(model)
    assert weights_digest(load_model(str(tmp_path / "base"), quantization="nf4")) == before
    next(quantized_layers(model)).weight.quant_state.offset.mul_(2.0)
    assert weights_digest(model) != before


def test_int8_keeps_examples_apart(tmp_path: Path) -> None:
    """A token with large activations must not change how the other rows are rounded."""
    model = load_model(folder_of(tmp_path), quantization="int8").eval()
    embedded = model.get_input_embeddings()(torch.arange(3, 11)[None])
    large = torch.cat([embedded, 100 * embedded])
    with torch.no_grad():
        torch.testing.assert_close(
            model(inputs_embeds=large).logits[:1], model(inputs_embeds=embedded).logits, **CLOSE32
        )


def test_fsdp2_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_ift.modules.language_model.sharding_of", lambda trainer: object())
    module = SFTModule("no/such-model", lora={"r": 2}, quantization="nf4")
    with pytest.raises(UserError, match=r"Quantized weights \(nf4\).*FSDP2.*strategy=ddp"):
        module.configure_model()


def test_float64_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not compute in float64"):
        SFTModule("a/model", lora={}, quantization="nf4", dtype="float64")
    with pytest.raises(UserError, match="does not compute in float64"):
        load_model(folder_of(tmp_path), quantization="nf4", dtype="float64")


def test_shapes_that_a_cpu_computes_wrongly_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, intermediate_size=96)
    with pytest.raises(UserError, match=r"layers of 96 inputs, no multiple of 64.*int8"):
        load_model(folder, quantization="nf4")
    load_model(folder, quantization="int8")


def test_a_model_that_is_stored_quantized(tmp_path: Path) -> None:
    load_model(folder_of(tmp_path), quantization="nf4").save_pretrained(tmp_path / "small")
    module = SFTModule(str(tmp_path / "small"), lora={"r": 4}, optimizer=adam)
    fit(module, 2)
    assert quantization_of(module.model) is None  # To be loaded by its own configuration.
    assert all("lora_" in name for name in module.state_dict())
    with pytest.raises(UserError, match=r"stored in quantized form.*model\.lora"):
        fit(SFTModule(str(tmp_path / "small")), 1)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def fit(module: Any, steps: int, *, batches: int = 3, ckpt_path: Path | None = None, **options: Any) -> L.Trainer:
    torch.manual_seed(0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in options.get("callbacks", [])),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = DataLoader([tiny_batch(first=4 * i) for i in range(batches)], batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=ckpt_path is not None or None)
    return trainer
