"""Two ranks that are killed or preempted, and started again, by as many or by fewer."""

import os
import signal
import time
from pathlib import Path

import pytest
from killing import Job, attempts_of, make_job, problems, wait, write_inputs

import lit_ift.lightning_cli  # noqa: F401  # Imported once, before the processes are forked.


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
    codes = job.run(at, kill_rank=1)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0  # It ends by itself or is ended; it does not go on alone.
    assert job.run() == [0, 0], job.log()
    assert attempts_of(job.traces()[1])[-1][0][1] == 6
    assert problems(job, whole) == []


def test_one_rank_is_preempted_and_both_stop_at_the_same_step(inputs: Path, whole: Job, tmp_path: Path) -> None:
    job = make_job(inputs, tmp_path / "job", ranks=2, **{"checkpoint.every_n_train_steps": 100})
    pids = job.start()
    trace = Path(f"{job.folder / 'trace'}.1")
    while not trace.exists() or '"batch", 5' not in trace.read_text():
        time.sleep(0.005)
    os.kill(pids[1], signal.SIGTERM)
    assert wait(pids, grace=20) == [143, 143], job.log()
    first, second = job.traces()
    assert len(first) == len(second)
    assert job.run() == [0, 0], job.log()
    assert attempts_of(job.traces()[0])[-1][0][1] >= 6
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
