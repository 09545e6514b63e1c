"""Models that are built without values and filled from their files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from lit_ift.distributed.load import WeightFiles, load_skeleton, materialise, stand_ins
from lit_ift.errors import UserError
from lit_ift.models import load_model
from lit_ift.models.lora import add_lora

CPU = torch.device("cpu")


def saved(folder: Path, name: str = "llama", *, tied: bool = False, **options: str) -> str:
    tiny_model(name, tied=tied, dtype=torch.float32).save_pretrained(folder, **options)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_becomes_the_model_that_is_loaded_whole(name: str, tied: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", name, tied=tied, max_shard_size="10KB")
    found = load_skeleton(folder, dtype="float64")
    assert found is not None
    model, files = found
    assert len(list(Path(folder).glob("*.safetensors"))) > 1
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    materialise(model, CPU)
    files.read_into(model)
    model.tie_weights()  # Sharding keeps tied weights tied; memory given to a whole model does not.
    expected = load_model(folder, dtype="float64")
    assert type(model) is type(expected)
    assert model.training
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]
    theirs = [*expected.parameters(), *expected.buffers()]
    for mine, other in zip([*model.parameters(), *model.buffers()], theirs, strict=True):
        assert torch.equal(mine, other)


def test_an_adapter_on_it_has_values(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    options = {"r": 2}
    found = load_skeleton(folder, lora=options)
    assert found is not None
    skeleton, files = found
    torch.manual_seed(4)
    with stand_ins(skeleton):
        model = add_lora(skeleton, options)
    materialise(model, CPU)
    files.read_into(model)
    torch.manual_seed(4)
    expected = add_lora(load_model(folder), options)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    flags = {name: parameter.requires_grad for name, parameter in expected.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


@pytest.mark.parametrize("size", ["10KB", "1MB"])  # Several files with an index; one file.
def test_damaged_files_are_said(tmp_path: Path, size: str) -> None:
    folder = saved(tmp_path / "m", max_shard_size=size)
    file = max(Path(folder).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="The weights are damaged or cut short"):
        load_skeleton(folder)
    if size == "10KB":
        file.unlink()
        with pytest.raises(UserError, match="Check that the folder holds a complete model"):
            load_skeleton(folder)


def test_files_that_do_not_fit_are_left_to_transformers(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    file = Path(folder) / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    for changed in (
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "more": tensors[name].clone()},
        {**tensors, name: tensors[name][:-1].contiguous()},
    ):
        save_file(changed, file, metadata={"format": "pt"})
        assert load_skeleton(folder) is None


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}])
def test_adapters_that_look_at_the_weights(lora: dict[str, object], tmp_path: Path) -> None:
    assert load_skeleton(saved(tmp_path / "m"), lora=lora) is None


def test_what_has_no_safetensors(tmp_path: Path) -> None:
    assert load_skeleton(tiny_model()) is None
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert WeightFiles.of(tmp_path) is None


def test_files_beside_the_model_are_not_read(tmp_path: Path) -> None:
    """Such as Mistral's own form of the weights, or a folder that was written anew with fewer files."""
    folder = saved(tmp_path / "m", max_shard_size="10KB")
    save_file({"layers.0.wo": torch.zeros(2)}, tmp_path / "m" / "consolidated.safetensors")
    assert load_skeleton(folder) is not None
    saved(tmp_path / "m")  # transformers reads one file rather than the index.
    name = "model.layers.0.mlp.up_proj.weight"
    found = load_skeleton(folder)
    assert found is not None
    assert torch.equal(found[1].read(name), load_model(folder).state_dict()[name])


def test_files_that_are_damaged_later_are_said(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    found = load_skeleton(folder)
    assert found is not None
    model, files = found
    materialise(model, CPU)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"m cannot be loaded: rank 0: SafetensorError"):
        files.read_into(model)
