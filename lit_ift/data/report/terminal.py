"""A data report for people: its figures in order, the thresholds that it must keep, and tables for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from jsonargparse.typing import ClosedUnitInterval
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lit_ift.data.report.account import FINDINGS, DataReport, Lengths, TokenCount, missing_bos, unusable, warnings
from lit_ift.data.report.preview import visible
from lit_ift.errors import RowReason
from lit_ift.losses.schema import taken
from lit_ift.losses.token_registry import TOKEN_LOSSES

REASONS: Final[dict[RowReason, str]] = {
    "unreadable": "not readable as a row",
    "layout": "columns fit no layout",
    "field": "field missing or wrong",
    "template": "refused by the chat template",
    "mask_disagreement": "masks disagree",
    "too_long": "too long",
    "no_target": "no target left",
}

NUM_NAMED: Final = 3
"""Row ids shown in a line of the terminal's table."""

NUM_COLUMNS: Final = 20
"""Columns shown in a line."""

SHORT_NAME: Final = 32
"""Characters of a row id that is shown whole."""

ENOUGH: Final = 0.01
"""Share of rows that a maximum length may cut and still be named as a remedy."""

BAR: Final = 24
"""Characters of the longest bar."""


@dataclass(frozen=True)
class Thresholds:
    """Largest shares of rows that pass, from 0 to 1; None lets any share pass.

    Args:
        max_skipped: share of the rows read that were left out, whatever the reason.
        max_disagreements: share of the rows read for which two ways to find the answers differ.
        max_truncated: share of the kept rows that lost tokens.
        max_duplicates: share of the kept rows whose prompt an earlier row had.
        max_unstopped: share of the kept rows with a complete turn that does not end in a stop token.
        max_without_bos: share of the kept rows without the bos_token that the tokenizer writes by itself.
        max_lookalikes: share of the kept rows with text that looks like a control token.
    """

    max_skipped: ClosedUnitInterval | None = None
    max_disagreements: ClosedUnitInterval | None = None
    max_truncated: ClosedUnitInterval | None = None
    max_duplicates: ClosedUnitInterval | None = None
    max_unstopped: ClosedUnitInterval | None = None
    max_without_bos: ClosedUnitInterval | None = None
    max_lookalikes: ClosedUnitInterval | None = None


@dataclass(frozen=True)
class Figure:
    """A line of a report.

    Args:
        name: what is counted.
        count: how many rows.
        whole: of how many.
        row_ids: the first of them.
        note: what else there is to say.
        is_part: whether it is a part of the line before.
        is_fault: whether rows here deserve a look.
    """

    name: str
    count: int
    whole: int
    row_ids: Sequence[str] = ()
    note: str = ""
    is_part: bool = False
    is_fault: bool = True

    @property
    def share(self) -> str:
        """Share of the whole [%]; empty where there is no whole."""
        if not self.whole:
            return ""
        percent = 100 * self.count / self.whole
        return "<0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def figures(report: DataReport) -> Iterator[Figure]:
    """What became of the rows, line by line."""
    read, kept, ids = report.rows_read, report.rows_kept, report.row_ids

    def found(key: str, name: str, note: str = "", *, is_fault: bool = True) -> Figure:
        return Figure(name, getattr(report, FINDINGS[key]), kept, ids.get(key, ()), note, is_fault=is_fault)

    yield Figure("rows read", read, 0, is_fault=False)
    yield Figure("kept", kept, read, is_fault=False)
    yield Figure("skipped", report.rows_skipped, read)
    for reason, words in REASONS.items():
        count = report.skipped_by_reason.get(reason, 0)
        if count or reason == "mask_disagreement":
            yield Figure(words, count, read, ids.get(f"skipped/{reason}", ()), is_part=True)
    yield found("truncated", "truncated", f"{counted(report.tokens_cut, 'token')} cut")
    if report.rows_split:
        yield found("split", "texts split", f"into {counted(report.pieces, 'piece')}", is_fault=False)
    yield found("duplicate", "prompt seen before", counted(report.duplicate_prompts, "prompt"))
    yield found("no_target", "nothing to train on")
    yield found("lookalike", "look-alike control tokens")
    yield found("dropped_thoughts", "thinking left out by the template")
    if report.rows_weighted:
        note = f"{counted(report.turns_weighted, 'turn')}, {' to '.join(f'{w:g}' for w in report.turn_weights)}"
        yield found("weighted", "turns with a weight", note, is_fault=False)
    yield found("split_start", "prompt and answer share a token")
    yield found("without_bos", "without bos_token")
    yield Figure("train the eos_token", report.rows_with_stop, kept, is_fault=False)
    yield found("cut_turn", "turn cut off", f"{report.turns_cut:,} of {report.trained_turns:,} turns")
    yield found("unstopped", "turn without a stop", f"{report.turns_unstopped:,} of {report.trained_turns:,} turns")


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def violations(reports: Mapping[str, DataReport], thresholds: Thresholds) -> list[str]:
    """What exceeds a threshold, and splits without any usable row."""
    found = []
    for split, report in reports.items():
        if report.rows_read or report.unread:  # Not of a share that has no row of few.
            found += unusable(report)
        read, kept = ("rows read", report.rows_read), ("kept rows", report.rows_kept)
        disagreements = report.skipped_by_reason.get("mask_disagreement", 0)
        for option, what, count, (of_what, whole) in (
            ("max_skipped", "were skipped", report.rows_skipped, read),
            ("max_disagreements", "have masks that disagree", disagreements, read),
            ("max_truncated", "were truncated", report.rows_truncated, kept),
            ("max_duplicates", "have a prompt that was seen before", report.rows_duplicate, kept),
            ("max_unstopped", "have a turn that does not end in a stop token", report.rows_unstopped, kept),
            ("max_without_bos", "lack the bos_token", report.rows_without_bos, kept),
            ("max_lookalikes", "hold look-alike control tokens", report.rows_with_lookalikes, kept),
        ):
            most: float | None = getattr(thresholds, option)
            if most is not None and count > most * whole:
                found.append(
                    f"{split}: {count:,} of {whole:,} {of_what} {what} ({count / whole:.4f}), but {option}={most:g}."
                )
    return found


def hints(report: DataReport) -> list[str]:
    """What deserves a second look, each with its remedy."""
    found = warnings(report)
    if report.rows_without_bos:
        found.append(missing_bos({report.split: report.rows_without_bos}))
    longer = report.rows_longer.get(str(report.max_length), 0)
    if longer > report.rows_split:
        enough = next((of for of in report.rows_longer if report.rows_longer[of] <= ENOUGH * report.rows_measured), "")
        found.append(
            f"{longer:,} of {report.rows_measured:,} rows are longer than max_length={report.max_length}. "
            + (f"max_length={enough} would cut {report.rows_longer[enough]:,} of them. " if enough else "")
            + "Raise data.max_length as far as the model and the memory allow, shorten the rows, or choose by "
            "data.truncation what they lose."
        )
    if report.rows_weighted:
        refusing = ", ".join(name for name, loss in TOKEN_LOSSES.items() if "data_weights" not in taken(loss))
        found.append(
            f"{counted(report.rows_weighted, 'row')} weight a turn by another number than 1. Losses that take no such "
            f"weights refuse these rows: {refusing} (IFT's), SFTMix's, and all losses of pairs, thumbs and scores but "
            "token losses on chosen answers. For those, write true or false instead."
        )
    if report.rows_with_lookalikes:
        found.append(
            f"{report.rows_with_lookalikes:,} rows hold text that looks like a control token. It is trained as plain "
            "text and ends no turn. If the rows were put through a chat template before, give the bare messages "
            "instead; if people wrote it, leave it."
        )
    return found


@dataclass(frozen=True)
class About:
    """What was checked, with what and when.

    Args:
        sources: names of the places that the rows of each split come from.
        tokenizer: folder or hub id.
        chat_template: what it is called, and a digest of it.
        lit_ift: version of this package.
        date: day and time, with the offset from UTC.
    """

    sources: Mapping[str, Sequence[str]]
    tokenizer: str
    chat_template: str
    lit_ift: str
    date: str

    def lines(self) -> list[str]:
        """The same, line by line."""
        return [
            *(f"{split}: {', '.join(sources)}" for split, sources in self.sources.items()),
            f"tokenizer: {self.tokenizer}",
            f"chat template: {self.chat_template}",
            f"lit-ift {self.lit_ift}, {self.date}",
        ]


def as_json(reports: Mapping[str, DataReport], failed: Sequence[str], about: About | None = None) -> dict[str, Any]:
    """Plain values: the reports by split, what exceeds a threshold, and what was checked."""
    return {
        "ok": not failed,
        "failed": list(failed),
        "about": None if about is None else asdict(about),
        "splits": {split: report.as_dict() for split, report in reports.items()},
    }


def table(report: DataReport) -> RenderableType:
    """A report for the terminal."""
    parts: list[RenderableType] = [Text(f"\n{report.split}", style="bold underline"), _figures_table(report)]
    if report.rows_kept:
        parts += [Text(visible(f"{name}: {value}"), style="dim") for name, value in facts(report)]
        tables = [_tokens_table(report), _longer_table(report), _ends_table(report)]
        counts = {"source": report.sources, "side": report.sides}
        tables += [_counts_table(name, of) for name, of in counts.items() if len(of) > 1]
        parts += [part for shown in (*tables, _histograms(report)) for part in (Text(), shown)]
    parts += [Text(f"not read: {visible(message)}", style="red") for message in report.unread]
    for reason, messages in report.messages.items():
        words = REASONS[reason]  # type: ignore[index]
        parts += [Text(f"skipped ({words}): {visible(message)}", style="red") for message in messages]
    parts += [Text(visible(f"look: {hint}"), style="yellow") for hint in hints(report)]
    return Group(*parts)


def facts(report: DataReport) -> list[tuple[str, str]]:
    """Limits, kinds of rows and turns in words."""
    left_out = {visible(name): count for name, count in list(report.columns_left_out.items())[:NUM_COLUMNS]}
    renamed = list(report.columns_renamed.items())[:NUM_COLUMNS]
    found = {
        "max_length": f"{report.max_length:,} tokens, truncation {report.truncation}",
        "kinds of rows": _listed(report.kinds),
        "messages a conversation": _listed(report.turns),
        "columns left out": _listed(left_out),
        "columns read by another name": ", ".join(f"{visible(column)} as {name}" for column, name in renamed),
    }
    return [(name, words) for name, words in found.items() if words]


def bins(lengths: Lengths) -> Iterator[tuple[str, int, float]]:
    """The histogram's bins: label, count, share of the fullest."""
    most = max(lengths.counts, default=0)
    for left, right, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        yield (f"{left:,}" if right == left + 1 else f"{left:,}-{right - 1:,}"), count, count / most


def _figures_table(report: DataReport) -> Table:
    shown = _table("", "rows", "share", "", "first rows", numbers=(1, 2))
    for line in figures(report):
        style = "dim" if line.is_fault and not line.count else "yellow" if line.is_fault else ""
        shown.add_row(
            Text(("  " if line.is_part else "") + line.name),
            f"{line.count:,}",
            line.share,
            Text(line.note if line.count else ""),
            Text(named(line, NUM_NAMED)),
            style=style,
        )
    return shown


def _tokens_table(report: DataReport) -> Table:
    shown = _table("", "total", "an epoch", "median", "p95", "longest", numbers=(1, 2, 3, 4, 5))
    for name, lengths, epoch in (
        ("input tokens", report.input_lengths, report.tokens_per_epoch),
        ("trained tokens", report.target_lengths, report.target_tokens_per_epoch),
    ):
        figures = (lengths.total, epoch, lengths.median, lengths.p95, lengths.longest)
        shown.add_row(name, *(f"{figure:,}" for figure in figures))
    return shown


def _longer_table(report: DataReport) -> Table:
    shown = _table("max_length", "rows it cuts", "share", "", numbers=(0, 1, 2))
    for limit, count in report.rows_longer.items():
        line = Figure(limit, count, report.rows_measured)
        shown.add_row(f"{int(limit):,}", f"{count:,}", line.share, "in use" if int(limit) == report.max_length else "")
    return shown


def _ends_table(report: DataReport) -> Table:
    shown = _table("trained turns end in", "turns", "stops", numbers=(1,))
    for end in report.turn_ends[:NUM_NAMED]:
        shown.add_row(
            Text(visible(end.token, blanks=True).replace("\n", "")), f"{end.turns:,}", "yes" if end.stops else "no"
        )
    if len(report.turn_ends) > NUM_NAMED:
        rest = report.turn_ends[NUM_NAMED:]
        shown.add_row(f"{len(rest)} other tokens", f"{sum(end.turns for end in rest):,}", "")
    if report.turns_cut:
        shown.add_row("cut off by max_length", f"{report.turns_cut:,}", "no")
    return shown


def _counts_table(name: str, counts: Mapping[str, TokenCount]) -> Table:
    shown = _table(name, "rows", "tokens", "trained", "weight", numbers=(1, 2, 3, 4))
    for key, of in counts.items():
        shown.add_row(Text(visible(key)), f"{of.rows:,}", f"{of.tokens:,}", f"{of.target_tokens:,}", f"{of.weight:g}")
    return shown


def _histograms(report: DataReport) -> Table:
    both = Table.grid(padding=(0, 4))
    columns = []
    for name, lengths in (
        ("tokens before truncation", report.whole_lengths),
        ("trained tokens", report.target_lengths),
    ):
        shown = _table(name, "rows", "", numbers=(1,))
        for label, count, share in bins(lengths):
            shown.add_row(label, f"{count:,}", Text("█" * round(BAR * share) or ("▏" if count else ""), style="cyan"))
        columns.append(shown)
    both.add_row(*columns)
    return both


def _table(*headers: str, numbers: Sequence[int]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, header in enumerate(headers):
        shown.add_column(header, justify="right" if i in numbers else "left", overflow="fold")
    return shown


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def named(line: Figure, most: int) -> str:
    """The first rows of a line; the file is named once for neighbours from the same one."""
    names, before = [], ""
    for row_id in line.row_ids[:most]:
        place, mark, number = row_id.rpartition(":")
        names.append(f"{mark}{number}" if mark and place == before else _short(row_id))
        before = place
    return visible(", ".join(names)) + (" …" if line.count > len(names) > 0 else "")


def _short(row_id: str) -> str:
    """A row id without the folders of its file, where they take much room."""
    return row_id if len(row_id) <= SHORT_NAME else f"…/{row_id.rsplit('/', 1)[-1]}"
