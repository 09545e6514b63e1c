"""Records to encoded examples, with an account of what became of every row."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from torch.utils.data import Dataset
from tqdm import tqdm

from lit_ift.data.chat import encode_conversations
from lit_ift.data.layouts import to_row
from lit_ift.data.messages import Conversation
from lit_ift.data.records import Record
from lit_ift.data.report import DataReport, NoUsableRowError, ReportBuilder
from lit_ift.data.rows import EncodedRow, Example, Row
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnBadRow = Literal["error", "skip"]

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
        NoUsableRowError: no row is left.
        UserError: the tokenizer is unfit.
    """
    examples: list[Example] = []
    report = ReportBuilder(split, tokenizer, max_length=max_length, truncation="right")
    for error in parsed.errors:
        report.skip(error)
    with tqdm(total=len(parsed.rows), desc=f"encode {split}", unit="row", disable=not show_progress) as bar:
        for (conversation, origin), result in zip(
            parsed.rows, _encode(parsed.rows, tokenizer, max_length), strict=True
        ):
            bar.update()
            if isinstance(result, Example):
                examples.append(result)
                row = Row("instruction", origin, {"answer": conversation})
                report.keep(row, EncodedRow("instruction", origin, {"answer": result}))
            elif on_bad_row == "error":
                raise result
            else:
                report.skip(result)
    if not examples:
        raise NoUsableRowError(report.build())
    return EncodedDataset(examples), report.build()


def _encode(
    rows: Sequence[tuple[Conversation, str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[Example | RowError]:
    for start in range(0, len(rows), CHUNK):
        conversations, origins = zip(*rows[start : start + CHUNK], strict=True)
        yield from encode_conversations(conversations, tokenizer, max_length=max_length, origins=origins)
