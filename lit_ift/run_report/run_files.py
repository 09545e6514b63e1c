"""What runs have left in their folders, as sections of the page."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from markupsafe import Markup

from lit_ift.callbacks.curves import LossCurves
from lit_ift.callbacks.panels import Points, panels_figure
from lit_ift.callbacks.sample_records import Answer, answers_by_prompt
from lit_ift.data.report.preview import visible
from lit_ift.errors import UserError, printable, told_as
from lit_ift.evaluation.results import TaskResult, comparable, paired_difference, read_results
from lit_ift.export.run_facts import config_in, read_config
from lit_ift.run_report.page import Cell, Section, Table

T = TypeVar("T")

MOST_ANSWERS: Final = 50
"""Prompts whose answers are shown."""

FIGURES: Final = {
    "objective": "model.class_path",
    "loss": "model.init_args.loss",
    "λ": "model.init_args.lam",
    "γ": "model.init_args.gamma",
    "model": "model.init_args.model",
    "LoRA": "model.init_args.lora",
    "optimizer": "model.init_args.optimizer.class_path",
    "learning rate": "model.init_args.optimizer.init_args.lr",
    "training data": "data.init_args.train",
    "tasks": "data.init_args.tasks",
    "validation data": "data.init_args.val",
    "share for validation": "data.init_args.val_fraction",
    "longest row [tokens]": "data.init_args.max_length",
    "rows a batch": "data.init_args.batch_size",
    "tokens a batch": "data.init_args.tokens_per_batch",
    "batches a step": "trainer.accumulate_grad_batches",
    "epochs": "trainer.max_epochs",
    "steps at most": "trainer.max_steps",
    "precision": "trainer.precision",
    "seed": "seed_everything",
}
"""What of a configuration is shown at once, by name, and where it stands."""


@dataclass(frozen=True)
class Run:
    """A run's folder and configuration."""

    folder: Path
    config_file: Path
    config: Mapping[str, Any]

    @classmethod
    def find(cls, named: str) -> "Run":
        """The run of a folder.

        Raises:
            UserError: it is none, or its configuration cannot be read.
        """
        folder = Path(named).expanduser()
        file = config_in(folder) if folder.is_dir() else None
        if file is None:
            what = "has no config.yaml" if folder.is_dir() else "is no folder"
            raise UserError(f"{named} {what}: name the folder of a run, such as checkpoints/runs/version_0.")
        return cls(folder, file, read_config(file))

    @property
    def values(self) -> dict[str, Any]:
        """The configuration by dotted names."""
        return dict(_flat(self.config))


def configuration(runs: Sequence[Run]) -> Section:
    """The first run's configuration, and where those of the others differ."""
    values = runs[0].values
    facts = [(name, _told(values.get(path))) for name, path in FIGURES.items() if _is_said(values.get(path))]
    text = printable(runs[0].config_file.read_text(encoding="utf-8"))
    return Section(
        "configuration",
        "Configuration",
        (),
        facts,
        _differences(runs),
        None,
        f"all of {runs[0].config_file.name}",
        text,
    )


def _differences(runs: Sequence[Run]) -> Table | None:
    every = [run.values for run in runs]
    names = [
        n for n in dict.fromkeys(n for values in every for n in values) if len({repr(v.get(n)) for v in every}) > 1
    ]
    if not names:
        return None
    rows = [[Cell(name), *(Cell(_told(values.get(name))) for values in every)] for name in names]
    return Table(["what differs", *(run.folder.name for run in runs)], rows)


def curves(runs: Sequence[Run]) -> Section:
    """The curves of the first run, or of several with the same metrics their mean in a band."""
    found = [(run, run.folder / "curves.csv") for run in runs]
    missing = [str(path) for _, path in found if not path.is_file()]
    points = [_points(path) for _, path in found if path.is_file()]
    lines = [
        f"There is no {path}: its run ended before it was written, or curves.enabled was false." for path in missing
    ]
    if not points:
        return Section("curves", "Curves", lines)
    if len(points) > 1:
        lines.append(f"Mean of {len(points)} runs in a band of one standard error either way.")
    options = runs[0].config.get("curves")
    named = options.get("metrics") if isinstance(options, Mapping) else None
    metrics = named or signature(LossCurves).parameters["metrics"].default
    return Section("curves", "Curves", lines, drawn=_svg(points, [str(panel).split("+") for panel in metrics]))


def _points(path: Path) -> Points:
    points: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file, _unreadable(path):
        for row in csv.DictReader(file):
            points.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    return points


def _svg(runs: Sequence[Points], panels: Sequence[Sequence[str]]) -> Markup:
    """Drawn by matplotlib, which escapes the names of metrics."""
    import matplotlib

    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lit-ift"}):
        panels_figure(runs, panels).savefig(text, format="svg", metadata=nothing)
    drawn = text.getvalue()
    return Markup(drawn[drawn.index("<svg") :])


def evaluation(runs: Sequence[Run], given: Iterable[Path]) -> Section | None:
    """The results of `lit-ift eval` in the runs' folders and in the given files; None if there are none."""
    files = list(given)
    for run in runs:
        files += sorted({*run.folder.glob("results.json"), *run.folder.glob("*/results.json")})
    results = [result for file in files for result in read_results(file)]
    if not results:
        return None
    first: dict[tuple[str, str], TaskResult] = {}
    rows = []
    for result in results:
        of_first = first.setdefault((result.task, result.metric), result)
        error = "" if result.standard_error is None else f" ± {result.standard_error:.4f}"
        left_out = [f"left out: {count} ({reason})" for reason, count in result.left_out.items()]
        cells = [result.task, result.metric, result.model, f"{result.value:.4f}{error}", f"{result.n:,}"]
        rows.append([*cells, _difference(of_first, result), "; ".join([result.measured, *left_out]).strip("; ")])
    header = ["task", "metric", "model", "score ± standard error", "items", "less the first model's", "measured"]
    table = Table(header, [[Cell(visible(cell)) for cell in row] for row in rows], numbers=(3, 4, 5))
    return Section("evaluation", "Evaluation", table=table)


def _difference(first: TaskResult, second: TaskResult) -> str:
    if first is second or not comparable(first, second):
        return ""
    found = paired_difference(first, second)
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def answers(run: Run) -> Section | None:
    """Answers before and after training, those whose score changed first; None if there are none."""
    pairs = [*_scored_answers(run.folder / "answers.json"), *_own_answers(run.folder / "samples.jsonl")]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: pair[0].right == pair[1].right)
    rows = [
        [Cell(visible(old.question)), Cell(visible(old.expected or "")), _answer(old), _answer(new)]
        for old, new in pairs[:MOST_ANSWERS]
    ]
    lines = [f"{len(pairs):,} prompts, those whose score changed first."]
    if len(pairs) > MOST_ANSWERS:
        lines = [f"The first {MOST_ANSWERS} of {len(pairs):,} prompts, those whose score changed first."]
    scored = [(old, new) for old, new in pairs if new.score is not None]
    if scored:
        shares = [100 * sum(pair[i].right for pair in scored) / len(scored) for i in (0, 1)]
        lines.append(f"Right: {shares[0]:.1f} % before, {shares[1]:.1f} % after, of {len(scored):,} that were scored.")
    return Section("answers", "Answers", lines, table=Table(["prompt", "expected", "before", "after"], rows))


def _answer(answer: Answer) -> Cell:
    return Cell(visible(answer.answer), "" if answer.score is None else "right" if answer.right else "wrong")


def _scored_answers(path: Path) -> list[tuple[Answer, Answer]]:
    if not path.is_file():
        return []
    with _unreadable(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        old, new = ([Answer(**{"step": 0, **answer}) for answer in content[when]] for when in ("before", "after"))
        return list(zip(old, new, strict=True))


def _own_answers(path: Path) -> list[tuple[Answer, Answer]]:
    """The first and the last answer to each prompt that is not scored."""
    if not path.is_file():
        return []
    with _unreadable(path):
        every = [Answer(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(of[0], of[-1]) for of in answers_by_prompt(a for a in every if a.score is None) if len(of) > 1]


def _unreadable(path: Path) -> Any:
    kinds = (ValueError, KeyError, TypeError)
    return told_as(kinds, lambda error: UserError(f"{path} cannot be read: {error}. Mend it or take it away."))


def attempt(make: Callable[[], T], problems: list[str]) -> T | None:
    """What a function gives; if the user's files stand in its way, None, and what is wrong goes to the problems."""
    try:
        return make()
    except UserError as error:
        problems.append(str(error))
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
            if f"{prefix}{name}" in FIGURES.values():
                yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", value


def _is_said(value: Any) -> bool:
    return value not in (None, -1, [], {})


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, allow_unicode=True)
    return visible(text.removesuffix("\n").removesuffix("\n...").strip())
