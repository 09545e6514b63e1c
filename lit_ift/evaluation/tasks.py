"""The tasks that the user names: of the harness, rows of a file with their kind, or of reasoning-gym."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from lit_ift.data.modules.tasks import TasksDataModule
from lit_ift.errors import UserError, did_you_mean, told_as
from lit_ift.evaluation.kinds import KINDS, kinds_for_people, read_rows
from lit_ift.export.run_facts import config_in, options_of, read_config
from lit_ift.generation.answer_file import identity
from lit_ift.options import NonNegativeInt, PositiveInt, check_options

GYM: Final = "reasoning_gym"
"""What names a verifiable task, as in ``reasoning_gym=spell_backward``."""

GYM_ITEMS: Final = 100
"""Questions of each verifiable task where nothing says how many."""

LONGEST_NAME: Final = 250
"""Characters of a text in a task's file that may name a file of rows."""

Source = Literal["harness", "rows", "gym"]


@dataclass(frozen=True)
class TaskOptions:
    """What decides a score beside model and task.

    Args:
        num_fewshot: examples before each question; as the task says by default, none for rows of a file.
        max_rows: score the first so many rows of each task.
        max_new_tokens: longest answer [tokens]; as the task says by default.
        plain: give prompts as plain text, without the chat template.

    Raises:
        UserError: a value is out of range.
    """

    num_fewshot: NonNegativeInt | None = None
    max_rows: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        with told_as(ValueError, lambda error: UserError(f"{error}.")):
            check_options(TaskOptions, vars(self))


@dataclass(frozen=True)
class EvalTask:
    """A task, ready to be given to the process that scores.

    Attributes:
        name: for people; unique in a call.
        source: who scores it.
        spec: what that needs: ``task`` (name or YAML file; of a group in a file, its ``folder``), ``kind`` and
            ``documents``, or the options of the data module.
        left_out: reason to the number of rows that were left out for it.
        total: rows before that; None if it is not known yet.
        digest: changes whenever what is scored does.
    """

    name: str
    source: Source
    spec: dict[str, Any]
    left_out: dict[str, int] = field(default_factory=dict)
    total: int | None = None
    digest: str = ""

    def key(self, options: TaskOptions) -> str:
        """The same for two evaluations if and only if the same is scored in the same way."""
        package = "reasoning-gym" if self.source == "gym" else "lm_eval"
        return digest_of([self.name, self.source, self.digest, self.left_out, asdict(options), version(package)])


def digest_of(values: Any) -> str:
    """The digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_tasks(named: Sequence[str], options: TaskOptions) -> list[EvalTask]:
    """Find all tasks, and check their rows.

    Args:
        named: ``KIND=FILE``, ``reasoning_gym=TASK``, a YAML file of the harness, or the name of a task of the harness,
            which is looked up later: its list takes long to make.
        options: of the evaluation.

    Raises:
        RowError: a row cannot be scored.
        UserError: a package is missing, a kind or a task is unknown, or a file cannot be read.
    """
    tasks = [_read_task(name, options) for name in named]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The task {twice} is named twice. Leave one out, or give one of its files another name.")
    return tasks


def _read_task(named: str, options: TaskOptions) -> EvalTask:
    kind, has_place, place = named.partition("=")
    if has_place and not place.strip():
        raise UserError(f"{named} names no file: write it behind the sign, as in {kind}=FILE.")
    if not has_place:
        _check_harness(f"The task {named}")
        path = Path(named).expanduser()
        return _yaml_task(path) if path.suffix in (".yaml", ".yml") else EvalTask(named, "harness", {"task": named})
    if kind == GYM:
        return _gym_task(place, options)
    if kind not in KINDS:
        known = "\n".join(f"  {line}" for line in [*kinds_for_people(), f"{GYM}: name of a task, or a run's folder"])
        raise UserError(f"{named}: unknown kind of rows '{kind}'.{did_you_mean(kind, [*KINDS, GYM])} Kinds:\n{known}")
    _check_harness(f"The task {named}")
    rows = read_rows(kind, place, options.max_rows)
    spec = {"kind": kind, "documents": rows.documents}
    return EvalTask(_name(kind, Path(place)), "rows", spec, rows.left_out, rows.total, digest_of(rows.documents))


def _name(kind: str, path: Path) -> str:
    return f"{kind}={path.name.split('.')[0] or path.name}"


def _check_harness(what: str) -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise UserError(f"{what} needs lm-evaluation-harness: pip install 'lit-ift[eval]'")


def _yaml_task(path: Path) -> EvalTask:
    """A task of the user's own; the harness reads it."""
    with told_as(OSError, lambda error: UserError(f"{path}: the task cannot be read: {error}")):
        text = path.read_text(encoding="utf-8", errors="replace")
    with told_as(yaml.YAMLError, lambda error: UserError(f"{path}: the task is no YAML: {error}")):
        values = yaml.load(text, _TaskLoader)
    if not isinstance(values, dict) or not ({"task", "group"} & values.keys()):
        raise UserError(f"{path}: a task of the harness has a line such as 'task: my_task'. This file has none.")
    places = [place for place in _strings(values) if len(place) < LONGEST_NAME and Path(place).is_file()]
    members = identity(str(path.parent)) if "group" in values else []
    digest = digest_of([text, members, [identity(place) for place in places]])
    if "group" in values:  # The harness finds a group, and its members, by their names in the folder alone.
        return EvalTask(
            str(values["group"]), "harness", {"task": str(values["group"]), "folder": str(path.parent)}, digest=digest
        )
    return EvalTask(str(values["task"]), "harness", {"task": str(path)}, digest=digest)


class _TaskLoader(yaml.SafeLoader):
    """Plain YAML, and nothing in the place of what the harness makes of ``!function``."""


_TaskLoader.add_multi_constructor("!", lambda *_: None)


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else [str(value)]


def _gym_task(place: str, options: TaskOptions) -> EvalTask:
    """Verifiable questions: of a task with its defaults, or the validation questions of a run or a configuration."""
    path = Path(place).expanduser()
    values: dict[str, Any] = {"tasks": {place: {}}, "val_size": options.max_rows or GYM_ITEMS}
    if path.exists():
        file = config_in(path) if path.is_dir() else path
        if file is None:
            raise UserError(f"{path}: there is no config.yaml in the folder. Name a run, or the name of a task.")
        given = options_of(read_config(file).get("data"))
        if not isinstance(given.get("tasks"), dict):
            raise UserError(f"{file}: its data has no tasks: it is not of TasksDataModule. Name a task instead.")
        values = {name: given[name] for name in ("tasks", "val_size", "seed", "system_prompt") if name in given}
    spec = {**values, "train_size": 0}
    items = TasksDataModule(**spec).eval_items(options.max_rows)  # What is wrong shows before a model is loaded.
    digest = digest_of([[item.row_id, list(item.messages), item.answer] for item in items])
    return EvalTask(_name(GYM, path), "gym", spec, total=len(items), digest=digest)
