"""Hand the runs of a study to SLURM by submitit; jobs that are under way already are waited for, not sent again."""

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from lit_ift.errors import UserError, needing, told_as
from lit_ift.staging import replaced_file
from lit_ift.study.plan import Run
from lit_ift.study.runner import LaunchAll, commands
from lit_ift.study.study_file import Study

JOBS: Final = "jobs"
"""Folder of submitit's files and of the list of jobs, in the output of a study."""


def as_jobs(study: Study, folder: Path, *, cluster: str | None = None) -> LaunchAll:
    """Runs as jobs of SLURM, all at once.

    Args:
        study: its ``slurm`` has submitit's parameters (``slurm_partition``, ``gpus_per_node``, ``timeout_min``, …).
        folder: output of the study, which jobs must be able to reach.
        cluster: ``local`` runs jobs on this machine instead, for tests.

    Raises:
        UserError: submitit or SLURM is missing, or a parameter is refused.
    """
    with needing("submitit", "slurm", "slurm"):
        import submitit

    with told_as((RuntimeError, ValueError, NameError), lambda error: UserError(f"slurm: {error}")):
        executor = submitit.AutoExecutor(folder=folder / JOBS, cluster=cluster or "slurm")
        executor.update_parameters(**(study.slurm or {}))
    job_class = submitit.SlurmJob if cluster is None else submitit.LocalJob

    def launch_all(runs: Sequence[Run], console: Console) -> Iterator[tuple[Run, int]]:
        listed = folder / JOBS / "jobs.json"
        known: dict[str, str] = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
        jobs: dict[str, Any] = {}
        for run in runs:
            if run.key in known:
                jobs[run.key] = job_class(folder / JOBS, known[run.key])
            if run.key not in jobs or jobs[run.key].done():  # Without a result, or it would not be here.
                # A function of Python's own: a job need not import this package to start another process.
                jobs[run.key] = executor.submit(subprocess.run, _logged(commands(study, run), run.log), check=True)
                known[run.key] = jobs[run.key].job_id
        with replaced_file(listed, "w", encoding="utf-8") as file:
            json.dump(known, file, indent=1)
        console.print(f"{len(jobs)} jobs: {', '.join(job.job_id for job in jobs.values())}", soft_wrap=True)
        for run in runs:
            error = jobs[run.key].exception()  # Waits for it.
            yield run, 0 if error is None else 1

    return launch_all


def _logged(lines: Sequence[Sequence[str]], log: Path) -> list[str]:
    """The same command lines, each if the one before went well; their output goes to the run's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    both = " && ".join(shlex.join(words) for words in lines)
    return ["sh", "-c", f"{{ {both}; }} >>{shlex.quote(str(log.absolute()))} 2>&1"]
