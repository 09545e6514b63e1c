"""Answers of the model before, while and after it is trained: to read, and of verifiable tasks to score."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_ift.callbacks.sample_records import Answer, log_samples, print_samples, write_samples
from lit_ift.chat.conversation import Conversation
from lit_ift.checkpoints.writing import raise_together
from lit_ift.data.modules.verifiable import TaskItem, VerifiableDataModule
from lit_ift.data.parse.row_parser import to_row
from lit_ift.data.read.record import Record
from lit_ift.data.read.sources import Source
from lit_ift.errors import UserError
from lit_ift.generation.opened import room_for_prompt
from lit_ift.generation.prompts import Prompt, encode_prompts, prompt_of, read_prompts
from lit_ift.modules.generate import generate_answers
from lit_ift.options import CheckedOptions, NonNegativeInt, PositiveInt
from lit_ift.ranks import of_every_rank

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule

PROMPTS = "prompts"
"""What answers to `prompts` have in the place of a task."""


class Samples(CheckedOptions, Callback):
    """Lets the model answer prompts before and after ``fit``, and every n steps, and keeps the answers to read.

    Asked are the `prompts`, and held-out questions of a data module whose answers a program can check
    (``VerifiableDataModule``, such as ``TasksDataModule``). Without either it does nothing. Answers are greedy, so that
    those of two steps differ by what was learned between. Ranks share the work, together where they share a model.

    ``<log_dir>/samples.jsonl`` has an answer a row, ``samples.html`` shows them by prompt; both grow. TensorBoard gets
    them as text, Weights & Biases as a table, MLflow the page. Of tasks, the first `show` questions each are among
    them; ``answers.json`` has all answers before and after training. An answer counts as right if its verifier gives
    the full score of 1; part scores, which some verifiers give for a right form, do not count. Logs ``tasks/<task>``
    and ``tasks/mean`` in [0, 1].

    Args:
        prompts: a file of rows in any data format, a hub id, or a list: of questions, or of rows.
        every_n_steps: optimizer steps between samples; by default only before and after training.
        max_prompts: prompts that are taken of a file.
        items_per_task: held-out questions of each task; 0 asks none.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts answered at a time.
        show: answers printed and kept over time of each task.
        enabled: false does nothing.

    Raises:
        ValueError: an option is out of range.
    """

    option_prefix = "samples."

    def __init__(
        self,
        prompts: str | list[str | dict[str, Any]] | None = None,
        every_n_steps: PositiveInt | None = None,
        max_prompts: PositiveInt = 16,
        items_per_task: NonNegativeInt = 32,
        max_new_tokens: PositiveInt = 32,
        batch_size: PositiveInt = 32,
        show: NonNegativeInt = 2,
        enabled: bool = True,
    ) -> None:
        self.prompts = prompts
        self.every_n_steps = every_n_steps
        self.max_prompts = max_prompts
        self.items_per_task = items_per_task
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.show = show
        self.enabled = enabled
        self.before: list[Answer] = []
        self.after: list[Answer] = []
        self.shown: list[Answer] = []
        self._asked: list[tuple[str, Prompt, TaskItem | None]] = []

    @property
    def state_key(self) -> str:
        return "TaskAccuracy"  # As checkpoints of earlier releases have it.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.before, self.after, self.shown = [], [], []  # A checkpoint's come after this.
        data = getattr(trainer, "datamodule", None)
        self._asked = self._what_to_ask(data) if self.enabled else []
        if self.enabled and self.every_n_steps is not None and not self._asked:
            raise UserError(
                f"samples.every_n_steps={self.every_n_steps} has nothing to ask: give samples.prompts, a file or a "
                "list of questions."
            )

    def state_dict(self) -> dict[str, Any]:
        return {name: [asdict(answer) for answer in getattr(self, name)] for name in ("before", "shown")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = [Answer(**{"step": 0, **answer}) for answer in state_dict["before"]]
        self.shown = [Answer(**answer) for answer in state_dict.get("shown", ())]

    def on_train_start(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        asked = [(prompt.row_id, prompt.question) for _, prompt, _ in self._asked]
        if [(answer.row_id, answer.question) for answer in self.before] == asked:
            return  # The run is resumed: its model is not the one from before training any more.
        if self.before:
            rank_zero_warn("The checkpoint has answers to other questions: those before training are asked for anew.")
        self.before = self._sample(trainer, pl_module, "before training")

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: "CausalLMModule", *_: Any
    ) -> None:
        step, every = trainer.global_step, self.every_n_steps
        # Micro-batches of the next step see this number too.
        if every is not None and step and step % every == 0 and not self._asked_at(step):
            self.after = self._sample(trainer, pl_module, f"at step {step}")
            pl_module.restart_clock()

    def on_train_end(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        if not self._asked:
            return
        if not self._asked_at(trainer.global_step):
            self.after = self._sample(trainer, pl_module, "after training")
        run = trainer.log_dir  # Lightning answers with a broadcast: all ranks must ask.
        if trainer.is_global_zero:
            print_samples(self.before, self.after, self.shown, self.accuracies())
            if run is not None:
                self._save(Path(run))

    def accuracies(self) -> dict[str, dict[str, float]]:
        """Share of right answers in each task, and its mean over tasks: ``{"task": {"before": …, "after": …}}``."""
        table: dict[str, dict[str, float]] = {}
        for when, answers in (("before", self.before), ("after", self.after)):
            for task, share in _accuracies(answers).items():
                table.setdefault(task, {})[when] = share
        return table

    def _asked_at(self, step: int) -> bool:
        return bool(self.after) and self.after[0].step == step

    def _what_to_ask(self, data: Any) -> list[tuple[str, Prompt, TaskItem | None]]:
        """Task, prompt and verifiable item of each question."""
        asked: list[tuple[str, Prompt, TaskItem | None]] = [(PROMPTS, prompt, None) for prompt in self._own_prompts()]
        if isinstance(data, VerifiableDataModule) and self.items_per_task:
            for item in data.eval_items(self.items_per_task):
                turns = Conversation(list(item.messages), num_prompt_messages=len(item.messages))
                asked.append((item.task, Prompt(item.row_id, turns, item.answer), item))
        return asked

    def _own_prompts(self) -> list[Prompt]:
        if self.prompts is None:
            return []
        if isinstance(self.prompts, str):
            found = read_prompts(Source(self.prompts, max_rows=self.max_prompts))
            rank_zero_info(f"Samples: the first {len(found)} prompts of {self.prompts}.")
            return found
        rows = [{"prompt": row} if isinstance(row, str) else row for row in self.prompts]
        return [
            prompt_of(to_row(Record(row, f"samples.prompts[{i}]"), needs_answer=False)) for i, row in enumerate(rows)
        ]

    def _sample(self, trainer: L.Trainer, module: "CausalLMModule", when: str) -> list[Answer]:
        """Ask everything; keep, write and log what is shown, and return all answers."""
        if not self._asked:
            return []
        answers = self._answer(trainer, module, when)
        seen: dict[str, int] = defaultdict(int)
        new = []
        for answer in answers:
            seen[answer.task] += 1
            if answer.score is None or seen[answer.task] <= self.show:
                new.append(answer)
        self.shown = [answer for answer in self.shown if answer.step != trainer.global_step] + new
        run = trainer.log_dir  # Lightning answers with a broadcast: all ranks must ask.
        problem = None
        if trainer.is_global_zero:
            try:
                page = None if run is None else write_samples(Path(run), self.shown)
            except OSError as error:
                problem = f"{run}: the samples could not be written: {error}. Make room, or set samples.enabled=false."
            else:
                shares = {f"tasks/{task}": share for task, share in _accuracies(answers).items()}
                log_samples(trainer.loggers, self.shown, new, shares, trainer.global_step, page)
        raise_together(problem)
        return answers

    def _answer(self, trainer: L.Trainer, module: "CausalLMModule", when: str) -> list[Answer]:
        from tqdm import tqdm

        data: Any = getattr(trainer, "datamodule", None)
        tokenizer = getattr(data, "tokenizer", None) or module.tokenizer
        room = room_for_prompt(module.model, self.max_new_tokens)
        prompts = encode_prompts([prompt for _, prompt, _ in self._asked], tokenizer, max_length=room)
        mine = range(trainer.global_rank, len(prompts), trainer.world_size)
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
        answers: dict[int, Answer] = {}
        for position, text in shown:
            i = mine[position]
            task, prompt, item = self._asked[i]
            answers[i] = Answer(
                step=trainer.global_step,
                task=task,
                row_id=prompt.row_id,
                question=prompt.question,
                expected=prompt.expected,
                answer=text.strip(),
                score=None if item is None else data.score(item, text),
            )
        answers = {i: answer for of_rank in of_every_rank(answers) for i, answer in of_rank.items()}
        return [answers[i] for i in range(len(prompts))]

    def _save(self, run: Path) -> None:
        """Say where the samples are, and write all answers that were scored."""
        print(f"Samples: {run / 'samples.html'}")
        scored = {when: _scored(answers) for when, answers in (("before", self.before), ("after", self.after))}
        if not scored["after"]:
            return
        path = run / "answers.json"
        lists = {when: [asdict(answer) for answer in answers] for when, answers in scored.items()}
        content = {"accuracies": self.accuracies(), **lists}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        print(f"All answers: {path}")


def _scored(answers: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.score is not None]


def _accuracies(answers: Sequence[Answer]) -> dict[str, float]:
    """Share of right answers by task, and its mean over tasks; empty without tasks."""
    right: dict[str, list[bool]] = defaultdict(list)
    for answer in _scored(answers):
        right[answer.task].append(answer.right)
    shares = {task: sum(values) / len(values) for task, values in right.items()}
    return {**shares, "mean": sum(shares.values()) / len(shares)} if shares else {}
