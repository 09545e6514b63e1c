"""Runs that are killed and started again by the same command, against one that was not."""

import errno
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Job, attempts_of, make_job, problems, write_inputs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lit_ift.cli.training  # noqa: F401  # Imported once, before the processes are forked.


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that is never killed."""
    job = make_job(inputs, tmp_path_factory.mktemp("whole") / "job")
    assert job.run() == [0], job.log()
    return job


@pytest.fixture
def job(inputs: Path, tmp_path: Path) -> Callable[..., Job]:
    return lambda **options: make_job(inputs, tmp_path / "job", **options)


def checkpoints(job: Job) -> dict[str, int]:
    """Steps of the checkpoints of a job's latest run, by name."""
    run = max((job.folder / "out" / "runs").iterdir())
    paths = sorted((run / "checkpoints").iterdir())
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in paths}


def nth(whole: Job, name: str, n: int) -> int:
    """The number of the n-th event of a name, from 1."""
    return [i for i, event in enumerate(whole.events(), start=1) if event == name][n - 1]


@pytest.mark.parametrize(
    ("event", "n", "options"),
    [
        ("after backward", 9, {}),  # inside gradient accumulation
        ("inside a validation", 5, {"workers": 2}),
        ("epoch end", 1, {}),
        ("checkpoint half written", 3, {}),
        ("checkpoint renamed", 4, {"checkpoint.async_save": True, "checkpoint.keep_last": 2}),
    ],
)
def test_kill_and_resume(job: Callable[..., Job], whole: Job, event: str, n: int, options: dict[str, Any]) -> None:
    killed = job(**options)
    assert killed.run(nth(whole, event, n)) == [-signal.SIGKILL]
    assert killed.run() == [0], killed.log()
    assert attempts_of(killed.traces()[0])[-1][0][1] > 0
    assert problems(killed, whole) == []
    assert not list(killed.folder.rglob("*.partial"))
    newest = {"last-step=4.ckpt": 4, "last-step=6.ckpt": 6} if options.get("checkpoint.keep_last") else {"last.ckpt": 6}
    assert checkpoints(killed) == {"step=4.ckpt": 4, **newest}
    # Once more, and there is nothing left to do.
    (before,) = killed.traces()
    assert killed.run() == [0], killed.log()
    assert killed.traces() == [[*before, before[-1]]]
    assert killed.table() == whole.table()


def test_the_comparison_can_fail(job: Callable[..., Job], whole: Job) -> None:
    other = job(**{"data.init_args.seed": 1})
    assert other.run() == [0]
    assert problems(other, whole)


def test_a_run_that_hangs_is_ended_and_says_where_it_was(job: Callable[..., Job]) -> None:
    hanging = job(**{"trainer.callbacks": '[{"class_path": "killing.Hangs"}]'})
    with pytest.raises(TimeoutError, match=r"ranks \[0\] were still running after 8 s") as error:
        hanging.run(timeout=8)
    assert ", line " in str(error.value)
    assert "in _child" in str(error.value)


@pytest.mark.parametrize(
    ("number", "event", "n", "goes_on_after"),
    [
        (signal.SIGTERM, "inside a validation", 1, 3),
        (signal.SIGTERM, "batch end", 5, 6),
        (signal.SIGINT, "batch end", 5, 6),
    ],
)
def test_signals(
    job: Callable[..., Job], whole: Job, number: signal.Signals, event: str, n: int, goes_on_after: int
) -> None:
    """In the first validation, before training, and inside an optimizer step."""
    preempted = job(**{"checkpoint.every_n_train_steps": 100})
    assert preempted.run((event, n), by=number) == [128 + number], preempted.log()
    assert f"{number.name}: stopped after optimizer step" in preempted.log()
    assert preempted.run() == [0], preempted.log()
    assert attempts_of(preempted.traces()[0])[1][0][1] == goes_on_after
    assert problems(preempted, whole) == []


def test_what_auto_and_require_find(job: Callable[..., Job], whole: Job) -> None:
    run = job()
    assert run.run(extra=["--resume=require"]) == [1]
    assert "--resume require: No checkpoint to resume from in" in run.log()
    assert run.run(nth(whole, "epoch start", 2)) == [-signal.SIGKILL]

    folder = run.folder / "out" / "runs" / "version_0"
    assert run.run(extra=["--resume=require", "--data.init_args.seed=1"]) == [1]
    assert f"Passed over: {folder} had another configuration (data.init_args.seed: 0 -> 1)." in run.log()
    assert run.run(extra=["--ckpt_path=x"]) == [1]
    assert "--resume auto looks for a checkpoint, and --ckpt_path gives one." in run.log()

    # A strange file is passed over, though it is the newest.
    torch.save({"loops": Path, "global_step": 99}, folder / "checkpoints" / "last-step=99.ckpt")
    (folder / "checkpoints" / "step=98.ckpt").write_bytes(b"PK\x03\x04 cut off")
    assert run.run() == [0], run.log()
    assert "last-step=99.ckpt cannot be read as a checkpoint" in run.log()
    assert f"Resuming from {folder / 'checkpoints' / 'last.ckpt'}, after optimizer step 2." in run.log()
    assert problems(run, whole) == []


def test_checkpoints_that_do_not_fit_are_refused(job: Callable[..., Job], whole: Job, tmp_path: Path) -> None:
    run = job(resume="never")
    (last,) = whole.folder.rglob("last.ckpt")
    content = torch.load(last, weights_only=True)
    del content["lr_schedulers"], content["optimizer_states"]
    torch.save(content, tmp_path / "weights.ckpt")
    lora = '--model.init_args.lora={"r": 2}'
    for path, words, message in (
        (tmp_path / "none.ckpt", [], "none.ckpt: no such file or folder"),
        (tmp_path / "weights.ckpt", [], "weights.ckpt has weights alone, so training cannot go on from it"),
        (last, [lora], "The checkpoint is of another model: "),
    ):
        assert run.run(extra=[f"--ckpt_path={path}", *words]) == [1]
        assert message in run.log()
    assert "Traceback" not in run.log()


def test_a_run_with_a_name_takes_new_options(job: Callable[..., Job], whole: Job) -> None:
    run = job(run_name="mine")
    assert run.run(nth(whole, "epoch start", 2)) == [-signal.SIGKILL]
    assert run.run(extra=["--resume=never"]) == [1]
    assert "mine exists already. Continue it with --resume auto, or give another --run_name." in run.log()
    other = [
        "--model.init_args.optimizer.init_args.lr=0.5",
        "--trainer.devices=1",
        "--checkpoint.every_n_train_steps=1",
    ]
    assert run.run(extra=other) == [0], run.log()
    log = run.log()
    assert "The command line wins over what" in log
    assert "model.init_args.optimizer.init_args.lr: 0.01 -> 0.5" in log
    assert "The configuration wins over the checkpoint: lr: 0.01 -> 0.5" in log
    assert attempts_of(run.traces()[0])[-1][0][1] == 6
    assert [path.name for path in (run.folder / "out" / "runs").iterdir()] == ["mine"]
    # The best checkpoint so far was known, and the last one was replaced.
    assert len(checkpoints(run)) == 2
    assert checkpoints(run)["last.ckpt"] == 6


def test_a_run_keeps_its_checkpoints_beside_those_of_a_longer_one(job: Callable[..., Job], tmp_path: Path) -> None:
    shared = {"checkpoint.dirpath": tmp_path / "shared", "checkpoint.keep_last": 2, "checkpoint.every_n_train_steps": 1}
    run = job(**shared, **{"checkpoint.save_top_k": 0, "resume": "never"})
    assert run.run() == [0], run.log()
    longer = set((tmp_path / "shared").iterdir())
    assert {path.name for path in longer} == {"last-step=5.ckpt", "last-step=6.ckpt"}
    assert run.run(("epoch start", 2)) == [-signal.SIGKILL]
    found = set((tmp_path / "shared").iterdir())
    assert longer < found
    assert sorted(torch.load(path, weights_only=True)["global_step"] for path in found - longer) == [2, 3]


def test_a_run_with_a_name_that_has_no_checkpoint_yet_begins_anew(job: Callable[..., Job], whole: Job) -> None:
    run = job(run_name="mine", **{"checkpoint.every_n_train_steps": 100})
    assert run.run(("validation end", 1)) == [-signal.SIGKILL]
    assert run.table()  # What the killed attempt wrote must not stay.
    assert run.run() == [0], run.log()
    assert run.table() == whole.table()
    curves = EventAccumulator(str(run.folder / "out" / "runs" / "mine"))
    curves.Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [
        int(row["step"]) for row in run.table() if row["train/loss"]
    ]


def test_full_disk_and_folders_that_cannot_be_written_to(
    job: Callable[..., Job], whole: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = job(**{"curves.enabled": True})
    assert run.run(nth(whole, "epoch start", 2)) == [-signal.SIGKILL]
    size = next((run.folder / "out").rglob("last.ckpt")).stat().st_size
    # The curves cannot be written either, which must not hide what is wrong.
    assert run.run(file_limit=size // 20) == [1], run.log()
    assert f"[Errno {errno.EFBIG}]" in run.log().splitlines()[-1]
    assert "The training curves could not be written" in run.log()
    assert "Traceback" not in run.log()
    assert "last.ckpt could not be written" in run.log()
    assert "Earlier checkpoints are as they were" in run.log()
    assert run.run() == [0], run.log()
    assert problems(run, whole) == []

    (tmp_path / "file").write_text("")
    assert run.run(extra=[f"--checkpoint.dirpath={tmp_path / 'file' / 'x'}"]) == [1]
    assert f"Checkpoints cannot be written to {tmp_path / 'file' / 'x'}: " in run.log()
