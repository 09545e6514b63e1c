"""Rows that the user brings, by kind: what columns they have, and how they become those of a task of the harness."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

from lit_ift.data.read.readers import read_records
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError, UserError
from lit_ift.evaluation.instructions import without_uncheckable

Document = dict[str, Any]
"""A row with the columns of the harness's own data."""


@dataclass(frozen=True)
class RowKind:
    """How rows of a kind are read and scored.

    Attributes:
        convert: makes a document of a row.
        columns: what a row has, for people.
        task: file of the harness's task, below its folder of tasks; None for one in `task_files` of this package.
        options: of the task, that are other than the file's.
    """

    convert: Callable[[Record], Document]
    columns: str
    task: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class KindRows:
    """The rows of a file that can be scored.

    Attributes:
        documents: with the columns that the task reads, and ``item``, which names the row.
        total: rows of the file.
        left_out: reason to the number of rows that were left out for it.
    """

    documents: list[Document]
    total: int
    left_out: dict[str, int]


def _text(record: Record, *names: str) -> str:
    """The text of the first of these columns that the row has."""
    name = next((name for name in names if record.data.get(name) is not None), None)
    value = None if name is None else record.data[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        seen = "is missing" if value is None else f"is {value!r:.60}, not a text"
        raise RowError(record.origin, name or " or ".join(names), seen, "Fill it in, or leave the row out")
    return str(value)


def _gsm8k(record: Record) -> Document:
    answer = _text(record, "answer")
    if not re.search(r"#### *-?[$0-9.,]+", answer):
        problem = f"the answer {answer[-60:]!r} does not end in '#### NUMBER'"
        raise RowError(record.origin, "answer", problem, "Write it so, or take the kind exact_match")
    return {"question": _text(record, "question"), "answer": answer}


def _exact_match(record: Record) -> Document:
    question = _text(record, "question", "input", "prompt", "problem")
    return {"question": question, "answer": _text(record, "answer", "target", "completion")}


def _choices(record: Record) -> tuple[str, list[str], list[str]]:
    """Question, choices and their labels of the forms in which ARC is published, or of a plain list of choices."""
    question: Any = record.data.get("question")
    choices: Any = record.data.get("choices")
    if isinstance(question, dict):
        question, choices = question.get("stem"), question.get("choices")
    labels: Any = None
    if isinstance(choices, dict):
        choices, labels = choices.get("text"), choices.get("label")
    elif isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        choices, labels = ([choice.get(key) for choice in choices] for key in ("text", "label"))
    if not isinstance(question, str) or not question.strip():
        raise RowError(record.origin, "question", f"is {question!r:.60}, not a text", "Fill it in")
    texts = choices if isinstance(choices, list) else []
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RowError(record.origin, "choices", f"is {choices!r:.60}", "Give a list of two texts or more")
    labels = labels if isinstance(labels, list) else list(ascii_uppercase[: len(texts)])
    return question, texts, [str(label) for label in labels]


def _multiple_choice(record: Record) -> Document:
    question, texts, labels = _choices(record)
    name = "answerKey" if "answerKey" in record.data else "answer"
    answer = record.data.get(name)
    if name == "answer" and isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        answer = labels[answer]
    elif isinstance(answer, str) and answer not in labels and answer in texts:
        answer = labels[texts.index(answer)]
    if str(answer) not in labels or len(set(labels)) != len(texts):
        problem = f"is {answer!r:.60}, which names none of the {len(texts)} choices"
        remedy = f"Give a label ({', '.join(labels[:8])}), the text of a choice, or in 'answer' its number from 0"
        raise RowError(record.origin, name, problem, remedy)
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": str(answer)}


def _truthfulqa(record: Record, name: str, most: int | None) -> Document:
    """Choices with the right ones first, which the harness counts on in MC1."""
    targets = record.data.get(name)
    pairs = list(targets.items()) if isinstance(targets, dict) and "labels" not in targets else []
    if isinstance(targets, dict) and "labels" in targets:
        pairs = list(zip(targets.get("choices") or [], targets["labels"], strict=False))
    right = [text for text, label in pairs if label == 1]
    wrong = [text for text, label in pairs if label == 0]
    if not right or not wrong or len(right) + len(wrong) < len(pairs) or (most is not None and len(right) > most):
        problem = f"has {len(right)} right and {len(wrong)} wrong choices among {len(pairs)}"
        remedy = "Map each choice to 1 (right) or 0 (wrong), with both kinds" + (", and one right one" if most else "")
        raise RowError(record.origin, name, problem, remedy)
    choices = {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)}
    return {"question": _text(record, "question"), name: choices}


def _mc1(record: Record) -> Document:
    return _truthfulqa(record, "mc1_targets", 1)


def _mc2(record: Record) -> Document:
    document = _truthfulqa(record, "mc2_targets", None)
    # The harness's task of MC2 builds on that of MC1.
    return document | {"mc1_targets": document["mc2_targets"]}


def _ifeval(record: Record) -> Document:
    names, options = record.data.get("instruction_id_list"), record.data.get("kwargs")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise RowError(record.origin, "instruction_id_list", f"is {names!r:.60}", "Give a list of instruction kinds")
    if not isinstance(options, list) or len(options) != len(names):
        problem = f"is {options!r:.60}, not one object for each of the {len(names)} instructions"
        raise RowError(record.origin, "kwargs", problem, "Give one, {} where it has no options")
    key = record.data.get("key", record.origin)
    return {"key": key, "prompt": _text(record, "prompt"), "instruction_id_list": names, "kwargs": options}


LOCAL: Final = {"test_split": "test", "validation_split": None, "training_split": None, "fewshot_split": "test"}
"""Rows of a file are one split, from which examples are taken too; a row is never its own example."""

KINDS: Final[dict[str, RowKind]] = {
    "gsm8k": RowKind(
        _gsm8k, "question, answer (which ends in '#### NUMBER')", "gsm8k/gsm8k.yaml", {**LOCAL, "num_fewshot": None}
    ),
    "multiple_choice": RowKind(
        _multiple_choice,
        "question, choices, answer (number from 0, label or text); or those of ARC",
        "arc/arc_challenge.yaml",
        LOCAL,
    ),
    "truthfulqa_mc1": RowKind(
        _mc1, "question, mc1_targets (choice to 1 or 0)", "truthfulqa/truthfulqa_mc1.yaml", LOCAL
    ),
    "truthfulqa_mc2": RowKind(
        _mc2, "question, mc2_targets (choice to 1 or 0)", "truthfulqa/truthfulqa_mc2.yaml", LOCAL
    ),
    "ifeval": RowKind(_ifeval, "prompt, instruction_id_list, kwargs", "ifeval/ifeval.yaml", LOCAL),
    "exact_match": RowKind(_exact_match, "question or input, answer or target", None, LOCAL),
}
"""Kinds of rows by name."""

KINDS["arc"] = KINDS["multiple_choice"]


def read_rows(kind: str, path: str, max_rows: int | None) -> KindRows:
    """Read and check all rows of a file before a model is loaded.

    Raises:
        RowError: a row lacks what its kind needs.
        UserError: the file cannot be read, or no row is left.
    """
    found = list(read_records(Path(path)))
    records = found[:max_rows]
    documents = [KINDS[kind].convert(record) | {"item": _item(record.origin)} for record in records]
    left_out: dict[str, int] = {}
    if kind == "ifeval":
        documents, left_out = without_uncheckable(documents, [record.origin for record in records])
    if not documents:
        raise UserError(f"{path}: no row of {len(records)} can be scored. {_list(left_out)}")
    return KindRows(documents, len(found), left_out)


def _item(origin: str) -> str:
    """The line of a row, or its number: the same wherever the file stands."""
    return re.split(r"[:#]", origin)[-1]


def _list(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in left_out.items())


def kinds_for_people() -> Sequence[str]:
    """A line for each kind: its name and its columns."""
    return [f"{name}: {kind.columns}" for name, kind in KINDS.items()]
