"""What the terminal shows of reports and previews, as self-contained HTML pages: no script, nothing loaded."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from lit_ift.data.report.account import DataReport
from lit_ift.data.report.preview import Segmenter, Shown, legend, render, visible
from lit_ift.data.report.terminal import About, table
from lit_ift.errors import UserError

WIDTH: Final = 140
"""Characters of a line of a report."""

# Rich writes the style sheet and the escaped text; dark pages are the light ones with their lightness turned over.
PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>TITLE</title><style>
{stylesheet}
body {{ margin: 1.5rem; color: {foreground}; background: {background}; }}
pre {{ font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
@media (prefers-color-scheme: dark) {{ html {{ background: #fff; filter: invert(0.9) hue-rotate(180deg); }} }}
</style></head>
<body><h1>TITLE</h1><pre>{code}</pre></body></html>
"""


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}). Name a file in a folder that exists."
        ) from error


def report_page(
    reports: Mapping[str, DataReport], failed: Sequence[str], about: About, *, any_threshold: bool = False
) -> str:
    """Reports by split, with the thresholds that they exceed.

    Args:
        reports: by split.
        failed: what exceeds a threshold or cannot be used.
        about: what was checked.
        any_threshold: whether a threshold was set, so that keeping it can be told.
    """
    parts: list[RenderableType] = [Text(visible(line), style="dim") for line in about.lines()]
    parts += [Text(f"Failed: {visible(words)}", style="bold red") for words in failed]
    if any_threshold and not failed:
        parts.append(Text("No threshold that was set is exceeded.", style="green"))
    return _page("Data check", Group(*parts, *map(table, reports.values())), width=WIDTH)


def report_fragment(reports: Mapping[str, DataReport]) -> str:
    """Reports by split as the text of a ``pre`` in another page, with its styles in it."""
    console = _recorded(Group(*map(table, reports.values())), width=WIDTH)
    return console.export_html(code_format="{code}", inline_styles=True)


def preview_page(conversations: Iterable[Shown], segmenter: Segmenter, *, tokens: bool = False) -> str:
    """Conversations with the state of every token in colour.

    Args:
        conversations: what to show.
        segmenter: for their tokenizer.
        tokens: show the borders of tokens and their ids.
    """
    shown = [render(conversation, segmenter, tokens=tokens) for conversation in conversations]
    return _page("Data preview", Group(legend(), *shown), width=None)


def _page(title: str, shown: RenderableType, *, width: int | None) -> str:
    """A page of lines of a fixed width, or, for None, of lines that the browser breaks."""
    return _recorded(shown, width=width).export_html(code_format=PAGE.replace("TITLE", title))


def _recorded(shown: RenderableType, *, width: int | None) -> Console:
    console = Console(record=True, file=io.StringIO(), width=width, highlight=False)
    console.print(shown, soft_wrap=width is None)
    return console
