"""Which checkpoint an earlier run has left, and what is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_ift.checkpoints.resume import check_checkpoint, resume_point
from lit_ift.errors import UserError

CONFIG: dict[str, Any] = {"model": "IFTModule", "data": {"seed": 0}}


def write_run(root: Path, name: str, step: int) -> Path:
    run = root / "runs" / name
    (run / "checkpoints").mkdir(parents=True)
    header = {"loops": {}, "global_step": step, "lr_schedulers": [], "logged": {}}
    torch.save(header, run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return run


def found(root: Path, run_name: str | None = None) -> tuple[str | None, str]:
    point, notes = resume_point("auto", root, config=CONFIG, run_name=run_name, dirpath=None)
    return None if point is None else str(point.checkpoint.relative_to(root / "runs")), "\n".join(notes)


@pytest.mark.parametrize("content", ["a: [1, 2", "", "mod", "\0"])
def test_configurations_that_were_being_written_are_passed_over(tmp_path: Path, content: str) -> None:
    """A kill in that moment must not keep all later runs from starting."""
    write_run(tmp_path, "version_0", 5)
    broken = write_run(tmp_path, "version_1", 6)
    (broken / "config.yaml").write_text(content)
    checkpoint, notes = found(tmp_path)
    assert checkpoint == "version_0/checkpoints/last.ckpt"
    assert f"Passed over: {broken / 'config.yaml'} cannot be read as a configuration: " in notes
    # Where it is that of a later attempt, the one before tells what the run is.
    (broken / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (broken / "config.1.yaml").write_text(content)
    assert found(tmp_path)[0] == "version_1/checkpoints/last.ckpt"


def test_a_name_is_enough(tmp_path: Path) -> None:
    run = write_run(tmp_path, "mine", 5)
    (run / "config.yaml").unlink()
    assert found(tmp_path, "mine")[0] == "mine/checkpoints/last.ckpt"
    assert found(tmp_path) == (None, f"No checkpoint to resume from in {tmp_path / 'runs'}/*.")


def test_checkpoints_that_say_too_little_are_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path, "mine", 5)
    torch.save({"loops": {}, "global_step": 6, "lr_schedulers": []}, run / "checkpoints" / "theirs.ckpt")
    torch.save({"loops": {}, "global_step": 7, "logged": {}}, run / "checkpoints" / "weights.ckpt")
    checkpoint, notes = found(tmp_path, "mine")
    assert checkpoint == "mine/checkpoints/last.ckpt"
    assert "theirs.ckpt is of another program, or of a run without RunCheckpoint" in notes
    assert "weights.ckpt has weights alone" in notes


def look(root: Path, run_name: str) -> None:
    resume_point("never", root, config={}, run_name=run_name, dirpath=None)


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "/tmp/a"])
def test_a_run_stays_in_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="must be the name of one folder"):
        look(tmp_path, name)


def test_a_start_that_failed_leaves_its_name_free(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    for name in ("config.yaml", "events.out.tfevents.1", "hparams.yaml"):
        (run / name).write_text("")
    look(tmp_path, "mine")
    (run / "metrics.csv").write_text("")
    with pytest.raises(UserError, match="exists already"):
        look(tmp_path, "mine")


def test_only_a_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(UserError, match="no such file or folder"):
        check_checkpoint(str(path), to_train=False)
    path.write_text("not one")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        check_checkpoint(str(path), to_train=False)
    torch.save({"loops": {}, "state_dict": {}}, path)
    check_checkpoint(str(path), to_train=False)
    with pytest.raises(UserError, match="has weights alone"):
        check_checkpoint(str(path), to_train=True)
    torch.save({"loops": {}, "state_dict": {}, "lr_schedulers": []}, path)
    check_checkpoint(str(path), to_train=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"set model\.init_args\.model"):
        check_checkpoint(str(tmp_path), to_train=False)
