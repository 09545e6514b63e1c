"""Real rows as batches: the same tokens for every contestant."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data import FeedbackDataModule, InstructionDataModule
from lit_ift.data.batch.collate import collate, collate_feedback

LOW_SHARE: Final = 0.25
"""Most response tokens that a row of a low share has."""

Batch = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Tokenized rows of a file.

    Args:
        examples: of each row its answers by name; instruction rows have one.
        pad_token_id: fills rows up.
    """

    encoded: list[Any]
    pad_token_id: int

    @property
    def examples(self) -> list[Example]:
        """The first answer of each row."""
        return [next(iter(row.sides.values())) for row in self.encoded]

    def grouped(self, size: int, count: int, *, seed: int = 0) -> list[list[Any]]:
        """Groups of rows of similar length, as many as asked for, in random order; rows come again if there are few."""
        draw = random.Random(seed)
        groups: list[list[Any]] = []
        while len(groups) < count:
            order = draw.sample(self.encoded, len(self.encoded))
            some = sorted(order[: size * count], key=lambda row: max(len(a.input_ids) for a in row.sides.values()))
            whole = [some[i : i + size] for i in range(0, len(some) - size + 1, size)]
            if not whole:
                raise SystemExit(f"A batch of {size} rows cannot be made of {len(self.encoded)}.")
            draw.shuffle(whole)
            groups += whole
        return groups[:count]

    def batches(self, size: int, count: int) -> list[Batch]:
        """Padded batches of the rows' first answers."""
        groups = self.grouped(size, count)
        examples = [[next(iter(row.sides.values())) for row in group] for group in groups]
        return [dict(collate(some, pad_token_id=self.pad_token_id)) for some in examples]

    def pairs(self, size: int, count: int) -> tuple[list[Batch], list[list[Any]]]:
        """Padded batches of pairs, and their rows."""
        groups = self.grouped(size, count)
        return [dict(collate_feedback(group, pad_token_id=self.pad_token_id)) for group in groups], groups


ROWS_THAT_FIT: Final[dict[str, Any]] = {"truncation": "drop", "on_bad_row": "skip", "cache": False}
"""Longer rows and unusable ones are left out."""


def instruction_rows(file: str, tokenizer: Any, *, max_length: int, max_rows: int, low_share: bool = False) -> Rows:
    """Rows that are not longer than `max_length`; of a low share, those with few response tokens."""
    data = InstructionDataModule(file, tokenizer=tokenizer, max_length=max_length, max_rows=max_rows, **ROWS_THAT_FIT)
    found = _rows(data, tokenizer)
    if not low_share:
        return found
    few = [r for r, e in zip(found.encoded, found.examples, strict=True) if share([e]) <= LOW_SHARE]
    return Rows(few, found.pad_token_id)


def pair_rows(file: str, tokenizer: Any, *, max_length: int, max_rows: int, longest_prompts: int | None = None) -> Rows:
    """Pairs that are not longer than `max_length`; of these, those that have most of their tokens in the prompt."""
    data = FeedbackDataModule(file, tokenizer=tokenizer, max_length=max_length, max_rows=max_rows, **ROWS_THAT_FIT)
    data.kinds = frozenset({"preference"})
    found = _rows(data, tokenizer)
    if longest_prompts is None:
        return found
    by_share = sorted(found.encoded, key=lambda row: share([*row.sides.values()]))
    return Rows(by_share[:longest_prompts], found.pad_token_id)


def _rows(data: InstructionDataModule, tokenizer: Any) -> Rows:
    data.setup("fit")
    dataset = data.datasets["train"]
    pad = tokenizer.pad_token_id
    return Rows(dataset[list(range(len(dataset)))], tokenizer.eos_token_id if pad is None else pad)


def share(examples: Sequence[Example]) -> float:
    """Share of the tokens that are trained on, padding aside."""
    trained = sum(label != IGNORE_INDEX for example in examples for label in example.labels)
    return trained / sum(len(example.input_ids) for example in examples)


def facts_of(batches: Sequence[Batch]) -> dict[str, Any]:
    """What batches are made of: rows, tokens, the share of padding and that of response tokens."""
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    trained = sum(trained_tokens(batch["labels"]) for batch in batches)
    return {
        "batches": len(batches),
        "rows_a_batch": len(batches[0]["labels"]),
        "tokens_a_batch": round(real / len(batches)),
        "padding_share": round(1 - real / sum(batch["labels"].numel() for batch in batches), 4),
        "response_share": round(trained / real, 4),
    }


def trained_tokens(labels: Tensor) -> int:
    """Tokens that count in the loss: all that have a label but the first of each row."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def cut_after_prompt(example: Example) -> tuple[list[int], list[int]]:
    """The ids before the first trained token, and those from there on."""
    start = next(i for i, label in enumerate(example.labels) if label != IGNORE_INDEX)
    return [*example.input_ids[:start]], [*example.input_ids[start:]]


def padded_to(batch: Batch, length: int, pad_token_id: int) -> Batch:
    """The batch with all rows of one length, as those have it who pad everything to ``max_length``."""
    from torch.nn.functional import pad

    more = length - batch["input_ids"].shape[1]
    fillers = {"input_ids": pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0}
    return {**batch, **{name: pad(batch[name], (0, more), value=value) for name, value in fillers.items()}}
