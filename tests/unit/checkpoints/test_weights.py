import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import save

from lit_ift.checkpoints.weights import open_checkpoint
from lit_ift.errors import UserError

WEIGHTS = {"model.a.weight": torch.randn(4, 3), "model.b": torch.ones(2, dtype=torch.bfloat16)}
REST: dict[str, Any] = {"loops": {}, "global_step": 3, "hyper_parameters": {"model": "somewhere"}}


@pytest.fixture(params=["file", "folder"])
def checkpoint(request: Any, tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    optimizer = {"state": {"a": {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1.0}]}
    if request.param == "file":
        state = {**WEIGHTS, "metric.total": torch.ones(1)}
        torch.save({**REST, "state_dict": state, "optimizer_states": [optimizer]}, path)
    else:
        save({"state_dict": dict(WEIGHTS), "optimizer_0": optimizer}, checkpoint_id=path, no_dist=True)
        torch.save(REST, path / "meta.pt")
    return path


def test_weights_alone(checkpoint: Path) -> None:
    found = open_checkpoint(checkpoint)
    assert found.kinds == {name.removeprefix("model."): (t.dtype, t.shape) for name, t in WEIGHTS.items()}
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found.read(name.removeprefix("model.")), tensor)
    assert found.header == REST


def test_half_a_checkpoint(checkpoint: Path) -> None:
    if checkpoint.is_file():
        checkpoint.write_bytes(checkpoint.read_bytes()[:700])
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            open_checkpoint(checkpoint)
        return
    (shard,) = checkpoint.glob("*.distcp")
    opened = open_checkpoint(checkpoint)
    shard.write_bytes(shard.read_bytes()[:10])
    with pytest.raises(UserError, match=r"cannot be loaded: rank 0: .*without all of its files"):
        opened.read("a.weight")
    with pytest.raises(UserError, match=rf"{shard.name} has 10 bytes instead of"):
        open_checkpoint(checkpoint)
    shard.unlink()
    with pytest.raises(UserError, match=r"cannot be loaded: rank 0: .*No such file"):
        opened.read("a.weight")
    with pytest.raises(UserError, match=rf"{shard.name} is missing"):
        open_checkpoint(checkpoint)
    index = (checkpoint / ".metadata").read_bytes()
    (checkpoint / ".metadata").write_bytes(index[:100])
    with pytest.raises(UserError, match="cannot be read as a checkpoint: pickle data was truncated"):
        open_checkpoint(checkpoint)
    (checkpoint / ".metadata").unlink()
    with pytest.raises(UserError, match=r"no checkpoint: it has no .metadata"):
        open_checkpoint(checkpoint)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_checkpoint(tmp_path / "nowhere.ckpt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="Hugging Face folder already"):
        open_checkpoint(tmp_path)
    torch.save({**REST, "state_dict": {"net.weight": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"no weights whose names begin with 'model.'"):
        open_checkpoint(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="no checkpoint of a training run"):
        open_checkpoint(tmp_path / "weights.pt")


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, module: str, command: str) -> None:
        self.module, self.command = module, command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("dotted", [False, True])
def test_an_index_that_would_run_a_command(tmp_path: Path, dotted: bool) -> None:
    path = tmp_path / "last.ckpt"
    save({"state_dict": dict(WEIGHTS)}, checkpoint_id=path, no_dist=True)
    torch.save(REST, path / "meta.pt")
    trace = tmp_path / "trace"
    evil = pickle.dumps(Command("os", f"touch {trace}"), protocol=4)
    if dotted:  # Through a module that a class of the index is from.
        name = b"torch.distributed.checkpoint.metadata"
        evil = b"\x80\x04\x8c" + bytes([len(name)]) + name + b"\x8c\x09os.system\x93\x8c"
        command = f"touch {trace}".encode()
        evil += bytes([len(command)]) + command + b"\x85R."
        pickle.loads(evil)  # It works where anything goes, ...
        assert trace.exists()
        trace.unlink()
    (path / ".metadata").write_bytes(evil)
    with pytest.raises(UserError, match="which is not run"):
        open_checkpoint(path)
    assert not trace.exists()  # ... and not here.
