"""Accuracy on verifiable tasks before and after training, and some answers to read."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.data.modules.verifiable import TaskItem, VerifiableDataModule
from lit_ift.modules.generate import generate_answers

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule


@dataclass(frozen=True)
class Answer:
    """What the model said to one task item, and what that is worth."""

    task: str
    row_id: str
    question: str
    expected: str
    answer: str
    score: float

    @property
    def right(self) -> bool:
        """Whether the verifier gives the full score."""
        return self.score >= 1.0


class TaskAccuracy(Callback):
    """Lets the model answer held-out task items before and after ``fit`` and prints both accuracies.

    Needs a data module with ``eval_items`` and ``score`` (``VerifiableDataModule``), such as ``TasksDataModule``;
    with any other it does nothing. Answers are greedy. An answer counts as right if its verifier gives the full score
    of 1; part scores, which some verifiers give for a right form, are kept in ``<log_dir>/answers.json`` and do not
    count. Logs ``tasks/<task>`` and ``tasks/mean`` in [0, 1]. Ranks share the work, together where they share a model.

    Args:
        items_per_task: held-out items of each task.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts answered at a time.
        show: answers printed of each task.
        enabled: false does nothing.
    """

    def __init__(
        self,
        items_per_task: int = 32,
        max_new_tokens: int = 32,
        batch_size: int = 32,
        show: int = 2,
        enabled: bool = True,
    ) -> None:
        self.items_per_task = items_per_task
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.show = show
        self.enabled = enabled
        self.before: list[Answer] = []
        self.after: list[Answer] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.before, self.after = [], []  # A checkpoint's come after this, an earlier fit's do not count.

    def state_dict(self) -> dict[str, Any]:
        return {"before": [asdict(answer) for answer in self.before]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = [Answer(**answer) for answer in state_dict["before"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        if not self._applies(trainer):
            return
        data: VerifiableDataModule = trainer.datamodule  # type: ignore[attr-defined]
        asked = [item.row_id for item in data.eval_items(self.items_per_task)]
        if [answer.row_id for answer in self.before] == asked:
            return  # The run is resumed: its model is not the one from before training any more.
        if self.before:
            rank_zero_warn("The checkpoint has answers to other questions: those before training are asked for anew.")
        self.before = self._answer(trainer, pl_module, "before training")

    def on_train_end(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        if self._applies(trainer):
            self.after = self._answer(trainer, pl_module, "after training")
            run = trainer.log_dir  # Lightning answers with a broadcast: all ranks must ask.
            if trainer.is_global_zero:
                path = self._save(run)
                self._report(trainer)
                if path is not None:
                    print(f"All answers: {path}")

    def accuracies(self) -> dict[str, dict[str, float]]:
        """Share of right answers in each task, and its mean over tasks: ``{"task": {"before": …, "after": …}}``."""
        table: dict[str, dict[str, float]] = {}
        for when, answers in (("before", self.before), ("after", self.after)):
            right: dict[str, list[bool]] = defaultdict(list)
            for answer in answers:
                right[answer.task].append(answer.right)
            for task, values in right.items():
                table.setdefault(task, {})[when] = sum(values) / len(values)
        means = {
            when: sum(row[when] for row in table.values()) / len(table)
            for when in ("before", "after")
            if table and all(when in row for row in table.values())
        }
        return {**table, "mean": means} if means else table

    def _applies(self, trainer: L.Trainer) -> bool:
        return self.enabled and isinstance(getattr(trainer, "datamodule", None), VerifiableDataModule)

    def _answer(self, trainer: L.Trainer, module: "CausalLMModule", when: str) -> list[Answer]:
        from tqdm import tqdm

        data: VerifiableDataModule = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = data.tokenizer
        items: list[TaskItem] = list(data.eval_items(self.items_per_task))
        encoder = ConversationEncoder(tokenizer)
        prompts = [encoder.encode_prompt(item.messages) for item in items]
        mine = range(trainer.global_rank, len(items), trainer.world_size)
        stream = generate_answers(
            module.model,
            tokenizer,
            [prompts[i] for i in mine],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        shown = tqdm(
            stream,
            total=len(mine),
            desc=f"Answers {when}",
            unit="answer",
            leave=False,
            disable=not trainer.is_global_zero,
        )
        answers = {
            i: Answer(
                task=items[i].task,
                row_id=items[i].row_id,
                question=str(items[i].messages[-1]["content"]),
                expected=items[i].answer,
                answer=text.strip(),
                score=data.score(items[i], text),
            )
            for i, text in ((mine[position], text) for position, text in shown)
        }
        if trainer.world_size > 1:
            of_ranks: list[dict[int, Answer]] = [{} for _ in range(trainer.world_size)]
            dist.all_gather_object(of_ranks, answers)
            answers = {i: answer for of_rank in of_ranks for i, answer in of_rank.items()}
        return [answers[i] for i in range(len(items))]

    def _save(self, run: str | None) -> Path | None:
        """Write every answer; returns the file, or None without a run folder."""
        if run is None:
            return None
        path = Path(run) / "answers.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "accuracies": self.accuracies(),
            "before": [asdict(answer) for answer in self.before],
            "after": [asdict(answer) for answer in self.after],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        return path

    def _report(self, trainer: L.Trainer) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console()
        table = Table(title=f"Accuracy on held-out tasks ({self.items_per_task} items each)")
        table.add_column("task")
        for column in ("before", "after", "change"):
            table.add_column(column, justify="right")
        accuracies = self.accuracies()
        for task, row in accuracies.items():
            change = row["after"] - row["before"]
            cells = [f"{100 * row['before']:.1f} %", f"{100 * row['after']:.1f} %", f"{100 * change:+.1f}"]
            table.add_row(escape(task), *cells, style="bold" if task == "mean" else None)
        console.print(table)
        samples = Table(title="Sample answers", show_lines=True)
        for column in ("question", "expected", "before", "after"):
            samples.add_column(column, overflow="fold")
        shown: dict[str, int] = defaultdict(int)
        for old, new in zip(self.before, self.after, strict=True):
            if shown[new.task] < self.show:
                shown[new.task] += 1
                samples.add_row(escape(new.question), escape(new.expected), _mark(old), _mark(new))
        console.print(samples)
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"tasks/{task}": row["after"] for task, row in accuracies.items()}, step=trainer.global_step
            )


def _mark(answer: Answer) -> str:
    """An answer for the table, coloured by its worth; rich markup in the model's text is shown as it is."""
    from rich.markup import escape

    colour = "green" if answer.right else "red"
    return f"[{colour}]{escape(answer.answer[:200])}[/{colour}]"
