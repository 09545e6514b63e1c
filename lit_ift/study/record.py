"""The small file that a run of a study leaves: what was run, what it cost, and the score of each item."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from lit_ift.errors import UserError, told_as
from lit_ift.staging import replaced_file

FORMAT: Final = 1
"""Of the file; a reader refuses others."""

DIGITS: Final = 6
"""Significant ones of the scores, which would make up most of the file."""


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        key: of what decides the result; see `lit_ift.study.plan.key_of`.
        variant: name of the variant when it was run.
        rate: learning rate.
        seed: of the run.
        status: ``diverged`` if loss or gradient became NaN or infinite, which ends a run.
        reason: what was said then.
        scores: measure -> item -> value.
        less_is_better: measures of tasks in which a lower value is better.
        on_tasks: whether the model was scored on the tasks of the study.
        steps: optimizer steps.
        rows: rows trained on, counted each time.
        tokens: input tokens of these rows, padding apart.
        targets: tokens among them that are trained on, as the labels say.
        order: chained hash of the names of the rows in the order in which rank 0 trained on them.
        seconds: from the start to the end of training batches, all told [s].
        peak_memory: most memory of the device, or of the process beyond what it had before the model [MiB].
        memory_of: which of the two: ``device`` or ``process``.
        grad_norm: mean over steps of the gradient's 2-norm before clipping.
        device: name of it.
        ranks: processes.
        versions: package to its version.
    """

    key: str
    variant: str
    rate: float
    seed: int
    status: Literal["done", "diverged"]
    reason: str = ""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    less_is_better: tuple[str, ...] = ()
    on_tasks: bool = False
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    targets: int = 0
    order: str = ""
    seconds: float = 0.0
    peak_memory: float | None = None
    memory_of: str = ""
    grad_norm: float | None = None
    device: str = ""
    ranks: int = 1
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether training ended because it diverged."""
        return self.status == "diverged"


def write_record(path: Path, record: RunRecord) -> None:
    """Write a file, which appears whole or not at all; items are named once, with one line for all of a measure."""
    content = {"format": FORMAT, **asdict(record)}
    items: list[list[str]] = []
    packed: dict[str, Any] = {}
    for measure, values in record.scores.items():
        if list(values) not in items:
            items.append(list(values))
        numbers = [float(f"{value:.{DIGITS}g}") for value in values.values()]
        packed[measure] = {"items": items.index(list(values)), "values": numbers}
    content |= {"scores": packed, "items": items}
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path, "w", encoding="utf-8") as file:
        file.write(re.sub(r"\n +([-\d.e+]+,?|\])(?=\n)", r" \1", text) + "\n")


def read_record(path: Path) -> RunRecord:
    """Read a file of `write_record`.

    Raises:
        UserError: it is no such file.
    """
    remedy = "Move it away, and the run is done again."
    with told_as((OSError, ValueError), lambda error: UserError(f"{path} cannot be read: {error}. {remedy}")):
        content = json.loads(path.read_text(encoding="utf-8"))
    known = {entry.name for entry in fields(RunRecord)}
    if not isinstance(content, Mapping) or content.get("format") != FORMAT or not known <= content.keys():
        raise UserError(f"{path} is no result of a run of format {FORMAT}. {remedy}")
    items = content["items"]
    scores = {
        measure: dict(zip(items[packed["items"]], packed["values"], strict=True))
        for measure, packed in content["scores"].items()
    }
    less = tuple(content["less_is_better"])
    return RunRecord(**{**{name: content[name] for name in known}, "scores": scores, "less_is_better": less})


def read_records(folder: Path) -> dict[str, RunRecord]:
    """The results in a folder by their key.

    Raises:
        UserError: one of the files is none.
    """
    return {record.key: record for record in map(read_record, sorted(folder.glob("*.json")))}
