"""The process that scores: it loads one model after the other, and tells each result as soon as it is there.

Run by `lit_ift.evaluation.run`: python -m lit_ift.evaluation.worker SPEC
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_ift.errors import UserError
from lit_ift.evaluation.gym import score_gym
from lit_ift.evaluation.harness import Harness
from lit_ift.evaluation.instructions import checkers
from lit_ift.evaluation.tasks import EvalTask, TaskOptions
from lit_ift.generation.find import ModelPlace
from lit_ift.generation.opened import LoadOptions, OpenedModel, check_chat_template, opened

Tell = Callable[[dict[str, Any]], None]


def work(spec: dict[str, Any], folder: Path, tell: Tell) -> None:
    """Score all tasks of all models.

    Args:
        spec: plain values: ``options``, ``batch_size``, ``tasks``, and ``models``, each with ``place``, ``load`` and
            the names of its ``tasks``.
        folder: for files that are needed meanwhile.
        tell: is told ``{"model", "task"}`` when a task begins, and the same with ``scored`` and ``seconds`` at its end.

    Raises:
        UserError: a task or a model cannot be used.
    """
    options = TaskOptions(**spec["options"])
    tasks = {values["name"]: EvalTask(**values) for values in spec["tasks"]}
    of_harness = [task for task in tasks.values() if task.source != "gym"]
    if any(task.spec.get("kind") == "ifeval" for task in of_harness):
        checkers()  # Before the harness imports them in its own way.
    harness = Harness(of_harness, options, folder) if of_harness else None
    for index, model in enumerate(spec["models"]):
        place = model["place"]
        run = None if place["run"] is None else Path(place["run"])
        with opened(ModelPlace(place["kind"], place["path"], run), LoadOptions(**model["load"])) as found:
            if not options.plain:
                check_chat_template(found.tokenizer)
            for name in model["tasks"]:
                tell({"model": index, "task": name})
                start = time.monotonic()
                scored = _score(found, tasks[name], harness, options, spec["batch_size"])
                rows = [asdict(metric) for metric in scored]
                tell({"model": index, "task": name, "scored": rows, "seconds": time.monotonic() - start})


def _score(found: OpenedModel, task: EvalTask, harness: Harness | None, options: TaskOptions, batch: int) -> list[Any]:
    if task.source == "gym" or harness is None:
        most, longest = options.max_rows, options.max_new_tokens
        return list(score_gym(found, task.name, task.spec, max_rows=most, max_new_tokens=longest, batch=batch))
    return list(harness.score(found, task, batch))


def main(file: Path) -> int:
    """Score what a file says, and tell it in lines of JSON on what was the standard output."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # Whatever packages print goes where the progress goes.

        def tell(event: dict[str, Any]) -> None:
            out.write(json.dumps(event) + "\n")
            out.flush()

        try:
            work(json.loads(file.read_text(encoding="utf-8")), file.parent / "work", tell)
        except UserError as error:
            tell({"error": str(error)})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
