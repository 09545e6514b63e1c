"""One page of what a run did: configuration, data, curves, scores, answers, and the tokens of held-out rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from markupsafe import Markup

from lit_ift.data.modules.conversation import ConversationDataModule, Split
from lit_ift.data.read.sources import Source
from lit_ift.data.report.account import logger as report_logger
from lit_ift.data.report.html import report_fragment
from lit_ift.data.report.terminal import hints
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError
from lit_ift.generation.find import find_model
from lit_ift.generation.opened import LoadOptions, OpenedModel, opened
from lit_ift.run_report.inspect import encoded_rows
from lit_ift.run_report.objective import Objective
from lit_ift.run_report.page import Page, Section
from lit_ift.run_report.run_files import Run, answers, attempt, configuration, curves, evaluation
from lit_ift.run_report.scores import read_rows
from lit_ift.run_report.spans import RowSpans

HELD_OUT: Final[tuple[Split, ...]] = ("val", "test", "train")
"""Splits that rows are taken from, the first that has some."""


@dataclass(frozen=True)
class ReportOptions:
    """What of a run is shown, and how its model is loaded.

    Attributes:
        rows: other rows than held-out ones; None for these.
        max_rows: show the first so many.
        max_length: longest of other rows [tokens].
        batch_size: rows read at a time.
        results: files of `lit-ift eval` besides those in the run's folder.
        load: see `LoadOptions`.
    """

    rows: str | None
    max_rows: int
    max_length: int
    batch_size: int
    results: Sequence[Path]
    load: LoadOptions


def report(
    runs: Sequence[Run], data: Callable[[], ConversationDataModule], options: ReportOptions
) -> tuple[Page, list[str]]:
    """The page of a run, and why parts of it are missing.

    Args:
        runs: the one that is shown, and others whose curves and scores stand beside it.
        data: gives the data module of the first.
        options: what is shown.

    Raises:
        UserError: a file of the run is damaged.
    """
    run = runs[0]
    problems: list[str] = []
    module = attempt(lambda: _set_up(data()), problems)
    found: list[Section | None] = [configuration(runs), _data_section(module, problems), curves(runs)]
    found += [evaluation(runs, options.results), answers(run)]
    sections = [section for section in found if section is not None]
    tokens, lines, about = None, list[str](), ""
    shown = attempt(lambda: _tokens(run, module, options), missing := list[str]())
    if shown is None:
        sections.append(Section("no-tokens", "Tokens", [f"No tokens are shown. {why}" for why in missing]))
    else:
        tokens, lines, about = shown
    title = f"Report of {run.folder.resolve().name}"
    said = [f"run: {', '.join(str(one.folder) for one in runs)}", *([about] if about else [])]
    said.append(f"lit-ift {version('lit-ift')}, {datetime.now().astimezone().isoformat(' ', 'minutes')}")
    return Page(title, said, sections, tokens, lines), [*problems, *missing]


def _set_up(module: ConversationDataModule) -> ConversationDataModule:
    """Read and encode the rows of the run, from the cache where they are kept."""
    report_logger.disabled = True  # Its lines would say twice what the page says.
    try:
        module.setup("fit")
    finally:
        report_logger.disabled = False
    return module


def _data_section(module: ConversationDataModule | None, problems: Sequence[str]) -> Section:
    if module is None:
        return Section("data", "Data", [f"The data of the run cannot be read here. {why}" for why in problems])
    lines = [line for report in module.reports.values() for line in (str(report), *hints(report))]
    whole = Markup(report_fragment(module.reports))
    return Section(
        "data", "Data", lines, folded_title="the whole account, as `lit-ift data check` gives it", folded=whole
    )


def _tokens(run: Run, module: ConversationDataModule | None, options: ReportOptions) -> tuple[RowSpans, list[str], str]:
    """The rows with their numbers, what is to be said of them, and of which models they are."""
    objective = Objective.of(run.config.get("model"))
    with opened(find_model(str(run.folder)), options.load) as found:
        rows, lines = _rows(found, module, options)
        compares = found.base_name is not None
        if not compares:
            lines.append(
                "Nothing says which model the run started from, so there is no comparison; name it by --model."
            )
        read = read_rows(found, rows, objective, compares=compares, batch_size=options.batch_size)
        about = f"model: {found.place.path}" + (f"; before training: {found.base_name}" if compares else "")
        return RowSpans(read, found.tokenizer), lines, about


def _rows(
    found: OpenedModel, module: ConversationDataModule | None, options: ReportOptions
) -> tuple[list[EncodedRow], list[str]]:
    if options.rows is not None:
        source = Source(options.rows, max_rows=options.max_rows)
        rows = encoded_rows(found, source, max_length=options.max_length)
        return rows, [f"The first {len(rows)} rows of {options.rows}."]
    if module is None:
        raise UserError("The rows of the run cannot be read here. Name others by --rows.")
    split = next((s for s in HELD_OUT if s in module.datasets and len(module.datasets[s])), None)
    if split is None:
        raise UserError("The run has no rows. Name some by --rows.")
    stored = module.datasets[split].rows
    rows = [stored[i] for i in range(min(len(stored), options.max_rows))]
    kind = "held-out rows" if split != "train" else "training rows, for the run holds none out"
    return rows, [f"The first {len(rows)} {kind} ({split})."]
