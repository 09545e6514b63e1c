"""One account of what became of every row of a split; `report_builder` makes it while the rows stream by."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tqdm import tqdm

from lit_ift.errors import UserError, printable

logger = logging.getLogger("lit_ift.report")
"""Disable it to show the reports in another way than `announce` does."""

NUM_SUMMED_UP: Final = 5
"""How many last tokens of turns a report's summary lists, and how many faults an error."""


FINDINGS: Final = {
    "truncated": "rows_truncated",
    "split": "rows_split",
    "duplicate": "rows_duplicate",
    "no_target": "rows_without_target",
    "lookalike": "rows_with_lookalikes",
    "dropped_thoughts": "rows_with_dropped_thoughts",
    "split_start": "rows_with_split_start",
    "without_bos": "rows_without_bos",
    "weighted": "rows_weighted",
    "cut_turn": "rows_cut_turn",
    "unstopped": "rows_unstopped",
}
"""What may be found of kept rows, as keys of `DataReport.row_ids`, and the fields that count such rows."""

LENGTHS: Final = ("input_lengths", "target_lengths", "whole_lengths")


@dataclass(frozen=True)
class Lengths:
    """How long conversations are [tokens].

    Args:
        total: sum over all.
        longest: the largest.
        median: half are at most so long.
        p95: 95 % are at most so long.
        edges: left edges of the histogram's bins, and the right edge of the last one, which is exclusive too.
        counts: conversations in each bin.
    """

    total: int = 0
    longest: int = 0
    median: int = 0
    p95: int = 0
    edges: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class TurnEnd:
    """A token that trained turns end in.

    Args:
        token_id: its id.
        token: its text.
        turns: how many complete trained turns end in it.
        is_control: whether no text can hold it.
        stops: whether it says that the turn is over: a control token, or what the chat template writes there.
    """

    token_id: int
    token: str
    turns: int
    is_control: bool
    stops: bool


@dataclass(frozen=True)
class TokenCount:
    """What a source, or a side of preference rows, holds.

    Args:
        rows: of the data set: kept rows, a text that was split as often as it has pieces.
        tokens: input tokens.
        target_tokens: tokens that are trained on.
        weight: how often an epoch takes the rows.
    """

    rows: int = 0
    tokens: int = 0
    target_tokens: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class DataReport:
    """What became of the rows of one split. Rows are counted once, conversations once a side.

    Args:
        split: train, val, test or predict.
        max_length: longest allowed conversation [tokens].
        truncation: what was done with longer ones.
        rows_read: rows met in the source.
        rows_kept: rows in the data set.
        rows_skipped: rows left out because they were bad.
        rows_truncated: kept rows that lost tokens to the maximum length.
        rows_split: kept rows, each a text that was split into pieces.
        pieces: what they became. Lengths are those of pieces.
        rows_with_split_start: kept rows in which a token merges the end of a prompt with the start of an answer.
        rows_with_stop: kept rows that train the tokenizer's end-of-sequence token.
        rows_without_bos: kept rows that do not start with the bos_token, where the tokenizer by itself would start
            a text with it.
        rows_without_target: kept rows with nothing to train on, such as the prompts of predict.
        rows_with_lookalikes: kept rows with text that looks like a control token; it was encoded as text.
        rows_with_dropped_thoughts: kept rows of which the chat template leaves out the thinking of earlier turns.
        rows_weighted: kept rows with a trained turn whose weight is not 1.
        turns_weighted: such turns.
        turn_weights: the least and the greatest weight of them; empty if there are none.
        rows_duplicate: kept rows whose prompt an earlier row had.
        duplicate_prompts: prompts that more than one kept row has.
        tokens: input tokens of the kept rows.
        target_tokens: tokens that are trained on.
        tokens_cut: tokens lost to the maximum length.
        longest: tokens of the longest kept conversation.
        rows_cut_turn: kept rows with a trained turn whose end was cut off.
        trained_turns: runs of trained tokens.
        turns_cut: those that truncation ended.
        turns_unstopped: complete ones that do not end in a stop token.
        rows_unstopped: kept rows with such turns.
        turn_ends: the last tokens of the complete ones, the most frequent first.
        skipped_by_reason: how many rows were skipped for each `errors.RowReason`.
        unread: what hides the rest of a file, or all of it; only a check reads on behind such a file.
        messages: every different fault of each reason, with file and line of the first row that has it, and how many
            rows have it.
        row_ids: the first rows of each of `FINDINGS`, and, as ``skipped/<reason>``, of each reason.
        kinds: kept rows by `rows.RowKind`.
        turns: conversations by their number of messages; the last key has a plus.
        sides: what each side of preference rows holds.
        sources: what each source holds.
        input_lengths: of the kept conversations.
        target_lengths: of what is trained on in them.
        whole_lengths: of the longest side of each row before truncation; of rows that were left out for their length,
            too.
        rows_longer: how many rows are longer than some maximum lengths, this one among them.
        columns_left_out: columns that nothing read, by name in the data, and the rows that held something there.
        columns_renamed: columns that were read by another name, and by which one.
        columns_missing: columns that the option ``columns`` names and no row had.
    """

    split: str
    max_length: int
    truncation: str
    rows_read: int
    rows_kept: int
    rows_skipped: int
    rows_truncated: int
    rows_split: int
    pieces: int
    rows_with_split_start: int
    rows_with_stop: int
    rows_without_bos: int
    rows_without_target: int
    rows_with_lookalikes: int
    rows_with_dropped_thoughts: int
    rows_weighted: int
    turns_weighted: int
    turn_weights: tuple[float, ...]
    rows_duplicate: int
    duplicate_prompts: int
    tokens: int
    target_tokens: int
    tokens_cut: int
    longest: int
    rows_cut_turn: int
    trained_turns: int
    turns_cut: int
    turns_unstopped: int
    rows_unstopped: int
    turn_ends: tuple[TurnEnd, ...]
    skipped_by_reason: Mapping[str, int]
    unread: tuple[str, ...]
    messages: Mapping[str, tuple[str, ...]]
    row_ids: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, int]
    turns: Mapping[str, int]
    sides: Mapping[str, TokenCount]
    sources: Mapping[str, TokenCount]
    input_lengths: Lengths
    target_lengths: Lengths
    whole_lengths: Lengths
    rows_longer: Mapping[str, int]
    columns_left_out: Mapping[str, int] = field(default_factory=dict)
    columns_renamed: Mapping[str, str] = field(default_factory=dict)
    columns_missing: tuple[str, ...] = ()

    @property
    def rows_measured(self) -> int:
        """How many rows `whole_lengths` is of."""
        return sum(self.whole_lengths.counts)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The messages of all reasons."""
        return tuple(message for messages in self.messages.values() for message in messages)

    @property
    def tokens_per_epoch(self) -> int:
        """Input tokens that an epoch takes from all sources, by their weights."""
        return round(sum(source.tokens * source.weight for source in self.sources.values()))

    @property
    def target_tokens_per_epoch(self) -> int:
        """The same for the tokens that are trained on."""
        return round(sum(source.target_tokens * source.weight for source in self.sources.values()))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which survive JSON and from which `from_dict` makes the report again."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataReport":
        """The report that `as_dict` wrote.

        Raises:
            TypeError: a field is missing or unknown.
        """
        made: dict[str, Any] = {name: _lengths_from(values[name]) for name in LENGTHS}
        made |= {name: tuple(values[name]) for name in ("unread", "columns_missing", "turn_weights")}
        made["turn_ends"] = tuple(TurnEnd(**end) for end in values["turn_ends"])
        for name in ("messages", "row_ids"):
            made[name] = {key: tuple(texts) for key, texts in values[name].items()}
        for name in ("sides", "sources"):
            made[name] = {key: TokenCount(**count) for key, count in values[name].items()}
        return cls(**{**values, **made})

    def summary(self) -> dict[str, Any]:
        """The figures alone, without row ids, messages and histograms: for a checkpoint and a model card."""
        plain = self.as_dict()
        for name in ("messages", "row_ids", "unread"):
            del plain[name]
        for name in LENGTHS:
            plain[name] = {key: plain[name][key] for key in ("total", "longest", "median", "p95")}
        plain["turn_ends"] = {end.token: end.turns for end in self.turn_ends[:NUM_SUMMED_UP]}
        plain["tokens_per_epoch"] = self.tokens_per_epoch
        return {name: value for name, value in plain.items() if value != {}}

    def __str__(self) -> str:
        return (
            f"{self.split}: {self.rows_read:,} rows read, {self.rows_kept:,} kept, {self.rows_skipped:,} skipped, "
            f"{self.rows_truncated:,} truncated; {self.tokens:,} tokens, {self.target_tokens:,} of them targets"
        )


class NoUsableRowError(UserError):
    """A split of which no row can be used, or, in a check, not every file be read.

    Args:
        report: what became of its rows.
    """

    def __init__(self, report: DataReport) -> None:
        faults = [*report.unread, *report.skipped]
        more = [f"and {len(faults) - NUM_SUMMED_UP:,} other faults"] if len(faults) > NUM_SUMMED_UP else []
        super().__init__("\n".join([*unusable(report), *faults[:NUM_SUMMED_UP], *more]))
        self.report = report


def unusable(report: DataReport) -> list[str]:
    """Why a split cannot be used at all, in sentences; empty if it can."""
    found = []
    if report.unread:
        found.append(f"{report.split}: {len(report.unread):,} of the files cannot be read to the end.")
    if not report.rows_kept:
        found.append(f"{report.split}: none of {report.rows_read:,} rows can be used.")
    return found


def _lengths_from(values: Mapping[str, Any]) -> Lengths:
    return Lengths(**{**values, "edges": tuple(values["edges"]), "counts": tuple(values["counts"])})


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def announce(report: DataReport) -> None:
    """Print the report's line, and log what needs a second look; nothing of it if `logger` is disabled."""
    if logger.disabled:
        return
    tqdm.write(str(report))
    for message in report.skipped:
        logger.warning("%s: skipped %s", report.split, message)
    for warning in warnings(report):
        logger.warning("%s: %s", report.split, printable(warning))


def warnings(report: DataReport) -> list[str]:
    """What the figures of a report hint at, each with its remedy."""
    found = []
    if report.rows_with_split_start:
        found.append(
            f"in {report.rows_with_split_start:,} rows the first token of an answer begins in the prompt; it is not "
            "trained on. Let the generation prompt of the chat template end where answers begin, with a line break or "
            "a special token."
        )
    # What turns end in stops generation too, if it is a control token: the export says so.
    stops = report.rows_with_stop or any(end.is_control for end in report.turn_ends)
    if report.split == "train" and report.rows_kept and not stops:
        found.append(
            "no row trains the tokenizer's end-of-sequence token, so the model does not learn to stop there. Name the "
            "end-of-turn token as eos_token in the model's tokenizer_config.json, set data.chat_template to a template "
            "that writes eos_token behind answers, or raise max_length if every row is truncated."
        )
    if report.turns_unstopped:
        found.append(
            f"{report.turns_unstopped:,} of {report.trained_turns:,} trained turns are complete but do not end in a "
            "stop token. Copy the chat template to a file, write the end-of-turn token behind the last answer there, "
            "and set data.chat_template to the file."
        )
    if report.columns_missing:
        named = ", ".join(report.columns_missing)
        found.append(f"the option columns names columns that no row has: {named}. Correct it if they should be there.")
    return found


def announce_missing_bos(reports: Iterable[DataReport]) -> None:
    """Warn once if rows of any of the splits lack the bos_token that the tokenizer by itself would put there."""
    lacking = {report.split: report.rows_without_bos for report in reports if report.rows_without_bos}
    if lacking and not logger.disabled:
        logger.warning("%s", missing_bos(lacking))


def missing_bos(lacking: Mapping[str, int]) -> str:
    """The warning for splits with so many rows without the bos_token."""
    rows = ", ".join(f"{count:,} rows of {split}" for split, count in lacking.items())
    return (
        f"The tokenizer starts a text with its bos_token, but the chat template writes none: {rows} start without it, "
        "which the model may never have seen. Put {{ bos_token }} first in the chat template, or set "
        "data.chat_template to a built-in name, which then writes it."
    )
