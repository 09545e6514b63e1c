"""Data whose answers can be checked by a program: what an evaluation needs to know of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lit_ift.chat.conversation import Message


@dataclass(frozen=True)
class TaskItem:
    """A question with a checkable answer.

    Args:
        task: name of the task it belongs to.
        messages: the prompt, ending with the user's question.
        answer: a right answer; there may be others.
        row_id: origin of the row, unique within the data module.
    """

    task: str
    messages: Sequence[Message]
    answer: str
    row_id: str


@runtime_checkable
class VerifiableDataModule(Protocol):
    """A data module that gives questions and scores answers to them."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that renders prompts."""
        ...

    def eval_items(self, limit_per_task: int | None = None) -> list[TaskItem]:
        """The first `limit_per_task` validation questions of each task, always the same ones."""
        ...

    def score(self, item: TaskItem, answer: str) -> float:
        """How right `answer` is, from 0 to 1."""
        ...
