"""Rows from their sources to token ids: read, parse, encode and truncate by chunks, and account for each row."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tqdm import tqdm

from lit_ift.chat.conversation import TemplatedPromptError
from lit_ift.chat.example import Example
from lit_ift.data.encode_sides import SideEncoder
from lit_ift.data.parse.columns import ColumnMap
from lit_ift.data.parse.row_parser import RowParser
from lit_ift.data.read.readers import OnRowError, Record, raise_row_error
from lit_ift.data.report.builder import ReportBuilder
from lit_ift.data.rows import Document, EncodedRow, Row, RowKind, Side
from lit_ift.data.train_on import TrainOn, with_targets
from lit_ift.data.truncation import Truncation, fitted
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnBadRow = Literal["error", "skip"]

CHUNK: Final = 512
"""Most rows encoded at once; three times as many of a source are in memory as text."""

CHUNK_CHARS: Final = 1_000_000
"""Characters of rows from which on no more rows are encoded with them: long rows come in smaller chunks."""


NUM_JUDGED: Final = 100
"""First rows of a source by which it is judged whether its prompts are templated already."""


@dataclass(frozen=True)
class ResolvedSource:
    """Rows from one place, with everything decided that a configuration leaves open.

    Args:
        name: of the place, for the report.
        read: yields the records; tells its argument of rows that cannot be read.
        layout: how the rows are laid out; None recognises it.
        columns: what columns of the rows are; see `RowParser`.
        score_range: lowest and highest score of the rows; None for [0, 1].
        preference_scale: see `RowParser`.
        weight: how often each row comes in an epoch, on average.
        part: part of a mixed objective that the rows go to; None for the one named as their kind.
        place: path, configuration and split, if that is where the rows are; two sources with the same are the same.
        fingerprint: gives plain values that change whenever the rows could.
    """

    name: str
    read: Callable[[OnRowError], Iterable[Record]]
    layout: str | None = None
    columns: ColumnMap | None = None
    score_range: tuple[float, float] | None = None
    preference_scale: float | None = None
    weight: float = 1.0
    part: str | None = None
    place: tuple[str, str | None, str | None] | None = None
    fingerprint: Callable[[], dict[str, Any]] | None = None

    def parser(self, *, needs_answer: bool) -> RowParser:
        """Makes rows of the records."""
        return RowParser(
            layout=self.layout,
            columns=self.columns,
            score_range=self.score_range,
            preference_scale=self.preference_scale,
            needs_answer=needs_answer,
        )


@dataclass(frozen=True)
class EncodingOptions:
    """How rows become token ids.

    Args:
        tokenizer: a fast tokenizer; with a chat template if there are conversations.
        max_length: longest conversation [tokens].
        truncation: what happens to longer ones; see `fitted`.
        kinds: rows that are taken.
        needs_answer: refuse rows that do not end with an answer; otherwise they become mere prompts.
        train_on: which part of conversations is trained on; see `with_targets`.
        on_bad_row: raise the first bad row, or leave bad rows out. Too long ones are left out in either case if that is
            how they are to be truncated.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    truncation: Truncation | None
    kinds: frozenset[RowKind]
    needs_answer: bool = True
    train_on: TrainOn = "assistant"
    on_bad_row: OnBadRow = "error"


def encode_sources(
    sources: Iterable[ResolvedSource],
    options: EncodingOptions,
    report: ReportBuilder,
    *,
    takes: Callable[[Row], bool] = lambda row: True,
    progress: str | None = None,
) -> Iterator[EncodedRow]:
    """Yield the rows of all sources in their order, each of which `report` hears of; a long text as several.

    Args:
        sources: where the rows come from.
        options: how they become token ids.
        report: told of every row that is kept or skipped.
        takes: whether a row belongs here; others are passed over, and not reported.
        progress: text of a progress bar; None for none.

    Raises:
        RowError: a row is bad and ``on_bad_row`` is ``error``.
        UserError: a source holds rows of another kind, cannot be read at all, or the tokenizer is unfit.
    """
    waiting: deque[_Chunk] = deque()
    is_strict = options.on_bad_row == "error"
    # Rows that cannot be read are reported at once: a source may have nothing else.
    skip = None if is_strict else report.listener

    def sides() -> Iterator[list[tuple[Side, str]]]:
        for source in sources:
            parser = source.parser(needs_answer=options.needs_answer)
            for read in _chunks(source, parser, options, skip):
                rows = [row for row in read if isinstance(row, RowError) or takes(row)]
                waiting.append(_Chunk(source, rows, len(read)))
                yield [(side, row.origin) for row in rows if isinstance(row, Row) for side in row.sides.values()]
                if is_strict and isinstance(read[-1], RowError):
                    return
            report.note_columns(parser.names)

    encoder = SideEncoder(options.tokenizer, needs_answer=options.needs_answer)
    templated = _TemplatedPrompts()
    with tqdm(desc=progress, unit=" rows", disable=progress is None) as bar:
        for examples in encoder.encode_batches(sides()):
            chunk = waiting.popleft()
            for row, result in zip(chunk.rows, _assembled(chunk.rows, examples, options), strict=True):
                if isinstance(result, RowError):
                    # A row that the declared policy drops is no bad row.
                    is_dropped = options.truncation == "drop" and result.reason == "too_long"
                    if is_strict and not is_dropped:
                        raise result
                    report.skip(result)
                    templated.see(chunk.source, result)
                else:
                    assert isinstance(row, Row)
                    report.keep(row, *result, source=chunk.source.name)
                    templated.see(chunk.source, None)
                    yield from result
            bar.update(chunk.num_read)
        templated.judge()


class _TemplatedPrompts:
    """Finds that the prompts of a source were templated already: more than half of its first rows."""

    def __init__(self) -> None:
        self._source: ResolvedSource | None = None
        self._seen = 0
        self._found: list[TemplatedPromptError] = []

    def see(self, source: ResolvedSource, error: RowError | None) -> None:
        """Hear of the next row: what is wrong with it, or None.

        Raises:
            UserError: the source before, or this one, is at fault.
        """
        if source is not self._source:
            self.judge()
            self._source, self._seen, self._found = source, 0, []
        if self._seen == NUM_JUDGED:
            return
        self._seen += 1
        if isinstance(error, TemplatedPromptError):
            self._found.append(error)
        if self._seen == NUM_JUDGED:
            self.judge()

    def judge(self) -> None:
        """Do nothing if less than half of the first rows of the source are at fault.

        Raises:
            UserError: more are.
        """
        if self._source is not None and 2 * len(self._found) > self._seen:
            raise UserError(
                f"{self._source.name}: {len(self._found)} of the first {self._seen} prompts are templated already. The "
                f"first: {self._found[0]}."
            )


class _Chunk(NamedTuple):
    """Rows that are encoded together.

    Args:
        source: that they come from.
        rows: those that belong here, with errors in their place.
        num_read: how many were read for it.
    """

    source: ResolvedSource
    rows: list[Row | RowError]
    num_read: int


def _chunks(
    source: ResolvedSource, parser: RowParser, options: EncodingOptions, skip: OnRowError | None
) -> Iterator[list[Row | RowError]]:
    """The rows of a source as read and parsed, with errors in their place.

    Args:
        source: where they come from.
        parser: parses them.
        options: which rows are wanted.
        skip: told of rows that cannot be read; None ends the last chunk with the first bad row of any kind.
    """
    chunk: list[Row | RowError] = []
    num_chars = 0
    try:
        for record in source.read(skip or raise_row_error):
            try:
                row = parser.parse(record)
                _check_kind(row, options.kinds, parser.layout)
                chunk.append(with_targets(row, options.train_on))
                num_chars += _num_chars(row)
            except RowError as error:
                if skip is None:
                    raise
                chunk.append(_without_frames(error))
            if len(chunk) >= CHUNK or num_chars >= CHUNK_CHARS:
                yield chunk
                chunk, num_chars = [], 0
    except RowError as error:
        if skip is not None:
            raise
        # Rows before it may be bad, too, which shows when they are encoded.
        chunk.append(error)
    if chunk:
        yield chunk


def _num_chars(row: Row) -> int:
    return sum(
        len(side.text) if isinstance(side, Document) else sum(len(message["content"]) for message in side.messages)
        for side in row.sides.values()
    )


def _without_frames(error: RowError) -> RowError:
    """The error without its traceback, whose frames hold the whole row in memory."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _check_kind(row: Row, kinds: frozenset[RowKind], layout: str | None) -> None:
    if row.kind in kinds:
        return
    remedies = {
        "preference": "set the layout to 'chosen' to train on the chosen answers",
        "unpaired": "say --columns '{label: null}' to train on all answers alike",
        "scored": "say --columns '{score: null}' to train on all answers alike",
        "instruction": "give rows with two answers or with a score",
    }
    raise UserError(
        f"{row.origin}: the rows are {row.kind} data (layout '{layout}'), but {' and '.join(sorted(kinds))} rows are "
        f"needed here. Use FeedbackDataModule, which takes all kinds, or {remedies[row.kind]}."
    )


def _assembled(
    rows: Sequence[Row | RowError], examples: Sequence[Example | RowError], options: EncodingOptions
) -> Iterator[list[EncodedRow] | RowError]:
    """The rows of a chunk from the examples of their sides, which stand in one list."""
    of_sides = iter(examples)
    for row in rows:
        if isinstance(row, RowError):
            yield row
        else:
            yield _assemble(row, {name: next(of_sides) for name in row.sides}, options)


def _assemble(row: Row, sides: dict[str, Example | RowError], options: EncodingOptions) -> list[EncodedRow] | RowError:
    examples = {name: side for name, side in sides.items() if isinstance(side, Example)}
    for side in sides.values():
        if isinstance(side, RowError):
            return side
    encoded = EncodedRow(row.kind, row.origin, examples, row.score)
    try:
        return fitted(
            encoded,
            is_text=row.is_text and options.needs_answer,
            max_length=options.max_length,
            policy=options.truncation,
            bos_token_id=options.tokenizer.bos_token_id,
        )
    except RowError as error:
        error.num_tokens = max(len(example.input_ids) for example in examples.values())
        return error
