"""Tasks of lm-evaluation-harness, scored by it, with a model of ours."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from lit_ift.errors import UserError, did_you_mean
from lit_ift.evaluation.kinds import KINDS
from lit_ift.evaluation.scored import Scored
from lit_ift.evaluation.tasks import EvalTask, TaskOptions
from lit_ift.generation.opened import OpenedModel

TASKS: Final = Path(__file__).with_name("task_files")
"""Files of tasks that the harness does not have."""

SEED: Final = 1234
"""Of the choice of examples, as the harness has it."""

BOOTSTRAP: Final = 1000
"""Resamples for the standard error of what is no mean over items."""

ROUNDING: Final = 1e-9


class Harness:
    """Tasks of the harness for one evaluation.

    Args:
        tasks: all that the harness is to score.
        options: of the evaluation.
        folder: for files of the evaluation.

    Raises:
        UserError: a task is unknown, or cannot be loaded.
    """

    def __init__(self, tasks: Sequence[EvalTask], options: TaskOptions, folder: Path) -> None:
        from lm_eval.tasks import TaskManager

        named = [task for task in tasks if task.source == "harness" and not Path(task.spec["task"]).is_file()]
        by_name = [task for task in named if "folder" not in task.spec]
        folders = sorted({task.spec["folder"] for task in named if "folder" in task.spec})
        self.manager = TaskManager(include_path=folders or None, include_defaults=bool(by_name))
        self.options = options
        for task in by_name:
            if task.name not in self.manager.all_tasks:
                hint = did_you_mean(task.name, self.manager.all_tasks)
                kind = task.name if task.name in KINDS else "gsm8k"
                raise UserError(
                    f"Unknown task '{task.name}'.{hint} `lm_eval ls tasks` lists the harness's own; rows of a file are "
                    f"named with their kind, as in {kind}=FILE."
                )
        self.loaded = {task.name: self._load(task, folder / str(index)) for index, task in enumerate(tasks)}

    def _load(self, task: EvalTask, folder: Path) -> Any:
        spec = task.spec["task"] if task.source == "harness" else _file_of_rows(task, folder)
        try:
            loaded = self.manager.load([spec])
        except Exception as error:  # Whatever the harness, datasets, or the user's own YAML raise.
            own = "folder" in task.spec or Path(spec).is_file()
            remedy = "Mend its file" if own else "Rows of a file need no hub: KIND=FILE"
            raise UserError(
                f"The task {task.name} cannot be loaded: {type(error).__name__}: {_first_line(error)}. {remedy}."
            ) from error
        for member in loaded["tasks"].values():
            self._configure(member, len(task.spec.get("documents", ())))
        return loaded

    def _configure(self, task: Any, num_documents: int) -> None:
        own = task.get_config("num_fewshot")
        wanted = self.options.num_fewshot
        if own is None or (wanted is not None and own != 0):  # What is 0 in its file is meant to stay so.
            task.set_config("num_fewshot", wanted or 0)
        examples = task.get_config("num_fewshot")
        if num_documents and examples >= num_documents:
            raise UserError(
                f"num_fewshot={examples} examples and a question need {examples + 1} rows, but there are "
                f"{num_documents}. Lower --num_fewshot."
            )
        task.set_fewshot_seed(seed=SEED)
        if self.options.max_new_tokens is not None and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": self.options.max_new_tokens}, update=True)

    def score(self, found: OpenedModel, task: EvalTask, batch: int) -> list[Scored]:
        """All metrics of a task and, of a group, of its members.

        Raises:
            UserError: the answers leave no room for a prompt.
        """
        import torch
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        logging.getLogger(HFLM.__module__).setLevel(logging.ERROR)  # It warns of models that are loaded already.
        # The harness would normalise over the vocabulary in the weights' dtype, which loses digits in bfloat16.
        model = HFLM(found.model, tokenizer=found.tokenizer, batch_size=batch, softmax_dtype=torch.float32)
        loaded = self.loaded[task.name]
        _check_room(model, loaded["tasks"])
        results = evaluate(
            lm=model,
            task_dict=loaded,
            limit=self.options.max_rows,
            bootstrap_iters=BOOTSTRAP,
            apply_chat_template=not self.options.plain,
            fewshot_as_multiturn=not self.options.plain,
        )
        scored = []
        for name, samples in results["samples"].items():
            common = {
                "task": task.name if len(loaded["tasks"]) == 1 else name,
                "total": task.total or results["n-samples"][name]["original"],
                "options": {"num_fewshot": results["n-shot"].get(name), "task_version": results["versions"].get(name)},
                "notes": _notes_on_length(model, samples),
            }
            scored += _metrics(samples, results["results"][name], results["higher_is_better"][name], common)
        return scored + _groups(results, scored)


def _file_of_rows(task: EvalTask, folder: Path) -> str:
    """A YAML file of a task that scores the user's rows, as the harness reads it."""
    from lm_eval import tasks as of_harness

    kind = KINDS[task.spec["kind"]]
    folder.mkdir(parents=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in task.spec["documents"]), encoding="utf-8")
    base = TASKS / f"{task.spec['kind']}.yaml" if kind.task is None else Path(of_harness.__file__).parent / kind.task
    config = {
        "include": str(base),
        "task": f"rows_{task.spec['kind']}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")},
        **kind.options,
    }
    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(file)


def _check_room(model: Any, tasks: dict[str, Any]) -> None:
    for name, task in tasks.items():
        if task.get_config("output_type") == "generate_until":
            longest = _longest_answer(model, task.get_config("generation_kwargs"))
            if longest >= model.max_length:
                raise UserError(
                    f"The task {name} asks for answers of up to {longest} tokens, which leaves no room for a prompt: "
                    f"the model reads {model.max_length} tokens in all. Give a lower --max_new_tokens."
                )


def _longest_answer(model: Any, options: dict[str, Any] | None) -> int:
    return int((options or {}).get("max_gen_toks", model.max_gen_toks))


def _notes_on_length(model: Any, samples: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Say how many items had a prompt that the harness had to cut, which it does at its left end."""
    cut = set()
    for sample in samples:
        for context, *rest in sample["arguments"]:
            more = rest[0] if rest else ""
            longest = model.max_length - _longest_answer(model, more) if isinstance(more, dict) else model.max_length
            text = context if isinstance(more, dict) else context + more
            if len(model.tok_encode(text)) > longest:
                cut.add(sample["doc_id"])
    return (f"{len(cut)} prompts were cut at their start to fit {model.max_length} tokens",) if cut else ()


def _metrics(
    samples: Sequence[dict[str, Any]], values: dict[str, Any], better: dict[str, bool | None], common: dict[str, Any]
) -> list[Scored]:
    by_filter: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_filter[sample["filter"]].append(sample)
    return [
        _metric(f"{metric},{name}", of_filter, values, {**common, "higher_is_better": better.get(metric) is not False})
        for name, of_filter in by_filter.items()
        for metric in of_filter[0]["metrics"]
        if f"{metric},{name}" in values
    ]


def _metric(key: str, samples: Sequence[dict[str, Any]], values: dict[str, Any], common: dict[str, Any]) -> Scored:
    metric, _, _ = key.partition(",")
    found = {str(sample["doc"].get("item", sample["doc_id"])): sample[metric] for sample in samples}
    scores, weights = _by_item(found, float(values[key]))
    return Scored(
        metric=_shown(key),
        n=len(samples),
        value=float(values[key]),
        standard_error=_error_of(key, values),
        scores=scores,
        weights=weights,
        **common,
    )


def _shown(key: str) -> str:
    """A metric and its filter, for people."""
    metric, _, filter_name = key.partition(",")
    return metric if filter_name == "none" else f"{metric} ({filter_name})"


def _error_of(key: str, values: dict[str, Any]) -> float | None:
    """The harness's own standard error; None where it has none."""
    error = values.get(key.replace(",", "_stderr,"))
    return error if isinstance(error, float) and math.isfinite(error) else None


def _by_item(found: dict[str, Any], value: float) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """Scores and weights of the items, if the harness's value is their mean; else None twice."""
    weights = None
    if all(isinstance(score, list) and score and set(map(type, score)) == {bool} for score in found.values()):
        weights = {item: float(len(score)) for item, score in found.items()}
        found = {item: sum(map(float, score)) / len(score) for item, score in found.items()}
    try:
        scores = {item: float(score) for item, score in found.items()}
    except (TypeError, ValueError):  # Such as a prediction and its reference, for a metric of all together.
        return None, None
    counts = weights or dict.fromkeys(scores, 1.0)
    mean = sum(scores[item] * counts[item] for item in scores) / sum(counts.values())
    return (scores, weights) if abs(mean - value) < ROUNDING else (None, None)


def _groups(results: dict[str, Any], members: Sequence[Scored]) -> list[Scored]:
    """What the harness makes of the members of a group: over all their items, where it is their mean."""
    scored = []
    for name, values in (results.get("groups") or {}).items():
        for key, value in values.items():
            if "," not in key or "_stderr," in key or not isinstance(value, float):
                continue
            parts = [part for part in members if part.metric == _shown(key) and part.task in _members(results, name)]
            found = {f"{part.task}/{item}": score for part in parts for item, score in (part.scores or {}).items()}
            n, total = sum(part.n for part in parts), sum(part.total or part.n for part in parts)
            scores, _ = _by_item(found, value) if n and len(found) == n else (None, None)
            scored.append(Scored(name, _shown(key), n, total, value, _error_of(key, values), scores))
    return scored


def _members(results: dict[str, Any], group: str) -> set[str]:
    """The tasks of a group and of its groups."""
    found: set[str] = set()
    for name in results["group_subtasks"].get(group, ()):
        found |= _members(results, name) if results["group_subtasks"].get(name) else {name}
    return found


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]
