"""Rows from their sources to token ids: read, parse, encode and truncate by chunks, and account for each row."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from torch.utils.data import Dataset
from tqdm import tqdm

from lit_ift.data.chat import ConversationEncoder
from lit_ift.data.layouts import RowParser
from lit_ift.data.records import OnRowError, Record
from lit_ift.data.report import ReportBuilder
from lit_ift.data.rows import EncodedRow, Example, Row, RowKind
from lit_ift.data.store import StoredRows
from lit_ift.data.truncation import Truncation, truncate
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnBadRow = Literal["error", "skip"]

CHUNK_ROWS: Final = 4096
CHUNK_CHARACTERS: Final = 8_000_000
"""Rows are encoded together until there are so many, or so much text: no more of a source is in memory at once."""


@dataclass(frozen=True)
class Part:
    """Rows from one place.

    Args:
        name: of the place, for the report.
        read: yields the records; tells its argument of rows that cannot be read.
        layout: how the rows are laid out; None recognises it.
        score_range: lowest and highest score of the rows; None for [0, 1].
        weight: how often each row comes in an epoch, on average.
    """

    name: str
    read: Callable[[OnRowError], Iterable[Record]]
    layout: str | None = None
    score_range: tuple[float, float] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class EncodingOptions:
    """How rows become token ids.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        max_length: longest conversation [tokens].
        truncation: what happens to longer ones.
        kinds: rows that are taken.
        needs_answer: refuse rows that do not end with an answer; otherwise they become mere prompts.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    truncation: Truncation
    kinds: frozenset[RowKind]
    needs_answer: bool = True


class EncodedDataset(Dataset[list[Example]]):
    """Instruction examples by lists of indices, as `LengthGroupedBatchSampler` yields them.

    A negative index ``~i`` gives row ``i`` without targets, and without a row id.

    Args:
        rows: the encoded rows.
    """

    def __init__(self, rows: StoredRows) -> None:
        self.rows = rows
        self.lengths: list[int] = rows.lengths.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> list[Example]:
        return [self._example(i) if i >= 0 else self._example(~i).as_dummy() for i in indices]

    def _example(self, index: int) -> Example:
        return self.rows[index].sides["answer"]


def encode_parts(
    parts: Sequence[Part],
    options: EncodingOptions,
    report: ReportBuilder,
    *,
    on_bad_row: OnBadRow,
    takes: Callable[[Row], bool] = lambda row: True,
    progress: str | None = None,
) -> Iterator[EncodedRow]:
    """Yield the rows of all parts in their order, each of which `report` hears of.

    Args:
        parts: where the rows come from.
        options: how they become token ids.
        report: told of every row that is kept or skipped.
        on_bad_row: raise the first bad row, or leave bad rows out. Too long ones are left out in either case if that is
            how they are to be truncated.
        takes: whether a row belongs here; others are passed over, and not reported.
        progress: text of a progress bar; None for none.

    Raises:
        RowError: a row is bad and `on_bad_row` is ``error``.
        UserError: a part holds rows of another kind, cannot be read at all, or the tokenizer is unfit.
    """
    encoder = ConversationEncoder(options.tokenizer)
    with tqdm(desc=progress, unit=" rows", disable=progress is None) as bar:
        for part in parts:
            for chunk in _chunks(part, options, stops=on_bad_row == "error"):
                taken = [row for row in chunk if isinstance(row, RowError) or takes(row)]
                for row, result in zip(taken, _encode(taken, encoder, options), strict=True):
                    if isinstance(result, RowError):
                        # A row that the declared policy drops is no bad row.
                        is_dropped = options.truncation == "drop" and result.reason == "too_long"
                        if on_bad_row == "error" and not is_dropped:
                            raise result
                        report.skip(result)
                    else:
                        assert isinstance(row, Row)
                        report.keep(row, result, source=part.name)
                        yield result
                bar.update(len(chunk))


def _chunks(part: Part, options: EncodingOptions, *, stops: bool) -> Iterator[list[Row | RowError]]:
    """The rows of a part as read and parsed, with errors in their place; after the first one if it `stops`."""
    chunk: list[Row | RowError] = []
    num_good = num_characters = 0
    parser = RowParser(layout=part.layout, score_range=part.score_range, needs_answer=options.needs_answer)
    for record in part.read(chunk.append):
        try:
            row = parser.parse(record)
            _check_kind(row, options.kinds, parser.layout)
            chunk.append(row)
            num_good += 1
            num_characters += sum(len(m["content"]) for side in row.sides.values() for m in side.messages)
        except RowError as error:
            chunk.append(error)
        is_full = len(chunk) >= CHUNK_ROWS or num_characters >= CHUNK_CHARACTERS
        if is_full or (stops and num_good < len(chunk)):
            yield chunk.copy()
            # The reader keeps this very list's `append`.
            chunk.clear()
            num_good = num_characters = 0
    if chunk:
        yield chunk


def _check_kind(row: Row, kinds: frozenset[RowKind], layout: str | None) -> None:
    if row.kind in kinds:
        return
    remedies = {
        "preference": "set the layout to 'chosen' to train on the chosen answers",
        "unpaired": "set the layout to 'messages' or 'prompt_completion' to train on all answers alike",
        "scored": "set the layout to 'messages' or 'prompt_completion' to train on all answers alike",
        "instruction": "give rows with two answers or with a score",
    }
    raise UserError(
        f"{row.origin}: the rows are {row.kind} data (layout '{layout}'), but {' and '.join(sorted(kinds))} rows are "
        f"needed here. Use a data module for {row.kind} rows, or {remedies[row.kind]}."
    )


def _encode(
    rows: Sequence[Row | RowError], encoder: ConversationEncoder, options: EncodingOptions
) -> Iterator[EncodedRow | RowError]:
    good = [row for row in rows if isinstance(row, Row)]
    conversations = [(conversation, row.origin) for row in good for conversation in row.sides.values()]
    results = iter(encoder.encode([c for c, _ in conversations], [origin for _, origin in conversations]))
    for row in rows:
        if isinstance(row, RowError):
            yield row
            continue
        sides = {name: next(results) for name in row.sides}
        yield _assemble(row, sides, options)


def _assemble(row: Row, sides: dict[str, Example | RowError], options: EncodingOptions) -> EncodedRow | RowError:
    examples = {name: side for name, side in sides.items() if isinstance(side, Example)}
    for side in sides.values():
        if isinstance(side, RowError):
            return side
    encoded = EncodedRow(row.kind, row.origin, examples, row.score)
    try:
        return truncate(
            encoded,
            max_length=options.max_length,
            policy=options.truncation,
            bos_token_id=options.tokenizer.bos_token_id,
        )
    except RowError as error:
        return error
