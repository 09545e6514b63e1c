"""Several objectives in one step are the weighted sum of each alone."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from feedback import encoded_row, feedback_batch, pairs
from jsonargparse import ArgumentParser
from jsonargparse._common import parsing_settings
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from lit_ift.errors import UserError
from lit_ift.models.source import ModelSource
from lit_ift.modules import CausalLMModule, ContrastiveWeights, IFTModule, MixedModule, PreferenceModule
from lit_ift.modules.mixed import ObjectivePart

INSTRUCTIONS = [encoded_row("instruction", "answer", seed=i) for i in range(3)]
PAIRS = pairs(2, first_seed=10)
PARTS = {
    "instruction": ObjectivePart("IFTModule", {"lam": 0.3}, weight=1.0),
    "preference": ObjectivePart("PreferenceModule", {"options": {"beta": 0.2}, "reference": "cached"}, weight=0.5),
}


def with_weights(**token_weights: Any) -> ObjectivePart:
    return ObjectivePart("PreferenceModule", {"loss": "tis_dpo", "token_weights": token_weights})


def batch(packed: bool = False) -> dict[str, Any]:
    return {
        "instruction": feedback_batch(INSTRUCTIONS, packed=packed),
        "preference": feedback_batch(PAIRS, packed=packed),
    }


def mixed(model: Any) -> MixedModule:
    module = MixedModule(model, parts=PARTS)
    module.check_batch(batch())
    return module


@pytest.mark.parametrize("packed", [False, True])
def test_losses_and_gradients_are_those_of_the_parts(packed: bool) -> None:
    model = tiny_model()
    module = mixed(model)
    nested = batch(packed)
    losses, metrics = module.example_losses(nested)
    weights = module.example_weights(nested)
    assert weights.tolist() == [1, 1, 1, 0.5, 0.5]
    (losses * weights).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    model.zero_grad()
    ift, ift_metrics = IFTModule(model, lam=0.3).example_losses(nested["instruction"])
    dpo, dpo_metrics = PreferenceModule(model, options={"beta": 0.2}, reference="cached").example_losses(
        nested["preference"]
    )
    (ift.sum() + 0.5 * dpo.sum()).backward()
    torch.testing.assert_close(losses, torch.cat([ift, dpo]))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad)
    assert set(metrics) == {
        "instruction/loss",
        "preference/loss",
        *(f"instruction/{name}" for name in ift_metrics),
        *(f"preference/{name}" for name in dpo_metrics),
    }
    assert metrics["preference/rewards/margins"].weights.tolist() == [0, 0, 0, 1, 1]
    assert module.row_ids(nested, 0, 5) == ["row 0", "row 1", "row 2", "row 10", "row 11"]
    own = [ids for part in nested.values() for ids in part["row_ids"]]
    assert own == ["row 0", "row 1", "row 2", "row 10", "row 11"]
    tokens = sum(len(side.input_ids) for row in [*INSTRUCTIONS, *PAIRS] for side in row.sides.values())
    assert module.num_tokens(nested) == tokens


def test_the_model_is_saved_and_optimized_once() -> None:
    model = tiny_model()
    module = mixed(model)
    assert {name.split(".")[0] for name in module.state_dict()} == {"model"}
    assert len(list(module.parameters())) == len(list(model.parameters()))
    assert module.kinds == {"instruction", "preference"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ObjectivePart("IFTModul"), "cannot be imported"),
        (ObjectivePart("IFTModule", {"lamb": 1}), "lamb"),
        (ObjectivePart("IFTModule", {"lam": 2.0}), r"parts.x \(IFTModule\)"),
        (ObjectivePart("IFTModule", {"dtype": "float32"}), "which the parts share"),
        (ObjectivePart("IFTModule", weight=0.0), "weight=0.0 must be above 0"),
        (ObjectivePart("IFTModule", weight=float("inf")), "weight=inf must be a finite number"),
        ({"objective": "IFTModule", "wieght": 2.0}, "parts.x: .*'wieght'"),
        ("IFTModule", "parts.x='IFTModule' is no part"),
        (ObjectivePart("MixedModule"), "no objective"),
        (ObjectivePart("FeedbackModule"), "no objective .* Name one of IFTModule, KTOModule, PreferenceModule, SFTMix"),
        (ObjectivePart("torch.nn.Linear"), "no objective"),
        (with_weights(class_path="NoSuch"), "options.token_weights.class_path='NoSuch' cannot be imported"),
        (with_weights(class_path="math.pi"), "the option takes ContrastiveWeights, and this is no such class"),
        (with_weights(class_path="subprocess.Popen", init_args={"args": ["true"]}), "takes ContrastiveWeights"),
        (ObjectivePart("IFTModule", {"lam": {"class_path": "subprocess.Popen"}}), "takes float, and this is no such"),
        (with_weights(class_path="ContrastiveWeights", positive="a"), "'positive' beside class_path"),
        (with_weights(class_path="ContrastiveWeights"), r"token_weights \(ContrastiveWeights\): .*'positive'"),
    ],
)
def test_unfit_parts_are_refused(part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedModule("never loaded", parts={"x": part})


def test_rows_of_all_parts_count_alike() -> None:
    """Three rows of 4 trained tokens beside two pairs of weight 0.5: 12 to 1, where 3 to 1 was asked for."""
    by_tokens = ObjectivePart("IFTModule", {"reduction": "token"})
    with pytest.raises(
        ValueError, match=r"parts\.instruction\.options\.reduction=token .* a row of preference counts once"
    ):
        MixedModule("never loaded", parts=PARTS | {"instruction": by_tokens})
    module = MixedModule(tiny_model(), parts={"a": by_tokens, "b": ObjectivePart("SFTModule", {"reduction": "token"})})
    weights = module.example_weights({"a": feedback_batch(INSTRUCTIONS[:1]), "b": feedback_batch(INSTRUCTIONS[1:])})
    assert weights.tolist() == [sum(label != -100 for label in row.sides["answer"].labels) for row in INSTRUCTIONS]


@pytest.mark.parametrize("objective", ["IFTModule", "SFTModule"])
def test_embeddings_that_no_part_trains_are_frozen(objective: str) -> None:
    model = tiny_model(tied=False)
    parts = {"instruction": ObjectivePart("IFTModule"), "preference": ObjectivePart(objective)}
    MixedModule(model, parts=parts).configure_model()
    assert model.get_input_embeddings().weight.requires_grad == (objective == "SFTModule")


def test_a_batch_that_is_not_divided_is_refused() -> None:
    with pytest.raises(UserError, match="a batch for each of the parts instruction, preference"):
        mixed(tiny_model()).check_batch(feedback_batch(INSTRUCTIONS))


@pytest.mark.slow
@pytest.mark.parametrize("made_by", ["python", "parser", "command"])
def test_a_part_takes_an_object_as_class_path_and_init_args(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_by: str
) -> None:
    """TIS-DPO in a part is TIS-DPO alone.

    A plain jsonargparse parser makes the object; that of the command line leaves a description, as Python code may.
    """
    monkeypatch.setitem(parsing_settings, "instantiate_subclass_spec_in_any", made_by == "parser")  # Restored.
    for seed, name in enumerate(("positive", "negative"), start=1):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
    arguments = {"positive": str(tmp_path / "positive"), "negative": str(tmp_path / "negative"), "mu": 0.5}
    monkeypatch.setattr("lit_ift.modules.language_model.load_model", load_here)
    options = {"loss": "tis_dpo", "options": {"beta": 0.2}, "reference": "model"}
    weights = {"class_path": "lit_ift.modules.ContrastiveWeights", "init_args": arguments}
    part = {"objective": "PreferenceModule", "options": {**options, "token_weights": weights}}
    if made_by != "python":
        parser = ArgumentParser()
        parser.add_subclass_arguments(CausalLMModule, "model")
        described = {"class_path": "MixedModule", "init_args": {"model": "policy", "parts": {"preference": part}}}
        module = parser.instantiate_classes(parser.parse_object({"model": described})).model
    else:
        module = MixedModule("policy", parts={"preference": ObjectivePart(**part)})
    assert isinstance(module.parts["preference"].token_weights, ContrastiveWeights)
    torch.save(dict(module.hparams), tmp_path / "hparams")
    saved = torch.load(tmp_path / "hparams", weights_only=True)["parts"]["preference"]["options"]
    with_defaults = {**weights, "init_args": {"k": 1.0, "low": -0.5, "high": 1.5, **arguments}}
    of_object = {"python": {"token_weights": weights}, "parser": {}, "command": {"token_weights": with_defaults}}
    assert saved == options | of_object[made_by]

    alone = PreferenceModule("policy", **options, token_weights=ContrastiveWeights(**arguments))
    # The reference is still the policy, so that the weights show in the gradient alone.
    gradients = []
    for one, some in ((module, {"preference": feedback_batch(PAIRS)}), (alone, feedback_batch(PAIRS))):
        one.configure_model()
        head = one.model.get_output_embeddings().weight
        gradients.append(torch.autograd.grad(one.example_losses(some)[0].sum(), head)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_a_checkpoint_is_loaded_with_its_parts(tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    module = mixed(tiny_model())
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "mixed.ckpt")
    loaded = MixedModule.load_from_checkpoint(tmp_path / "mixed.ckpt", model=tiny_model(seed=1), weights_only=True)
    assert loaded.part_weights == module.part_weights
    assert loaded.parts["instruction"].token_input.schedule.value == 0.3
    torch.testing.assert_close(loaded.state_dict(), module.state_dict())


def test_sftmix_as_a_part_draws_anew_in_each_micro_batch() -> None:
    module = MixedModule(tiny_model(), parts={"instruction": ObjectivePart("SFTMixModule")})
    part = module.parts["instruction"]
    draws = []
    for batch_idx in range(2):
        module.on_train_batch_start({"instruction": feedback_batch(INSTRUCTIONS)}, batch_idx)
        draws += part._lam(1)
    assert draws[0] != draws[1]


def test_the_files_of_a_part_are_read_before_training(tmp_path: Path) -> None:
    part = ObjectivePart("SFTMixModule", {"confidence": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="nowhere"):
        MixedModule(tiny_model(), parts={"instruction": part}).configure_model()


@pytest.mark.parametrize("options", [{"disable_dropout": False}, {"lora": {"lora_dropout": 0.1}}])
def test_parts_leave_the_dropout_of_a_ready_model_alone(options: dict[str, Any]) -> None:
    dropout = 0.0 if "lora" in options else 0.1
    module = MixedModule(tiny_model("gpt2", resid_pdrop=dropout), parts=PARTS, **options)
    assert 0.1 in {layer.p for layer in module.model.modules() if isinstance(layer, torch.nn.Dropout)}


def test_the_reference_of_a_part_is_loaded_as_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[dict[str, Any]] = []

    def load(model: ModelSource, **options: Any) -> Any:
        loaded.append(options | {"model": model.path, "revision": model.revision})
        return tiny_model()

    monkeypatch.setattr("lit_ift.modules.language_model.load_model", load)
    options = {"revision": "v2", "dtype": "float64", "attn_implementation": "eager", "trust_remote_code": True}
    parts = {"preference": ObjectivePart("PreferenceModule", {"reference": "model"})}
    MixedModule("policy", parts=parts, **options).configure_model()
    assert [{name: call[name] for name in ("model", *options)} for call in loaded] == [
        {"model": "policy", **options}
    ] * 2


def load_here(model: ModelSource, **_: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.path) if model.is_local else tiny_model()
