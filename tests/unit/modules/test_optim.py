"""Parameter groups and schedules."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny import tiny_model
from torch import nn

from lit_ift import InstructionDataModule, PreferenceModule, SFTModule
from lit_ift.errors import UserError
from lit_ift.modules.optim import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    configured_options,
    keep_configuration,
    lost_updates,
    parameter_groups,
    use_fused_kernels,
    vector_names,
)


def rates(schedule_class, steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = schedule_class(optimizer, **options)
    if schedule.needs_total_steps:
        schedule.bind(steps)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


def test_schedules_by_hand() -> None:
    assert rates(ConstantSchedule, 4, warmup=1) == pytest.approx([1.0, 2.0, 2.0, 2.0])
    # 10 steps, 2 of warm-up: 1/3, 2/3 of the peak, then 1 - k/8.
    assert rates(LinearSchedule, 10, warmup=0.2)[:4] == pytest.approx([2 / 3, 4 / 3, 2.0, 2.0 * 7 / 8])
    cosine = rates(CosineSchedule, 10, warmup=0)
    assert cosine[0] == pytest.approx(2.0)
    assert cosine[5] == pytest.approx(1.0)
    assert cosine[9] == pytest.approx(1 + math.cos(math.pi * 0.9))


def test_given_length_wins_and_is_not_restored_from_a_checkpoint() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = LinearSchedule(optimizer, warmup=0, total_steps=4)
    assert not schedule.needs_total_steps
    state = schedule.state_dict()
    other = LinearSchedule(optimizer, warmup=0, total_steps=8)
    other.load_state_dict(state)
    assert other.total_steps == 8


def test_only_an_endless_constant_needs_no_length() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    assert not ConstantSchedule(optimizer, warmup=5).needs_total_steps
    assert ConstantSchedule(optimizer, warmup=0.5).needs_total_steps
    assert CosineSchedule(optimizer, warmup=5).needs_total_steps
    with pytest.raises(ValueError, match="warmup=-1"):
        CosineSchedule(optimizer, warmup=-1)


def test_vectors_get_no_weight_decay() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(4, 3))
    names = vector_names(module)
    assert names == {"0.bias", "1.weight", "1.bias"}
    module[2].requires_grad_(False)
    matrices, vectors = parameter_groups(module, names)
    assert [tuple(p.shape) for p in matrices["params"]] == [(3, 2)]
    assert len(vectors["params"]) == 3
    assert vectors["weight_decay"] == 0.0
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(module.requires_grad_(False), names)


def test_flattened_and_wrapped_parameters_keep_their_group() -> None:
    """``torch.compile`` gives them names of its own; a strategy may hand out one-dimensional pieces."""
    inner = nn.Linear(2, 3)
    names = {f"model.{name}" for name in vector_names(inner)}
    inner.weight = nn.Parameter(inner.weight.detach().flatten())
    wrapper = nn.ModuleDict({"model": nn.ModuleDict({"_orig_mod": inner})})
    matrices, vectors = parameter_groups(wrapper, names)
    assert matrices["params"] == [inner.weight]
    assert vectors["params"] == [inner.bias]


def test_configured_options_win_over_a_checkpoint() -> None:
    def build(lr: float, weight_decay: float) -> tuple[torch.optim.Optimizer, LinearSchedule]:
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr, weight_decay=weight_decay)
        return optimizer, LinearSchedule(optimizer, warmup=0, total_steps=10)

    old, old_schedule = build(1.0, 0.1)
    for _ in range(4):
        old.step()
        old_schedule.step()
    new, schedule = build(3.0, 0.0)
    configured = configured_options(new)
    new.load_state_dict(old.state_dict())
    schedule.load_state_dict(old_schedule.state_dict())
    assert new.param_groups[0]["lr"] == pytest.approx(0.6)
    lines = keep_configuration(new, [schedule], configured)
    assert lines == ["lr: 1.0 -> 3.0", "weight_decay: 0.1 -> 0.0"]
    assert new.param_groups[0]["lr"] == pytest.approx(3.0 * 0.6)  # Step 4 of 10, from the new peak.
    assert schedule.last_epoch == 4
    schedule.step()
    assert new.param_groups[0]["lr"] == pytest.approx(3.0 * 0.5)
    assert keep_configuration(new, [schedule], configured) == []


def test_what_a_schedule_moves_is_not_configuration() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    configured = configured_options(optimizer)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    now = [dict(group) for group in optimizer.param_groups]
    assert keep_configuration(optimizer, [schedule], configured) == []
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (now[0]["lr"], now[0]["betas"])


def test_another_optimizers_checkpoint_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    configured = configured_options(sgd)
    sgd.load_state_dict(torch.optim.AdamW([parameter], lr=1.0).state_dict())
    with pytest.raises(UserError, match=r"another optimizer: it has no .*momentum"):
        keep_configuration(sgd, [], configured)


def test_updates_that_half_precision_loses() -> None:
    """Halfway to its neighbour, a weight of bfloat16 just does not move."""
    weights = torch.logspace(-5, 0, 200).to(torch.bfloat16)
    for rate in (5e-7, 1e-4):
        optimizer = torch.optim.SGD([nn.Parameter(weights.clone()), nn.Parameter(torch.ones(50))], lr=rate)
        share, largest = lost_updates(optimizer)
        stays = (weights.float() - rate).to(torch.bfloat16) == weights
        assert 0 < share <= stays.float().mean() < share + 0.1
        assert largest == rate
    assert lost_updates(torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1e-9))[0] == 0


@pytest.mark.slow
def test_a_run_that_would_not_learn_is_warned_of(model_folder: Path, data_file: Path) -> None:
    def fit(precision: Any, rate: float) -> None:
        module = SFTModule(str(model_folder), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate))
        trainer = L.Trainer(
            accelerator="cpu", precision=precision, max_steps=1, logger=False, enable_checkpointing=False
        )
        trainer.fit(module, datamodule=InstructionDataModule(str(data_file), batch_size=2))

    with pytest.warns(UserWarning, match=r"\d+% of the trained weights would not move.*5e-07.*bf16-mixed"):
        fit("bf16-true", 5e-7)
    for precision, rate in (("bf16-true", 1e-2), ("bf16-mixed", 5e-7), ("32-true", 5e-7)):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*would not move")
            fit(precision, rate)


@pytest.mark.parametrize(
    ("module", "rate", "warned"),
    [
        (SFTModule(tiny_model(), lora={"r": 2}), 2e-5, "2e-05 is one for training all weights.*0.0002.*lora.yaml"),
        (SFTModule(tiny_model(), lora={"r": 2}), 2e-4, None),
        (SFTModule(tiny_model()), 2e-5, None),
        (PreferenceModule(tiny_model(), lora={"r": 2}), 2e-6, "2e-06 is one for training all weights.*2e-05"),
        (PreferenceModule(tiny_model(), lora={"r": 2}), 2e-5, None),
    ],
)
def test_an_adapter_with_a_rate_for_all_weights_is_warned_of(module: Any, rate: float, warned: str | None) -> None:
    module._build_optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=rate)
    module._build_scheduler = lambda optimizer: ConstantSchedule(optimizer, warmup=0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        module.configure_optimizers()
    told = [str(warning.message) for warning in seen if "learning rate" in str(warning.message)]
    assert len(told) == (warned is not None)
    assert warned is None or re.search(warned, told[0])


def steps_with(fused: bool | None, dtype: torch.dtype, steps: int = 5) -> torch.Tensor:
    """A weight after some steps of the optimizer that a module makes of AdamW with this option."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(37, 11, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=fused)
    use_fused_kernels(optimizer)
    for _ in range(steps):
        (weight.sin() ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight.detach()


def test_fused_steps_are_those_of_the_plain_optimizer() -> None:
    for dtype, most in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        fused, plain = steps_with(None, dtype), steps_with(False, dtype)
        torch.testing.assert_close(fused, plain, rtol=0, atol=most)
    assert not torch.equal(
        steps_with(None, torch.float32), steps_with(False, torch.float32)
    )  # They are another kernel.


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (torch.optim.AdamW, True),
        (torch.optim.Adam, True),
        (lambda params: torch.optim.AdamW(params, fused=False), False),
        (lambda params: torch.optim.AdamW(params, foreach=True), None),
        (lambda params: torch.optim.SGD(params, lr=0.1), None),
        (type("Own", (torch.optim.AdamW,), {}), None),
    ],
)
def test_only_what_is_not_said_is_fused(make: Any, fused: bool | None) -> None:
    optimizer = make([nn.Parameter(torch.zeros(2))])
    use_fused_kernels(optimizer)
    assert optimizer.param_groups[0]["fused"] is fused


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_fused_adamw_goes_together_with_clipping(precision: str, data_file: Path, model_folder: Path) -> None:
    """Which Lightning refuses of one that was made so, under mixed precision."""
    module = SFTModule(str(model_folder))
    data = InstructionDataModule(str(data_file), batch_size=4, max_rows=8)
    trainer = L.Trainer(
        max_epochs=1,
        precision=precision,
        gradient_clip_val=0.1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    module.configure_model()
    before = module.model.lm_head.weight.detach().clone()
    trainer.fit(module, datamodule=data)
    assert trainer.optimizers[0].param_groups[0]["fused"] is True
    assert not torch.equal(before, module.model.lm_head.weight)
