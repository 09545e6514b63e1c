"""``lit-ift data``: look at the data of a configuration, or at files, without loading a model."""

import hashlib
import json
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from lit_ift.cli.console import table_console
from lit_ift.cli.data_options import Call, CheckOptions, PreviewOptions, read
from lit_ift.data.modules.conversation import SPLITS, STAGE_SPLITS, ConversationDataModule, Split
from lit_ift.data.report import html, preview
from lit_ift.data.report import terminal as checks
from lit_ift.data.report.account import DataReport, NoUsableRowError
from lit_ift.data.report.account import logger as report_logger
from lit_ift.data.report.builder import Check
from lit_ift.data.report.terminal import About, Thresholds
from lit_ift.errors import RowError

ENOUGH_TO_PREVIEW: Final = 200
"""Rows of each source that are encoded to show the first ones."""


def run(words: Sequence[str]) -> int:
    """Run a command of ``data``, given from ``data`` on, and return 0 for done or 1 for a threshold exceeded.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: the data or the configuration cannot be used.
    """
    return RUN[words[1]](words[2:])


def check(words: Sequence[str]) -> int:
    """Say what became of every row; fail if a threshold is exceeded."""
    call = read("check", words, skip_bad_rows=True)
    output = call.pick(CheckOptions)
    with _skipped_rows(output.skipped) as told:
        call.data_module.check = Check(told)
        if told is not None:
            call.data_module.uses_cache = False  # Cached rows were skipped once, and only some of them are known.
        reports = _set_up(call)
    thresholds = call.pick(Thresholds)
    failed = checks.violations(reports, thresholds)
    any_threshold = any(most is not None for most in vars(thresholds).values())
    about = _about(call.data_module, list(reports))
    console = table_console()
    for report in reports.values():
        console.print(checks.table(report))
    if output.json is not None:
        html.write_page(output.json, json.dumps(checks.as_json(reports, failed, about), indent=1, ensure_ascii=False))
    if output.html is not None:
        page = html.report_page(reports, failed, about, any_threshold=any_threshold)
        html.write_page(output.html, page)
    for violation in failed:
        print(f"lit-ift data check: failed: {violation}", file=sys.stderr)
    return 1 if failed else 0


def show(words: Sequence[str]) -> int:
    """Print rows in colour."""
    call = read("preview", words, skip_bad_rows=True)
    output = call.pick(PreviewOptions)
    if output.rows < 1:
        raise ArgumentError(None, f"--rows={output.rows} must be at least 1")
    if output.batch and (output.row_id is not None or output.seed is not None):
        raise ArgumentError(None, "--batch shows the first batch: leave --row_id and --seed out")
    module = call.data_module
    if output.row_id is None and output.seed is None and not output.batch and module.max_rows is None:
        module.max_rows = max(ENOUGH_TO_PREVIEW, output.rows)
        module.uses_cache = False  # Of so few rows there is no use later.
    there: list[Split] = [name for name in SPLITS if module.has_split(name)]
    split = call.split or there[0]
    reports = _set_up(call._replace(split=split))
    if not reports[split].rows_kept:
        raise NoUsableRowError(reports[split])
    if output.batch:
        loader = getattr(module, f"{split}_dataloader")()
        conversations = preview.shown_batch(next(iter(loader)), rows=output.rows)
    else:
        dataset = module.datasets[split]
        conversations = preview.pick(dataset, rows=output.rows, row_id=output.row_id, seed=output.seed)
    segmenter = preview.Segmenter(module.tokenizer)
    console = table_console()
    console.print(preview.legend())
    for conversation in conversations:
        console.print(preview.render(conversation, segmenter, tokens=output.tokens), soft_wrap=True)
    if output.html is not None:
        html.write_page(output.html, html.preview_page(conversations, segmenter, tokens=output.tokens))
    return 0


def build(words: Sequence[str]) -> int:
    """Tokenize all splits into the cache, so that training finds them there."""
    call = read("build", words, skip_bad_rows=False)
    call.data_module.prepare_data()
    reports = _set_up(call)
    for split in SPLITS:
        if split not in reports:
            continue
        if not reports[split].rows_kept and not call.data_module.may_be_empty(split):
            raise NoUsableRowError(reports[split])
        folder = call.data_module.cache_folder(split)
        print(
            f"{reports[split]}; "
            + ("not cached: its source keeps no files" if folder is None else f"cached in {folder}")
        )
    return 0


RUN: Final[dict[str, Callable[[Sequence[str]], int]]] = {"check": check, "preview": show, "build": build}


def _set_up(call: Call) -> dict[str, DataReport]:
    """Read and encode the rows; reports by split, also of a split without any usable row."""
    module = call.data_module
    wanted = [split for split in SPLITS if module.has_split(split) and call.split in (None, split)]
    reports: dict[str, DataReport] = {}
    report_logger.disabled = True  # Its lines would say twice what the table says.
    try:
        for stage, splits in sorted(STAGE_SPLITS.items(), key=lambda item: len(item[1])):
            if any(split in wanted and split not in reports for split in splits):
                try:
                    module.setup(stage)
                except NoUsableRowError as error:  # The other splits are still to be looked at.
                    reports[error.report.split] = error.report
                reports |= module.reports
    finally:
        report_logger.disabled = False
    return {split: reports[split] for split in wanted}


def _about(module: ConversationDataModule, splits: Sequence[Any]) -> About:
    tokenizer, source = module.tokenizer, module.tokenizer_source
    template, chosen = tokenizer.chat_template, module.hparams.get("chat_template")
    digest = hashlib.sha256(str(template).encode()).hexdigest()[:12]
    name = "none" if template is None else "the tokenizer's own" if chosen is None else _one_line(chosen)
    return About(
        sources={split: [source.name for source in module.sources_of(split)] for split in splits},
        tokenizer=source if isinstance(source, str) else str(tokenizer.name_or_path) or type(tokenizer).__name__,
        chat_template=name if template is None else f"{name}, {len(str(template)):,} characters, sha256 {digest}…",
        lit_ift=version("lit-ift"),
        date=datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    )


def _one_line(template: str) -> str:
    """A template's name or file, or that it was given as text."""
    return template if "\n" not in template and "{" not in template else "given as text"


@contextmanager
def _skipped_rows(path: Path | None) -> Iterator[Callable[[str, RowError], None] | None]:
    """Writes a line to the file for each skipped row that it is told of."""
    if path is None:
        yield None
        return
    html.write_page(path, "")
    with path.open("w", encoding="utf-8") as file:

        def tell(split: str, error: RowError) -> None:
            told = {"row_id": error.origin, "split": split, "reason": error.reason, "field": error.field}
            file.write(json.dumps({**told, "problem": error.problem, "remedy": error.remedy}) + "\n")

        yield tell
