"""Parameters that are chosen by their names."""

from typing import Any

import lightning as L
import pytest
import torch
from tiny import QUIET_TRAINER, tiny_batch, tiny_model
from torch.utils.data import DataLoader

from lit_ift.errors import UserError
from lit_ift.modules import IFTModule, SFTModule
from lit_ift.modules.optim import ConstantSchedule

pytestmark = pytest.mark.slow


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def constant(optimizer: Any) -> ConstantSchedule:
    return ConstantSchedule(optimizer, warmup=0)


def fit(cls: Any = SFTModule, **options: Any) -> tuple[Any, dict[str, torch.Tensor], L.Trainer]:
    module = cls(tiny_model(), optimizer=sgd, lr_scheduler=constant, **options)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer = L.Trainer(**QUIET_TRAINER, max_steps=1)
    trainer.fit(module, DataLoader([tiny_batch()], batch_size=None))
    return module, {name: value - before[name] for name, value in module.model.state_dict().items()}, trainer


@pytest.mark.parametrize("cls", [SFTModule, IFTModule])
def test_frozen_parameters_stay_and_train_again_after_the_run(cls: Any) -> None:
    module, changes, _ = fit(cls, freeze=["model.embed_tokens.*", "model.layers.0.*"])
    frozen = {name for name in changes if name.startswith(("model.embed_tokens", "model.layers.0"))}
    assert {name for name, change in changes.items() if not change.any()} == frozen
    assert all(parameter.requires_grad for parameter in module.model.parameters())


def test_train_only_leaves_the_rest_as_it_is() -> None:
    _, changes, trainer = fit(train_only=["*.q_proj.weight", "*norm.weight"], freeze=["model.norm.weight"])
    changed = {name for name, change in changes.items() if change.any()}
    expected = {name for name in changes if name.endswith(("q_proj.weight", "norm.weight"))} - {"model.norm.weight"}
    assert changed == expected
    assert sum(len(group["params"]) for group in trainer.optimizers[0].param_groups) == len(expected)


def test_an_adapter_is_chosen_from_too() -> None:
    _, changes, _ = fit(lora={"r": 2}, train_only=["*layers.1.*"])
    changed = {name for name, change in changes.items() if change.any()}
    assert changed
    assert all(".layers.1." in name and "lora_" in name for name in changed)


def test_learning_rates_are_multiplied_by_the_first_factor_that_matches() -> None:
    _, plain, _ = fit()
    _, ours, trainer = fit(lr_factors={"*layers.0.*.q_proj.*": 0.25, "*layers.0.*": 0.5})
    for name, change in ours.items():
        factor = 0.25 if "layers.0" in name and "q_proj" in name else 0.5 if "layers.0" in name else 1
        torch.testing.assert_close(change, factor * plain[name], rtol=1e-6, atol=1e-12)
    rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
    assert rates == {0.5, 0.25, 0.125}
    assert float(trainer.callback_metrics["train/lr"]) == 0.5


def test_a_rate_that_is_set_keeps_the_factors() -> None:
    module, _, trainer = fit(lr_factors={"*embed_tokens*": 0.1})
    module.lr = 2.0
    assert sorted(group["lr"] for group in trainer.optimizers[0].param_groups) == pytest.approx([0.2, 2.0, 2.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": ["embed_tokens"]}, r"model.freeze: 'embed_tokens' matches.*Did you mean '\*embed_tokens\*', as in"),
        ({"freeze": ["model.embd_tokens.weight"]}, "Did you mean 'model.embed_tokens.weight'"),
        ({"train_only": ["*.nothing"]}, "model.train_only: "),
        ({"freeze": ["*"]}, "leave nothing to train"),
        ({"lr_factors": {"*embed_tokens*": 0.1}, "freeze": ["*embed_tokens*"]}, "model.lr_factors: "),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit(**options)
