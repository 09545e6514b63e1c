"""Where sampled answers go: a table, a page, the loggers, the terminal. Text of prompts and models stays text."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lit_ift.errors import printable
from lit_ift.staging import replaced_file


@dataclass(frozen=True)
class Answer:
    """What the model said to a prompt after some optimizer steps.

    Attributes:
        step: optimizer steps taken.
        task: name of the task that the prompt belongs to.
        row_id: where the prompt came from.
        question: its last turn.
        expected: a right answer, if one is known.
        answer: what the model said, white space at its borders left out.
        score: by the verifier, in [0, 1]; None where there is none.
    """

    step: int
    task: str
    row_id: str
    question: str
    expected: str | None
    answer: str
    score: float | None

    @property
    def right(self) -> bool:
        """Whether the verifier gives the full score."""
        return self.score is not None and self.score >= 1.0


PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Samples</title><style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1.5rem auto; padding: 0 1rem; max-width: 60rem; font: 15px/1.5 system-ui, sans-serif; }}
article {{ margin: 2rem 0; break-inside: avoid; }}
h2 {{ font-size: 1rem; margin: 0; }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.question {{ margin: .4rem 0; padding-left: .7rem; border-left: 3px solid #888; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; border-top: 1px solid #8886; }}
th:first-child, td:first-child {{ width: 4rem; text-align: right; font-variant-numeric: tabular-nums; }}
td.score {{ width: 4rem; }}
</style></head>
<body><h1>Samples</h1><p>{summary}</p>
{articles}</body></html>
"""


def write_samples(folder: Path, answers: Sequence[Answer]) -> str:
    """Write ``samples.jsonl`` and ``samples.html`` to a folder, each in one go, and return the page.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = samples_page(answers)
    with replaced_file(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
    with replaced_file(folder / "samples.html", "w", encoding="utf-8") as file:
        file.write(page)
    return page


def samples_page(answers: Sequence[Answer]) -> str:
    """A page that loads nothing and runs nothing, with the answers to each prompt in the order of steps."""
    by_prompt = answers_by_prompt(answers)
    steps = sorted({answer.step for answer in answers})
    summary = f"Prompts: {len(by_prompt)}. Greedy answers after {', '.join(map(str, steps))} optimizer steps."
    return PAGE.format(summary=summary, articles="\n".join(map(_article, by_prompt)))


def answers_by_prompt(answers: Iterable[Answer]) -> list[list[Answer]]:
    """The answers to each prompt, in the order in which prompts were first asked."""
    found: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in answers:
        found.setdefault((answer.task, answer.row_id, answer.question), []).append(answer)
    return list(found.values())


def _article(answers: Sequence[Answer]) -> str:
    first = answers[0]
    is_scored = any(answer.score is not None for answer in answers)
    rows = [
        f'<tr><td>{answer.step}</td><td class="text">{_text(answer.answer)}</td>'
        + (f'<td class="score">{_mark(answer)}</td>' if is_scored else "")
        + "</tr>"
        for answer in answers
    ]
    if first.expected is not None:
        cell = f'<td class="text">{_text(first.expected)}</td>'
        rows.append(f"<tr><td>expected</td>{cell}{'<td></td>' if is_scored else ''}</tr>")
    return (
        f'<article><h2>{_text(first.task)} · {_text(first.row_id)}</h2><div class="text question">'
        f"{_text(first.question)}</div><table><thead><tr><th>step</th><th>answer</th>"
        f"{'<th>score</th>' if is_scored else ''}</tr></thead><tbody>{''.join(rows)}</tbody></table></article>"
    )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _mark(answer: Answer) -> str:
    return f"{'✓' if answer.right else '✗'} {answer.score:g}"


def log_samples(
    loggers: Iterable[Logger],
    shown: Sequence[Answer],
    new: Sequence[Answer],
    shares: Mapping[str, float],
    step: int,
    page: str | None,
) -> None:
    """Give answers to the loggers that take text or tables, and accuracies to all.

    Args:
        loggers: of the run.
        shown: the answers so far.
        new: those of this step.
        shares: accuracies by name.
        step: optimizer steps taken.
        page: what `samples_page` made of them.
    """
    names = [field.name for field in fields(Answer)]
    for logger in loggers:
        if shares:
            logger.log_metrics(dict(shares), step=step)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("samples", _markdown(new), step)
        elif isinstance(logger, WandbLogger):
            logger.log_table("samples", columns=names, data=[list(asdict(a).values()) for a in shown], step=step)
        elif isinstance(logger, MLFlowLogger) and page is not None:
            logger.experiment.log_text(logger.run_id, page, "samples.html")
        logger.save()  # A checkpoint of this step knows of it.


def _markdown(answers: Iterable[Answer]) -> str:
    """Prompts and answers as blocks of code, in which markdown and HTML are text."""
    blocks = []
    for answer in answers:
        expected = [] if answer.expected is None else [("expected", answer.expected)]
        blocks += [("prompt", answer.question), ("answer", answer.answer), *expected]
    return "\n\n".join(f"**{name}**\n\n{_code(text)}" for name, text in blocks)


def _code(text: str) -> str:
    return "\n".join("    " + line for line in printable(text).split("\n"))


def print_samples(
    before: Sequence[Answer], after: Sequence[Answer], shown: Sequence[Answer], accuracies: Mapping[str, Any]
) -> None:
    """Show accuracies, if there are tasks, and the answers before and after training side by side."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if accuracies:
        table = Table(title="Accuracy on held-out tasks")
        for column in ("task", "before", "after", "change"):
            table.add_column(column, justify="left" if column == "task" else "right")
        for task, row in accuracies.items():
            change = row["after"] - row["before"]
            cells = [f"{100 * row['before']:.1f} %", f"{100 * row['after']:.1f} %", f"{100 * change:+.1f}"]
            table.add_row(escape(task), *cells, style="bold" if task == "mean" else None)
        console.print(table)
    samples = Table(title="Sample answers", show_lines=True)
    for column in ("question", "expected", "before", "after"):
        samples.add_column(column, overflow="fold")
    kept = {(answer.row_id, answer.question) for answer in shown}
    for old, new in zip(before, after, strict=True):
        if (new.row_id, new.question) in kept:
            expected = "" if new.expected is None else _cell(new.expected)
            samples.add_row(_cell(new.question), expected, _coloured(old), _coloured(new))
    console.print(samples)


def _cell(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))


def _coloured(answer: Answer) -> str:
    """An answer, coloured by its worth if it has one; rich markup in the model's text is shown as it is."""
    text = _cell(answer.answer[:200])
    if answer.score is None:
        return text
    colour = "green" if answer.right else "red"
    return f"[{colour}]{text}[/{colour}]"
