"""Training goes on with the adapter of another run."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from feedback import feedback_batch, pairs
from tiny import QUIET_TRAINER, tiny_batch, tiny_model
from torch.utils.data import DataLoader

from lit_ift.errors import UserError
from lit_ift.models.lora import add_lora
from lit_ift.modules import PreferenceModule, SFTModule

pytestmark = pytest.mark.slow


def trained(folder: Path, **options: Any) -> Any:
    """A model with an adapter that does something, whose folder is written."""
    model = add_lora(tiny_model(), {"r": 3, "lora_alpha": 5, **options})
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"target_modules": ["q_proj"], "bias": "lora_only"}])
def test_it_is_the_same_model_and_the_adapter_trains(tmp_path: Path, options: dict[str, Any]) -> None:
    before = trained(tmp_path / "model", **options)
    for named in (tmp_path / "model", tmp_path):  # The export, and the run that it is in.
        model = add_lora(tiny_model(), {"from": str(named)})
        ids = tiny_batch()["input_ids"]
        torch.testing.assert_close(model(ids).logits, before(ids).logits, rtol=1e-6, atol=1e-6)
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trains == {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    assert model.peft_config["default"].r == 3


def test_dpo_after_sft_compares_with_the_policy_that_it_begins_from(tmp_path: Path) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    trained(tmp_path / "adapter")
    given = {"lora": {"from": str(tmp_path / "adapter")}}
    # A loss that asks for each token takes a second model; others keep sums.
    module = PreferenceModule(str(tmp_path / "base"), tokenizer="none", loss="tdpo", **given)
    batch = feedback_batch(pairs(2), dtype=torch.float32)
    trainer = L.Trainer(**QUIET_TRAINER, max_steps=1)
    trainer.fit(module, DataLoader([batch], batch_size=None))
    assert module.reference.kind == "model"
    assert float(trainer.callback_metrics["train/rewards/margins"]) == pytest.approx(0, abs=1e-4)
    assert PreferenceModule(tiny_model(), **given).reference.kind == "auto"
    plain = PreferenceModule(tiny_model(), **given)
    assert plain.reference._resolved(plain) == "cached"


def test_a_checkpoint_of_it_is_restored(tmp_path: Path) -> None:
    trained(tmp_path / "adapter")
    module = SFTModule(tiny_model(), lora={"from": str(tmp_path / "adapter")})
    trainer = L.Trainer(**QUIET_TRAINER, max_steps=1)
    trainer.fit(module, DataLoader([tiny_batch()], batch_size=None))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = SFTModule.load_from_checkpoint(tmp_path / "last.ckpt", model=tiny_model(), weights_only=True)
    for ours, theirs in zip(again.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_no_adapter_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    trained(tmp_path / "adapter")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "task_type": "CAUSAL_LM"}))
    for options, words in (
        ({"from": str(tmp_path / "nowhere")}, "there is no adapter_config.json"),
        ({"from": str(tmp_path / "adapter"), "r": 4}, "brings its own r"),
        ({"from": str(tmp_path / "other")}, "is not LoRA"),
    ):
        with pytest.raises(UserError, match=words):
            SFTModule("nowhere", lora=options)
    with pytest.raises(UserError, match="does not suit"):
        add_lora(tiny_model(hidden_size=24), {"from": str(tmp_path / "adapter")})
