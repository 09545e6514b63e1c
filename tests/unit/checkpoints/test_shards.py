"""Folders of shards, read into one process and without running code."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from lit_ift.checkpoints.shards import SHARDS_INDEX, read_shards
from lit_ift.checkpoints.writing import AtomicCheckpointIO, read_header
from lit_ift.errors import UserError


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    model[0].weight.requires_grad_(False)
    groups = [{"params": [model[2].weight], "lr": 0.1}, {"params": [model[0].bias, model[2].bias], "betas": (0.5, 0.6)}]
    optimizer = torch.optim.AdamW(groups, lr=0.2)
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """As FSDP2 writes it, by one rank."""
    torch.manual_seed(1)
    model, optimizer = trained()
    folder = tmp_path / "last.ckpt"
    whole = {"state_dict": get_model_state_dict(model), "optimizer_0": get_optimizer_state_dict(model, optimizer)}
    save(whole, checkpoint_id=folder, no_dist=True)
    torch.save({"loops": {}, "global_step": 3}, folder / "meta.pt")
    return folder


def test_one_process_reads_them_like_a_file(written: Path) -> None:
    torch.manual_seed(1)
    expected_model, expected = trained()
    torch.manual_seed(2)
    model, optimizer = trained()
    checkpoint = AtomicCheckpointIO().load_checkpoint(written)
    assert checkpoint["global_step"] == 3
    model.load_state_dict(checkpoint["state_dict"])
    (state,) = checkpoint["optimizer_states"]
    optimizer.load_state_dict(state)
    torch.testing.assert_close(model.state_dict(), expected_model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], expected.state_dict()["state"], rtol=0, atol=0)
    assert optimizer.state_dict()["param_groups"] == expected.state_dict()["param_groups"]


def test_an_index_that_runs_code_is_refused(written: Path, tmp_path: Path) -> None:
    index = pickle.loads((written / SHARDS_INDEX).read_bytes())
    index.storage_meta = Evil(tmp_path / "evil")
    (written / SHARDS_INDEX).write_bytes(pickle.dumps(index))
    for read in (AtomicCheckpointIO().load_checkpoint, read_header, lambda path: read_shards({}, path)):
        with pytest.raises(UserError, match=r"it names posix.mkdir, which no index of shards holds"):
            read(written)
    assert not (tmp_path / "evil").exists()


def test_a_value_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    save({"state_dict": {"w": torch.zeros(1)}, "x": Evil(tmp_path / "evil")}, checkpoint_id=folder, no_dist=True)
    torch.save({"loops": {}}, folder / "meta.pt")
    with pytest.raises(UserError, match=r"Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(folder)
    with pytest.raises(UserError, match=r"Weights only load failed"):
        read_shards({"x": 0}, folder)
    assert not (tmp_path / "evil").exists()


def test_a_folder_that_is_not_whole_is_no_checkpoint(written: Path) -> None:
    """Copied in part, or written by nodes that do not see the same folder."""
    assert read_header(written)["global_step"] == 3
    (shard,) = written.glob("*.distcp")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{shard.name} has {len(content) - 1} bytes instead of {len(content)}"):
        read_header(written)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is missing. It is damaged, was copied without all"):
        read_header(written)


def test_a_damaged_index_is_no_checkpoint(written: Path) -> None:
    index = (written / SHARDS_INDEX).read_bytes()
    (written / SHARDS_INDEX).write_bytes(index.replace(b"torch.strided", b"torch.strideX"))
    with pytest.raises(UserError, match=r"its index is damaged \(KeyError"):
        read_header(written)
    (written / SHARDS_INDEX).write_bytes(pickle.dumps("else"))
    with pytest.raises(UserError, match="its index is a str"):
        read_header(written)


@pytest.mark.parametrize("name", ["/etc/hostname", "../other/__0_0.distcp", "a/../../b.distcp", "a/b.distcp"])
def test_an_index_names_files_of_its_folder_alone(written: Path, name: str) -> None:
    index = pickle.loads((written / SHARDS_INDEX).read_bytes())
    for place in index.storage_data.values():
        place.relative_path = name
    (written / SHARDS_INDEX).write_bytes(pickle.dumps(index))
    for read in (AtomicCheckpointIO().load_checkpoint, read_header, lambda path: read_shards({}, path)):
        with pytest.raises(UserError, match=rf"its index names '{name}', which is not in its folder"):
            read(written)


def test_damage_and_gaps_are_said(written: Path) -> None:
    with pytest.raises(UserError, match=r"last.ckpt cannot be loaded: .*other"):
        read_shards({"state_dict": {"other": torch.zeros(1)}}, written)
    next(written.glob("*.distcp")).unlink()
    with pytest.raises(UserError, match=r"last.ckpt cannot be read as a checkpoint: .* is missing"):
        AtomicCheckpointIO().load_checkpoint(written)
