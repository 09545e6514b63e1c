"""Score models on tasks, and keep what is done: a call that was stopped goes on when it is repeated."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from lit_ift.errors import UserError, told_as
from lit_ift.evaluation.results import TaskResult, read_results, write_results
from lit_ift.evaluation.scored import Scored, result_of
from lit_ift.evaluation.tasks import EvalTask, TaskOptions, digest_of, read_tasks
from lit_ift.generation.answer_file import identity
from lit_ift.generation.find import ModelPlace, find_model
from lit_ift.generation.opened import LoadOptions
from lit_ift.options import PositiveInt, check_options

RESULTS: Final = "results.json"
PACKAGES: Final = ("lit-ift", "lm_eval", "reasoning-gym", "torch", "transformers")

Events = Callable[[dict[str, Any]], Iterator[dict[str, Any]]]
"""Gives the events of `lit_ift.evaluation.worker.work` for a specification."""


@dataclass(frozen=True)
class EvalModel:
    """A model that is to be scored.

    Attributes:
        named: by the user.
        place: where it was found.
        load: how it is opened.
    """

    named: str
    place: ModelPlace
    load: LoadOptions

    @property
    def key(self) -> str:
        """Changes whenever the model's files or how they are opened do."""
        options = asdict(self.load)
        del options["device"]
        return digest_of([self.place.kind, identity(self.place.path), options])


def evaluate(
    named: Sequence[str],
    tasks: Sequence[str],
    output: Path,
    *,
    options: TaskOptions,
    load: LoadOptions,
    batch_size: PositiveInt = 8,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    events: Events | None = None,
) -> list[TaskResult]:
    """Score each model on each task, and keep the results in ``results.json``.

    A model x task that has its result there is not scored again, unless the model's files, the rows or an option have
    changed. Results of other models and tasks stay in the file.

    Args:
        named: what `find_model` takes.
        tasks: what `read_tasks` takes.
        output: folder of the results.
        options: what decides the scores.
        load: how the models are opened.
        batch_size: items scored at a time.
        overwrite: score again what has its result.
        say: is told what happens.
        events: of the scoring; from a process of its own by default.

    Returns:
        The results of this call's models and tasks, model by model.

    Raises:
        UserError: a model or a task cannot be used, or the results cannot be written.
    """
    with told_as(ValueError, lambda error: UserError(f"{error}.")):
        check_options(evaluate, {"batch_size": batch_size})
    if twice := next((name for name in named if list(named).count(name) > 1), None):
        raise UserError(f"The model {twice} is named twice. Name it once.")
    models = [EvalModel(name, find_model(name), load) for name in named]
    found = read_tasks(tasks, options)
    with told_as(OSError, lambda error: UserError(f"{output} cannot be written: {error}. Name another folder.")):
        output.mkdir(parents=True, exist_ok=True)
    file = output / RESULTS
    kept = _Kept(file, read_results(file) if file.exists() else [])
    left = {model.named: [task for task in found if overwrite or not kept.of(model, task, options)] for model in models}
    done = len(models) * len(found) - sum(map(len, left.values()))
    if done:
        say(f"{done} of {len(models) * len(found)} results are in {file} already.")
    for task in found:
        for reason, count in task.left_out.items():
            say(f"{task.name}: {count} of {task.total} rows are left out: {reason}")
    if any(left.values()):
        _score(models, left, kept, options, batch_size, say, events or _of_a_process)
    return [result for model in models for task in found for result in kept.of(model, task, options)]


class _Kept:
    """The file of results, written anew with each that comes."""

    def __init__(self, file: Path, results: list[TaskResult]) -> None:
        self.file = file
        self.results = results

    def of(self, model: EvalModel, task: EvalTask, options: TaskOptions) -> list[TaskResult]:
        key = _key(model, task, options)
        return [replace(result, model=model.named) for result in self.results if result.key == key]

    def put(self, named: str, task: EvalTask, results: list[TaskResult]) -> None:
        """Put results in the place of those of the same model and task."""
        others = [result for result in self.results if (result.model, result.named) != (named, task.name)]
        self.results = others + results
        write_results(self.file, self.results)


def _key(model: EvalModel, task: EvalTask, options: TaskOptions) -> str:
    return digest_of([model.key, task.key(options)])


def _score(
    models: Sequence[EvalModel],
    left: dict[str, list[EvalTask]],
    kept: _Kept,
    options: TaskOptions,
    batch_size: int,
    say: Callable[[str], None],
    events: Events,
) -> None:
    models = [model for model in models if left[model.named]]
    tasks = {task.name: task for of_model in left.values() for task in of_model}
    total, number = sum(len(left[model.named]) for model in models), 0
    spec = {
        "options": asdict(options),
        "batch_size": batch_size,
        "tasks": [asdict(task) for task in tasks.values()],
        "models": [
            {
                "place": {**asdict(model.place), "run": None if model.place.run is None else str(model.place.run)},
                "load": asdict(model.load),
                "tasks": [task.name for task in left[model.named]],
            }
            for model in models
        ],
    }
    for event in events(spec):
        model, task = models[event["model"]], tasks[event["task"]]
        if "scored" not in event:
            number += 1
            say(f"[{number}/{total}] {task.name}: {model.place.kind} {model.place.path}")
            continue
        scored = [Scored(**{**values, "notes": tuple(values["notes"])}) for values in event["scored"]]
        kept.put(
            model.named,
            task,
            [_result(metric, model, task, options, event["seconds"]) for metric in scored],
        )


def _result(metric: Scored, model: EvalModel, task: EvalTask, options: TaskOptions, seconds: float) -> TaskResult:
    return result_of(
        metric,
        total=task.total,
        left_out=task.left_out,
        measured_of="questions" if task.source == "gym" else "rows",
        model=model.named,
        named=task.name,
        options=asdict(options) | metric.options,
        task_key=task.key(options),
        key=_key(model, task, options),
        versions=_versions(),
        seconds=round(seconds, 2),
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # An extra that these tasks did not need.
            continue
    return found


def _of_a_process(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a process of its own, whose progress bars go to this one's standard error.

    Raises:
        UserError: it could not use a task or a model, or ended otherwise than it should.
    """
    with tempfile.TemporaryDirectory(prefix="lit-ift-eval-") as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(spec), encoding="utf-8")
        with _started([sys.executable, "-m", "lit_ift.evaluation.worker", str(file)]) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if "error" in event:
                    raise UserError(event["error"])
                yield event
            if code := process.wait():
                raise UserError(
                    f"The process that scores ended with code {code}; what it said stands above. Results that were "
                    "there are kept: the same command goes on."
                )


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            yield process
        finally:
            process.terminate()
