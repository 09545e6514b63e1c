"""Carry out the runs of a study, one after the other here or as jobs of SLURM; those that have a result are skipped."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from lit_ift.errors import UserError
from lit_ift.evaluation.results import read_results
from lit_ift.study.plan import RESULTS, Plan, Run
from lit_ift.study.record import RunRecord, read_record, read_records, write_record
from lit_ift.study.study_file import Study
from lit_ift.study.summary import Summary, choose_rates, summarise

FAILURES: Final = 2
"""Runs that fail one after the other before the study stops: what ails them ails the others."""

LAST_LINES: Final = 15

EVALUATED: Final = "results.json"
"""What ``eval`` leaves in its output."""

Launch = Callable[[Run], int]
"""Carries out one run and gives its exit code."""


def carry_out(study: Study, plan: Plan, launch_all: "LaunchAll", console: Console) -> Summary:
    """Do the runs that have no result yet, first those by which rates are chosen, and summarise all.

    Raises:
        UserError: runs failed; or see `choose_rates` and `summarise`.
    """
    _finish(plan.runs_for_rates(), plan, launch_all, console, study.keep)
    choices = choose_rates(study, plan, read_records(plan.folder / RESULTS))
    rates = {name: choice.chosen for name, choice in choices.items() if choice.chosen is not None}
    runs = plan.runs_for_report(rates)
    _finish(runs, plan, launch_all, console, study.keep)
    records = read_records(plan.folder / RESULTS)
    if not any(not records[run.key].diverged for run in runs):
        raise UserError("Training diverged in every run. Lower the rates.")
    return summarise(study, choices, runs, records)


def unfinished(study: Study, plan: Plan) -> list[Run]:
    """The runs that can be done next: those for rates, and once these are there, those for the report."""
    records = _finished(plan)
    missing = [run for run in plan.runs_for_rates() if run.key not in records]
    if missing:
        return missing
    choices = choose_rates(study, plan, records)
    rates = {name: choice.chosen for name, choice in choices.items() if choice.chosen is not None}
    return [run for run in plan.runs_for_report(rates) if run.key not in records]


def _finished(plan: Plan) -> dict[str, RunRecord]:
    """The results that are whole, by key."""
    found = read_records(plan.folder / RESULTS)
    return {key: record for key, record in found.items() if is_whole(plan.study, record)}


def is_whole(study: Study, record: RunRecord) -> bool:
    """Whether nothing is missing in a result; a run that diverged has no model to score."""
    return record.diverged or record.on_tasks or not study.tasks


def take_over(run: Run) -> RunRecord | None:
    """The result of a run that has ended, with its scores on tasks; None if one of the two is missing.

    Raises:
        UserError: a file cannot be read.
    """
    if not run.result.is_file():
        return None
    record = read_record(run.result)
    if record.diverged or record.on_tasks or not run.eval_words:
        return record
    file = run.evaluated / EVALUATED
    if not file.is_file():
        return None
    scores, less = dict(record.scores), []
    for result in read_results(file):
        measure = f"{result.task}/{result.metric}"
        # A value that is no mean over items counts as one item.
        scores[measure] = result.scores or {"all": result.value}
        if not result.higher_is_better:
            less.append(measure)
    whole = replace(record, scores=scores, less_is_better=tuple(less), on_tasks=True)
    write_record(run.result, whole)
    return whole


LaunchAll = Callable[[Sequence[Run], Console], Iterator[tuple[Run, int]]]
"""Carries out runs and gives each with its exit code when it has ended."""


def _finish(runs: Sequence[Run], plan: Plan, launch_all: LaunchAll, console: Console, keep: str) -> None:
    """Do those that have no result.

    Raises:
        UserError: some have none afterwards.
    """
    known = _finished(plan)
    missing = [run for run in {run.key: run for run in runs}.values() if run.key not in known]
    if not missing:
        return
    console.print(f"{len(missing)} runs to do, {len({run.key for run in runs}) - len(missing)} done.")
    failed: list[Run] = []
    in_a_row, began = 0, time.monotonic()
    for number, (run, code) in enumerate(launch_all(missing, console), 1):
        record = take_over(run)
        if record is not None:
            left = (time.monotonic() - began) / number * (len(missing) - number)
            console.print(f"[{number}/{len(missing)}] {_told(record)}{_time_left(left)}", markup=False)
            if keep == "results":
                for name in ("checkpoints", "model"):
                    shutil.rmtree(run.run_folder / name, ignore_errors=True)
            in_a_row = 0
            continue
        failed.append(run)
        in_a_row += 1
        console.print(f"[{number}/{len(missing)}] {run.name} failed (exit code {code}), see {run.log}", markup=False)
        if in_a_row == FAILURES or len(missing) == 1:
            break
    if failed:
        raise UserError(
            f"{len(failed)} runs failed: {', '.join(run.name for run in failed)}. The last one said:\n"
            f"{_end_of(failed[-1].log)}\nThe same command goes on with what is missing."
        )


def _told(record: RunRecord) -> str:
    where = f"{record.variant}, rate {record.rate:g}, seed {record.seed}"
    if record.diverged:
        return f"{where}: diverged after {record.steps} steps"
    means = [f"{name} {sum(values.values()) / len(values):.4g}" for name, values in record.scores.items()]
    return f"{where}: {record.seconds:.1f} s of training, {', '.join(means[:3])}"


def _time_left(seconds: float) -> str:
    return f"; about {timedelta(seconds=round(seconds))} left" if seconds >= 1 else ""


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])


def commands(study: Study, run: Run) -> list[list[str]]:
    """The command lines of a run, one after the other: training, if that is not done, and the scores on tasks."""
    here = [sys.executable, "-m", "lit_ift"]
    start = [*study.launcher, "-m", "lit_ift"] if study.launcher else here
    fit = [] if run.result.is_file() else [[*start, *run.words]]
    return [*fit, [*here, *run.eval_words]] if run.eval_words else fit


def printed(study: Study, run: Run) -> str:
    """The command lines of a run, to paste into a shell."""
    found = commands(study, run)
    own = [sys.executable, "-m", "lit_ift"]
    return " && ".join(shlex.join(["lit-ift", *words[3:]] if words[:3] == own else words) for words in found)


def one_by_one(launch: Launch) -> LaunchAll:
    """Runs one after the other."""

    def launch_all(runs: Sequence[Run], console: Console) -> Iterator[tuple[Run, int]]:
        for run in runs:
            yield run, launch(run)

    return launch_all


def in_processes(study: Study) -> LaunchAll:
    """Each run in a process of its own here, one after the other; a terminal shows the last line that it printed."""

    def launch_all(runs: Sequence[Run], console: Console) -> Iterator[tuple[Run, int]]:
        for run in runs:
            with console.status(run.name) as status:
                code = 0
                for words in commands(study, run):
                    code = code or _wait(words, run, status)
                yield run, code

    return launch_all


def _wait(words: Sequence[str], run: Run, status: Any) -> int:
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with (
        run.log.open("a", encoding="utf-8") as log,
        _ended_with_us(),
        subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.2)
                status.update(f"{run.name}  {_last_line(run.log)}")
        except BaseException:  # It writes a checkpoint and ends.
            process.terminate()
            process.wait()
            raise
    return process.returncode


def _last_line(log: Path) -> str:
    from rich.markup import escape

    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return escape(lines[-1][:160]) if lines else ""


@contextmanager
def _ended_with_us() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, end a run as Ctrl-C does; only the main thread can be told."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
