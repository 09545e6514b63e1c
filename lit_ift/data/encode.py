"""Records to encoded examples, with an account of what became of every row."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from torch.utils.data import Dataset
from tqdm import tqdm

from lit_ift.data.chat import adds_bos, encode_conversations
from lit_ift.data.layouts import to_row
from lit_ift.data.messages import Conversation
from lit_ift.data.records import Record
from lit_ift.data.rows import Example
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("lit_ift")

OnBadRow = Literal["error", "skip"]

NUM_NAMED: Final = 20
"""How many skipped rows are named one by one before the rest is only counted."""

CHUNK: Final = 256
"""Rows handed to the tokenizer at once."""


@dataclass
class ParsedRows:
    """Conversations with their origins, and the rows that could not be read as one."""

    rows: list[tuple[Conversation, str]] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)

    @property
    def num_read(self) -> int:
        return len(self.rows) + len(self.errors)


@dataclass(frozen=True)
class DataReport:
    """What became of the rows of one split.

    Args:
        split: train, val, test or predict.
        rows_read: rows met in the source.
        rows_kept: rows in the data set.
        rows_skipped: rows left out because they were bad.
        rows_truncated: kept rows that lost tokens at their end to the maximum length.
        rows_with_split_start: kept rows in which a token merges the end of a prompt with the start of an answer.
        rows_with_stop: kept rows that train the tokenizer's end-of-sequence token.
        rows_without_bos: kept rows that do not start with the bos_token, where the tokenizer by itself would start
            a text with it.
        tokens: input tokens of the kept rows.
        target_tokens: tokens that are trained on.
        longest: tokens of the longest kept row.
        skipped: the reasons of the first skipped rows, each with file and line.
    """

    split: str
    rows_read: int
    rows_kept: int
    rows_skipped: int
    rows_truncated: int
    rows_with_split_start: int
    rows_with_stop: int
    rows_without_bos: int
    tokens: int
    target_tokens: int
    longest: int
    skipped: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {**dataclasses.asdict(self), "skipped": list(self.skipped)}

    def __str__(self) -> str:
        return (
            f"{self.split}: {self.rows_read:,} rows read, {self.rows_kept:,} kept, {self.rows_skipped:,} skipped, "
            f"{self.rows_truncated:,} truncated; {self.tokens:,} tokens, {self.target_tokens:,} of them targets"
        )


class EncodedDataset(Dataset[list[Example]]):
    """Examples by lists of indices, as `LengthGroupedBatchSampler` yields them.

    A negative index ``~i`` gives row ``i`` without targets, and without a row id.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.lengths = [len(example.input_ids) for example in examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, indices: list[int]) -> list[Example]:
        return [self.examples[i] if i >= 0 else self.examples[~i].as_dummy() for i in indices]


def parse_records(
    records: Iterable[Record],
    rows: ParsedRows,
    *,
    layout: str | None,
    on_bad_row: OnBadRow,
    needs_answer: bool = True,
) -> ParsedRows:
    """Turn records into conversations, adding them to `rows`; without `needs_answer`, mere prompts are taken too.

    Raises:
        RowError: a row fits no layout and `on_bad_row` is ``error``.
        UserError: a row is no instruction, or fits several layouts.
    """
    for record in records:
        try:
            row = to_row(record, layout=layout, needs_answer=needs_answer)
        except RowError as error:
            if on_bad_row == "error":
                raise
            rows.errors.append(error)
            continue
        if row.kind != "instruction":
            raise UserError(
                f"{record.origin}: these are {row.kind} rows, and this data module reads instructions. Set layout: "
                "chosen to train on the chosen answers of preference rows, or another layout that the rows fit."
            )
        rows.rows.append((row.sides["answer"], record.origin))
    return rows


def encode_rows(
    parsed: ParsedRows,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    split: str,
    max_length: int,
    on_bad_row: OnBadRow,
    show_progress: bool = False,
) -> tuple[EncodedDataset, DataReport]:
    """Tokenize parsed rows in their order.

    Raises:
        RowError: a row cannot be encoded and `on_bad_row` is ``error``.
        UserError: no row is left, or the tokenizer is unfit.
    """
    examples: list[Example] = []
    errors = list(parsed.errors)
    with tqdm(total=len(parsed.rows), desc=f"encode {split}", unit="row", disable=not show_progress) as bar:
        for result in _encode(parsed.rows, tokenizer, max_length):
            bar.update()
            if isinstance(result, Example):
                examples.append(result)
            elif on_bad_row == "error":
                raise result
            else:
                errors.append(result)
    if not examples:
        first = f" The first: {errors[0]}" if errors else ""
        raise UserError(f"{split}: none of {parsed.num_read} rows can be used.{first}")
    return EncodedDataset(examples), _report(split, parsed, examples, errors, tokenizer)


def _encode(
    rows: Sequence[tuple[Conversation, str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[Example | RowError]:
    for start in range(0, len(rows), CHUNK):
        conversations, origins = zip(*rows[start : start + CHUNK], strict=True)
        yield from encode_conversations(conversations, tokenizer, max_length=max_length, origins=origins)


def _report(
    split: str,
    parsed: ParsedRows,
    examples: Sequence[Example],
    errors: Sequence[RowError],
    tokenizer: "PreTrainedTokenizerBase",
) -> DataReport:
    eos_token_id = tokenizer.eos_token_id
    bos_token_id = tokenizer.bos_token_id if adds_bos(tokenizer) else None
    return DataReport(
        split=split,
        rows_read=parsed.num_read,
        rows_kept=len(examples),
        rows_skipped=len(errors),
        rows_truncated=sum(example.num_cut > 0 for example in examples),
        rows_with_split_start=sum(example.num_split_starts > 0 for example in examples),
        rows_with_stop=sum(eos_token_id in example.labels for example in examples),
        rows_without_bos=sum(
            bos_token_id is not None and example.input_ids[:1] != [bos_token_id] for example in examples
        ),
        tokens=sum(len(example.input_ids) for example in examples),
        target_tokens=sum(example.num_targets for example in examples),
        longest=max(len(example.input_ids) for example in examples),
        skipped=tuple(str(error) for error in errors[:NUM_NAMED]),
    )


def announce(report: DataReport) -> None:
    """Print the report's line, and log what needs a second look."""
    tqdm.write(str(report))
    for reason in report.skipped:
        logger.warning("%s: skipped %s", report.split, reason)
    if report.rows_skipped > len(report.skipped):
        logger.warning("%s: skipped %d more rows", report.split, report.rows_skipped - len(report.skipped))
    if report.rows_with_split_start:
        logger.warning(
            "%s: in %d rows the first token of an answer begins in the prompt; it is not trained on. Let the "
            "generation prompt of the chat template end where answers begin, with a line break or a special token.",
            report.split,
            report.rows_with_split_start,
        )
    if report.split == "train" and not report.rows_with_stop:
        logger.warning(
            "train: no row trains the tokenizer's end-of-sequence token, so the model does not learn to stop there. "
            "Set the tokenizer's eos_token to the end-of-turn token, choose a chat template that writes eos_token, "
            "or raise max_length if every row is truncated."
        )


def announce_missing_bos(reports: Iterable[DataReport]) -> None:
    """Warn once if rows of any of the splits lack the bos_token that the tokenizer by itself would put there."""
    lacking = {report.split: report.rows_without_bos for report in reports if report.rows_without_bos}
    if lacking:
        logger.warning(
            "The tokenizer starts a text with its bos_token, but the chat template writes none: %s start without it, "
            "which the model may never have seen. Put {{ bos_token }} first in the chat template, or set "
            "data.chat_template to a built-in name, which then writes it.",
            ", ".join(f"{count:,} rows of {split}" for split, count in lacking.items()),
        )
