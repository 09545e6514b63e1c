"""Two ranks that are killed or preempted, and started again, by as many or by fewer; with whole models and shards."""

import errno
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Job, attempts_of, make_job, problems, write_inputs
from rounding import NEAR32

import lit_ift.cli.training  # noqa: F401  # Imported once, before the processes are forked.
from lit_ift.checkpoints.shards import read_whole
from lit_ift.checkpoints.writing import read_header


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run of two ranks that is never killed."""
    job = make_job(inputs, tmp_path_factory.mktemp("whole") / "job", ranks=2)
    assert job.run() == [0, 0], job.log()
    return job


def test_one_rank_is_killed(inputs: Path, whole: Job, tmp_path: Path) -> None:
    job = make_job(inputs, tmp_path / "job", ranks=2)
    at = [i for i, event in enumerate(whole.events(1), start=1) if event == "after backward"][8]
    watch = ["--lost_ranks.enabled=true"]
    # The other one ends by itself, and says why.
    assert job.run(at, kill_rank=1, grace=60, extra=watch) == [1, -signal.SIGKILL]
    assert "Rank 0 on" in job.log()
    assert "gives up: rank 1 on" in job.log()
    assert job.run(extra=watch) == [0, 0], job.log()
    assert attempts_of(job.traces()[1])[-1][0][1] == 6
    assert problems(job, whole) == []


@pytest.mark.parametrize(("event", "n", "goes_on_after"), [("inside a validation", 1, 3), ("batch end", 5, 6)])
def test_one_rank_is_preempted_and_both_stop_at_the_same_step(
    inputs: Path, whole: Job, tmp_path: Path, event: str, n: int, goes_on_after: int
) -> None:
    job = make_job(inputs, tmp_path / "job", ranks=2, **{"checkpoint.every_n_train_steps": 100})
    assert job.run((event, n), kill_rank=1, by=signal.SIGTERM, grace=30) == [143, 143], job.log()
    first, second = job.traces()
    assert len(first) == len(second)
    assert job.run() == [0, 0], job.log()
    assert attempts_of(job.traces()[0])[-1][0][1] == goes_on_after
    assert problems(job, whole) == []


def test_one_process_goes_on_with_the_rows_of_two(inputs: Path, whole: Job, tmp_path: Path) -> None:
    job = make_job(inputs, tmp_path / "job", ranks=2, run_name="mine")
    at = [i for i, event in enumerate(whole.events(), start=1) if event == "after backward"][8]
    assert job.run(at)[0] == -signal.SIGKILL
    alone = Job(
        job.folder, [*job.words, "--trainer.strategy=auto", "--trainer.devices=1", "--data.init_args.batch_size=6"]
    )
    before = len(job.traces()[0])
    assert alone.run() == [0], alone.log()
    assert "was written by 2 processes, and now there are 1: dropout" in alone.log()
    rows = [sorted(line[4]) for line in alone.traces()[0][before:] if line[0] == "batch"]
    both = [
        sorted(row for line in lines for row in line[4] if row)
        for lines in zip(*[[line for line in trace if line[0] == "batch"] for trace in whole.traces()], strict=True)
    ]
    assert rows == both[6:]


def test_ranks_that_find_different_checkpoints_do_not_begin(inputs: Path, tmp_path: Path) -> None:
    """Two nodes without a common disk, of which the first wrote all checkpoints."""
    folders = [tmp_path / "first", tmp_path / "second"]
    folders[0].mkdir()
    logged = {"folder": None, "next_step": 3}
    torch.save({"loops": {}, "global_step": 3, "lr_schedulers": [], "logged": logged}, folders[0] / "last.ckpt")
    job = make_job(inputs, tmp_path / "job", ranks=2)
    own = {rank: [f"--checkpoint.dirpath={folder}"] for rank, folder in enumerate(folders)}
    assert job.run(own=own, grace=30) == [1, 1], job.log()
    assert f"Rank 1: it found no checkpoint on {socket.gethostname()}, and rank 0 found {folders[0]}" in job.log()


ONE_FILE = {
    "strategy": "lit_ift.distributed.FSDP2Strategy",
    "trainer.strategy.init_args.save_distributed_checkpoint": False,
}


@pytest.fixture(scope="module")
def sharded(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run of two ranks that share the model and are never killed."""
    job = make_job(inputs, tmp_path_factory.mktemp("sharded") / "job", ranks=2, strategy="fsdp2")
    assert job.run() == [0, 0], job.log()
    return job


def nth(whole: Job, name: str, n: int, rank: int = 0) -> int:
    return [i for i, event in enumerate(whole.events(rank), start=1) if event == name][n - 1]


def checkpoints(job: Job) -> list[str]:
    return sorted(path.name for path in job.folder.glob("out/runs/*/checkpoints/*"))


@pytest.mark.parametrize(
    ("rank", "event", "n", "options", "left"),
    [
        (1, "shard half written", 4, {"keep_last": 2}, ["last-step=4.ckpt", "last-step=6.ckpt", "step=4.ckpt"]),
        (0, "checkpoint written", 4, {"async_save": True}, ["last-step=6.ckpt", "step=4.ckpt"]),
        (0, "checkpoint half written", 4, ONE_FILE, ["last.ckpt", "step=4.ckpt"]),
    ],
)
def test_one_rank_with_a_shard_is_killed(
    inputs: Path, sharded: Job, tmp_path: Path, rank: int, event: str, n: int, options: dict[str, Any], left: list[str]
) -> None:
    more = {k if k in ONE_FILE else f"checkpoint.{k}": v for k, v in options.items()}
    job = make_job(inputs, tmp_path / "job", ranks=2, **{"strategy": "fsdp2", **more})
    # Of a checkpoint in one file, the only event is that one: it is counted by name.
    assert job.run((event, n), rank)[rank] == -signal.SIGKILL
    assert job.run() == [0, 0], job.log()
    assert attempts_of(job.traces()[0])[-1][0][1] > 0
    assert problems(job, sharded) == []
    assert checkpoints(job) == left


def test_other_numbers_of_ranks_and_strategies(inputs: Path, tmp_path: Path) -> None:
    """Without dropout, whose numbers every rank draws for itself. λ's noise is the same on all of them."""
    plain = {"ranks": 2, "run_name": "mine", "model.init_args.disable_dropout": True}
    alone = ["--trainer.devices=1", "--data.init_args.batch_size=6"]
    whole = make_job(inputs, tmp_path / "whole", strategy="fsdp2", **plain)
    assert whole.run() == [0, 0], whole.log()
    cases: list[tuple[str, list[str], int]] = [
        ("fsdp2", alone, 1),
        ("fsdp2", [*alone, "--trainer.strategy=auto"], 1),
        ("fsdp2", ["--trainer.strategy=ddp"], 2),
        ("ddp", ["--trainer.strategy=fsdp2"], 2),
    ]
    for number, (strategy, words, ranks) in enumerate(cases):
        job = make_job(inputs, tmp_path / str(number), strategy=strategy, **plain)
        assert job.run(("after backward", 9))[0] == -signal.SIGKILL
        other = Job(job.folder, [*job.words, *words], ranks)
        assert not any(other.run()), other.log()
        (lines, expected) = (
            [(line[1], line[6]) for line in job_.traces()[0] if line[0] == "batch" and line[6]]
            for job_ in (other, whole)
        )
        for (ours, logged), (theirs, right) in zip(lines[-4:], expected[-4:], strict=True):
            assert ours == theirs
            values = {name: float.fromhex(value) for name, value in logged.items()}
            assert values == pytest.approx({name: float.fromhex(value) for name, value in right.items()}, rel=NEAR32)


@pytest.mark.parametrize(("strategy", "ranks"), [("auto", 1), ("fsdp2", 2)])
def test_shards_are_validated(inputs: Path, sharded: Job, tmp_path: Path, strategy: str, ranks: int) -> None:
    (best,) = sharded.folder.glob("out/runs/*/checkpoints/step=4.ckpt")
    job = make_job(inputs, tmp_path / "job", ranks=ranks, strategy=strategy)
    words = [word for word in job.words[1:] if not word.startswith(("--resume", "--export", "--curves"))]
    validation = Job(job.folder, ["validate", *words, f"--ckpt_path={best}"], ranks)
    assert not any(validation.run()), validation.log()
    (line,) = validation.traces()[0]
    assert best.is_dir()
    expected = min(float.fromhex(line[2]) for line in sharded.traces()[0] if line[0] == "validation")
    assert float.fromhex(line[2]) == pytest.approx(expected, rel=NEAR32)


def test_a_checkpoint_that_the_trainer_was_asked_for_is_whole_too(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.ckpt"
    saves = json.dumps([{"class_path": "killing.SavesItself", "init_args": {"path": str(path)}}])
    none = {"checkpoint.save_last": False, "checkpoint.save_top_k": 0, "trainer.callbacks": saves}
    job = make_job(inputs, tmp_path / "job", ranks=2, strategy="fsdp2", **none)
    assert job.run(("shard half written", 2), 1)[1] == -signal.SIGKILL
    assert read_header(path)["global_step"] == 3
    assert read_whole(path)["state_dict"]


def test_full_disk_under_shards(inputs: Path, sharded: Job, tmp_path: Path) -> None:
    job = make_job(inputs, tmp_path / "job", ranks=2, strategy="fsdp2")
    assert job.run(nth(sharded, "epoch start", 2))[0] == -signal.SIGKILL
    (last,) = job.folder.rglob("last-step=2.ckpt")
    sizes = [path.stat().st_size for path in last.glob("*.distcp")]
    assert job.run(file_limit=max(sizes) - 1, grace=30) == [1, 1], job.log()
    assert f"[Errno {errno.EFBIG}]" in job.log()
    assert "last-step=4.ckpt could not be written" in job.log()
    assert str(last) in job.log()
    assert job.run() == [0, 0], job.log()
    assert problems(job, sharded) == []
