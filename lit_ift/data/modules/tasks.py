"""Procedurally generated tasks with verifiers, from the package reasoning-gym."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, cast

from lit_ift.chat.conversation import Message
from lit_ift.data.modules.conversation import ConversationDataModule, Split
from lit_ift.data.modules.verifiable import TaskItem
from lit_ift.data.parse.messages import normalise
from lit_ift.data.read.readers import OnRowError, Record, raise_row_error
from lit_ift.errors import UserError, did_you_mean, needing
from lit_ift.options import NonNegativeInt

RESERVED: Final = ("seed", "size")
"""Configuration keys of reasoning-gym that the data module sets itself."""

BLOCK: Final = 1000
"""Questions drawn from one generator. Some tasks compute as many as they are told in advance, so it is not large."""

HELD_OUT: Final[dict[Split, tuple[Split, ...]]] = {"val": (), "test": ("val",), "train": ("val", "test")}
"""For each split the others whose questions it must not repeat."""

HASH_DEPENDENT: Final = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
"""Tasks of reasoning-gym 0.1 that iterate over sets of strings, whose order Python draws anew in each process."""


class TasksDataModule(ConversationDataModule):
    """Questions and answers from reasoning-gym, and its verifiers to score answers.

    Within a task no question occurs twice (case and white space aside), neither in a split nor across splits. The
    validation questions depend on `tasks`, `val_size` and `seed` only, the test questions on these and `test_size`:
    more training data leaves both as they are. Predict takes the test questions.

    Args:
        tasks: name of each task to its configuration, such as ``{"spell_backward": {"max_word_len": 5}}``.
        train_size: training rows a task.
        val_size: validation rows a task.
        test_size: test rows a task, which are also those of predict.
        system_prompt: text of a system turn before each question; None for no such turn.
        **kwargs: see `ConversationDataModule`; `seed` also decides which questions are drawn.

    Raises:
        UserError: reasoning-gym is missing, a task or key is unknown, or a value is out of range.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any]],
        *,
        train_size: NonNegativeInt = 1000,
        val_size: NonNegativeInt = 100,
        test_size: NonNegativeInt = 0,
        system_prompt: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not tasks:
            raise UserError("data.tasks is empty. Name at least one task of reasoning-gym.")
        if train_size + val_size + test_size == 0:
            raise UserError("data.train_size, data.val_size and data.test_size must not all be 0.")
        if system_prompt is not None and not system_prompt.strip():
            raise UserError("data.system_prompt is empty. Remove it for no system turn.")
        self.tasks = tasks
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size, "test": test_size, "predict": test_size}
        self.system_prompt = system_prompt
        self.generators = {name: make_generator(name, config, seed=0) for name, config in tasks.items()}
        self._entries: dict[Split, dict[str, list[dict[str, Any]]]] = {}

    def has_split(self, split: Split) -> bool:
        """There are rows of every split whose size is not 0."""
        return self.sizes[split] > 0

    def split_option(self, split: Split) -> str:
        """The option that gives a split its size."""
        return f"data.{_drawn_as(split)}_size"

    def records(self, split: Split, on_row_error: OnRowError = raise_row_error) -> Iterator[Record]:
        """The rows of a split as messages, task by task; generated rows cannot be bad."""
        for task, entries in self.entries(split).items():
            for index, entry in enumerate(self.first_rows(entries)):
                answer: Message = {"role": "assistant", "content": entry["answer"]}
                yield Record({"messages": [*self._prompt(entry), answer]}, _row_id(task, _drawn_as(split), index))

    def entries(self, split: Split) -> dict[str, list[dict[str, Any]]]:
        """Task to the entries of reasoning-gym (question, answer, metadata) in a split; generated once.

        Raises:
            UserError: a task has too few different questions.
        """
        split = _drawn_as(split)
        if split not in self._entries:
            # Each split makes way for those that must not depend on its size.
            held_out = [self.entries(other) for other in HELD_OUT[split] if self.has_split(other)]
            self._entries[split] = {
                task: draw_entries(
                    task,
                    config,
                    size=self.sizes[split],
                    seed=_seed(self.seed, task, split),
                    exclude=[entry["question"] for entries in held_out for entry in entries[task]],
                )
                for task, config in self.tasks.items()
            }
        return self._entries[split]

    def eval_items(self, limit_per_task: int | None = None) -> list[TaskItem]:
        """The first `limit_per_task` validation questions of each task (all for None)."""
        if not self.has_split("val"):
            raise UserError(
                "There are no validation questions to evaluate on. Set data.val_size, or samples.items_per_task=0."
            )
        return [
            TaskItem(task, self._prompt(entry), entry["answer"], _row_id(task, "val", index))
            for task, entries in self.entries("val").items()
            for index, entry in enumerate(islice(entries, limit_per_task))
        ]

    def score(self, item: TaskItem, answer: str) -> float:
        """The verifier's score of `answer`, outer white space aside; 1 is right, and some tasks give part scores.

        Raises:
            UserError: `item` is not one of this data module's.
        """
        entry = self._entry_by_row_id(item)
        return float(self.generators[item.task].score_answer(answer.strip(), entry))

    def _entry_by_row_id(self, item: TaskItem) -> dict[str, Any]:
        entries = self.entries("val").get(item.task, [])
        index = int(item.row_id.rpartition("#")[2])
        if index >= len(entries) or entries[index]["answer"] != item.answer:
            raise UserError(f"{item.row_id} is not a question of this data module. Take items from its eval_items().")
        return entries[index]

    def _prompt(self, entry: dict[str, Any]) -> list[Message]:
        system: list[Message] = []
        if self.system_prompt is not None:
            system = [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": entry["question"]}]


def draw_entries(
    task: str, config: dict[str, Any], *, size: int, seed: int, exclude: list[str]
) -> list[dict[str, Any]]:
    """The first `size` entries of a task whose questions differ from each other and from `exclude`.

    Raises:
        UserError: the task repeats itself before that many are found.
    """
    seen = {normalise(question) for question in exclude}
    # A task with N questions left to find among M shows a new one every M / N draws on average.
    patience = max(1000, 20 * (size + len(seen)))
    entries: list[dict[str, Any]] = []
    repeats = 0
    index = 0
    while len(entries) < size:
        if index % BLOCK == 0:
            generator = make_generator(task, config, seed=seed + index)
        entry = cast(dict[str, Any], generator[index % BLOCK])
        index += 1
        key = normalise(entry["question"])
        if key in seen:
            repeats += 1
            if repeats > patience:
                raise UserError(
                    f"Task '{task}' is too small: {len(seen)} different questions were found in {index} draws "
                    f"({len(exclude)} of them held out), but {size + len(exclude)} are needed. Widen its configuration "
                    "or lower data.train_size, data.val_size and data.test_size."
                )
            continue
        seen.add(key)
        repeats = 0
        entries.append(entry)
    return entries


def make_generator(task: str, config: dict[str, Any], *, seed: int) -> Any:
    """A data set of reasoning-gym, which computes any entry from its seed and index.

    Raises:
        UserError: reasoning-gym is missing, or the task or its configuration is wrong.
    """
    with needing("reasoning-gym", "tasks", "data.tasks"):
        from reasoning_gym.factory import DATASETS, create_dataset

    if task not in DATASETS:
        raise UserError(f"Unknown task '{task}'.{did_you_mean(task, DATASETS)} Valid: {', '.join(sorted(DATASETS))}.")
    if task in HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise UserError(
            f"Task '{task}' depends on Python's string hashes, so each process would draw other questions. Set the "
            "environment variable PYTHONHASHSEED=0 before the start, or leave the task out."
        )
    known = [field.name for field in dataclasses.fields(DATASETS[task][1]) if field.name not in RESERVED]
    for key in config or {}:
        if key in RESERVED:
            raise UserError(
                f"Task '{task}': '{key}' is set by the data module. Use data.seed, train_size, val_size, test_size."
            )
        if key not in known:
            raise UserError(
                f"Task '{task}' has no option '{key}'.{did_you_mean(key, known)} Valid: {', '.join(sorted(known))}."
            )
    try:
        return create_dataset(task, seed=seed, size=BLOCK, **(config or {}))
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"Task '{task}': its configuration {config} is refused: {error}") from error


def _drawn_as(split: Split) -> Split:
    """The split whose questions are taken for `split`."""
    return "test" if split == "predict" else split


def _row_id(task: str, split: str, index: int) -> str:
    return f"{task}/{split}#{index}"


def _seed(seed: int, task: str, split: str) -> int:
    # reasoning-gym draws entry i from seed + i, so that neighbouring seeds share nearly all entries: spread them.
    digest = hashlib.sha256(f"{seed}/{task}/{split}".encode()).digest()
    return int.from_bytes(digest[:8]) % 2**31
