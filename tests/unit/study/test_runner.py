"""Runs in processes of their own, and as jobs: commands that stand for ``lit-ift fit``."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lit_ift.errors import UserError
from lit_ift.evaluation.results import TaskResult, write_results
from lit_ift.study import runner
from lit_ift.study.plan import Plan, Run
from lit_ift.study.record import RunRecord, read_record, write_record
from lit_ift.study.slurm import as_jobs
from lit_ift.study.study_file import Study, Variant

STUDY = Study([Variant("a")], rates=[0.1], seeds=[0])
CONSOLE = Console(quiet=True)


def run_of(folder: Path, seed: int = 0) -> Run:
    return Run("a", 0.1, seed, f"key{seed}", folder, ("fit",))


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Python that stands for ``lit-ift fit``; the test says what it does."""
    said = [""]
    for where in ("runner", "slurm"):
        monkeypatch.setattr(f"lit_ift.study.{where}.commands", lambda study, run: [[sys.executable, "-c", said[0]]])
    return said


def test_a_process_tells_its_exit_code_and_its_log(tmp_path: Path, code: list[str]) -> None:
    code[0] = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert list(runner.in_processes(STUDY)([run_of(tmp_path)], CONSOLE)) == [(run_of(tmp_path), 3)]
    assert run_of(tmp_path).log.read_text().split() == ["one", "two"]


def test_sigterm_ends_the_run_too(tmp_path: Path, code: list[str]) -> None:
    log = run_of(tmp_path).log
    code[0] = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', flush=True)))\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )

    def stop() -> None:
        while not (log.is_file() and "up" in log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(runner.in_processes(STUDY)([run_of(tmp_path)], CONSOLE))
    assert log.read_text().split() == ["up", "saved"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_jobs_run_once_and_failures_are_told(tmp_path: Path, code: list[str]) -> None:
    """By submitit's executor for one machine, which stands for SLURM."""
    pytest.importorskip("submitit")
    code[0] = "print('done')"
    runs = [run_of(tmp_path, seed) for seed in (0, 1)]
    study = replace(STUDY, slurm={"timeout_min": 1})
    assert list(as_jobs(study, tmp_path, cluster="local")(runs, CONSOLE)) == [(runs[0], 0), (runs[1], 0)]
    assert [run.log.read_text() for run in runs] == ["done\n", "done\n"]
    code[0] = "raise SystemExit(1)"
    assert list(as_jobs(study, tmp_path, cluster="local")(runs[:1], CONSOLE)) == [(runs[0], 1)]
    jobs = json.loads((tmp_path / "jobs" / "jobs.json").read_text())
    assert set(jobs) == {"key0", "key1"}
    with pytest.raises(UserError, match=r"slurm: .*partitio"):
        as_jobs(replace(STUDY, slurm={"slurm_partitio": "x"}), tmp_path, cluster="local")


def test_the_command_lines_of_a_run(tmp_path: Path) -> None:
    run = Run("a", 0.1, 0, "key", tmp_path, ("fit", "--model=a b"))
    assert runner.commands(STUDY, run) == [[sys.executable, "-m", "lit_ift", "fit", "--model=a b"]]
    assert runner.printed(STUDY, run) == "lit-ift fit '--model=a b'"
    launcher = ["torchrun", "--nproc-per-node", "2"]
    assert runner.commands(replace(STUDY, launcher=launcher), run)[0][:5] == [*launcher, "-m", "lit_ift"]
    study = replace(STUDY, tasks=["gsm8k=my.jsonl"], task_options={"max_rows": 5})
    (planned,) = Plan(study, tmp_path, lambda words: {"model": {}}).runs_for_report({"a": 0.1})
    fit, evaluation = runner.commands(study, planned)
    assert "--export.enabled=true" in fit
    words = [
        "eval",
        str(planned.run_folder),
        f"--output={planned.evaluated}",
        "--max_rows=5",
        "--tasks",
        "gsm8k=my.jsonl",
    ]
    assert evaluation[3:] == words


def test_scores_on_tasks_are_taken_over_and_their_lack_is_no_result(tmp_path: Path) -> None:
    study = replace(STUDY, tasks=["gsm8k=my.jsonl"])
    (run,) = Plan(study, tmp_path, lambda words: {"model": {}}).runs_for_report({"a": 0.1})
    assert runner.take_over(run) is None
    write_record(run.result, RunRecord(run.key, "a", 0.1, 0, "done", scores={"val/nll": {"r": 1.0}}))
    assert runner.take_over(run) is None
    assert runner.unfinished(study, Plan(study, tmp_path, lambda words: {"model": {}})) == [run]
    assert [words[3] for words in runner.commands(study, run)] == ["eval"]  # It is trained already.
    run.evaluated.mkdir(parents=True)
    scores = {"1": 1.0, "2": 0.0}
    results = [
        TaskResult("m", "gsm8k", "exact_match", 0.5, 0.5, 2, scores=scores),
        TaskResult("m", "wiki", "perplexity", 9.0, None, 3, higher_is_better=False),
    ]
    write_results(run.evaluated / "results.json", results)
    record = runner.take_over(run)
    assert record is not None
    assert record.scores == {"val/nll": {"r": 1.0}, "gsm8k/exact_match": scores, "wiki/perplexity": {"all": 9.0}}
    assert record.less_is_better == ("wiki/perplexity",)
    assert read_record(run.result) == record
    assert runner.unfinished(study, Plan(study, tmp_path, lambda words: {"model": {}})) == []
