"""The report of a study: tables for the terminal, as markdown, and with pictures as one page of HTML."""

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_ift.errors import printable
from lit_ift.staging import replaced_file
from lit_ift.study.figures import draw_pareto, draw_rates
from lit_ift.study.statistics import DETECTABLE
from lit_ift.study.summary import COSTS, Comparison, Estimate, Summary, VariantSummary

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; margin: 1rem 0 } caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } li { margin: .3rem 0 }
.wide { overflow-x: auto } @media print { body { margin: 0; max-width: none } img { break-inside: avoid } }
"""

CHANGE: Final = ("difference", "95 % interval", "p (Holm)", "detectable")
"""Columns of a difference."""

FOOTNOTES: Final = (
    "± is the standard error over seeds.",
    "Difference: to the first variant, each at its own best rate, paired by seed and item, with the 95 % interval of a "
    "bootstrap that draws seeds and items anew (items alone where there is one seed).",
    "p (Holm): adjusted over the variants, or contrasts, of a measure.",
    "Detectable: the smallest true difference that four of five such studies would find, by this one's standard error.",
    "Training time is that of training batches alone, without loading and validation.",
)


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: what it shows.
        head: names of its columns.
        rows: cells, a row each.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(summary: Summary) -> list[Sheet]:
    """All tables of a report, the scores of the most important measure first."""
    made = [_of_measure(summary, measure) for measure in summary.measures]
    made += [_of_contrasts(measure, found) for measure, found in summary.contrasts.items() if found]
    return [*made, _of_costs(summary), *_of_rates(summary)]


def _of_measure(summary: Summary, measure: str) -> Sheet:
    better = "less is better" if measure in summary.less_is_better else "more is better"
    head = ("variant", "rate", "mean", "seeds", "items", *CHANGE)
    rows = []
    for variant in summary.variants:
        estimate = variant.scores.get(measure)
        if estimate is None:
            rows.append((variant.name, _rate(variant), *["–"] * 7))
            continue
        items = len(next(iter(variant.records.values())).scores[measure])
        cells = (variant.name, _rate(variant), _shown(estimate), str(len(estimate.values)), str(items))
        rows.append((*cells, *_difference(variant.comparisons.get(measure))))
    return Sheet(f"{measure} ({better})", head, tuple(rows))


def _of_contrasts(measure: str, found: Mapping[str, Comparison]) -> Sheet:
    rows = tuple((name, *_difference(comparison)) for name, comparison in found.items())
    return Sheet(f"Contrasts in {measure}", ("contrast", *CHANGE), rows)


def _difference(comparison: Comparison | None) -> tuple[str, str, str, str]:
    if comparison is None:
        return ("–", "–", "–", "–")
    found = comparison.difference
    detectable = DETECTABLE * found.standard_error
    p_value = "–" if math.isnan(comparison.adjusted) else f"{comparison.adjusted:.2g}"
    interval = "–" if math.isnan(found.low) else f"{found.low:+.4f} to {found.high:+.4f}"
    return (f"{found.value:+.4f}", interval, p_value, f"{detectable:.4f}" if detectable > 0 else "–")


def _of_costs(summary: Summary) -> Sheet:
    head = ("variant", *COSTS.values(), "steps", "rows", "diverged")
    rows = []
    for variant in summary.variants:
        costs = [_shown(variant.costs[cost], 4) if cost in variant.costs else "–" for cost in COSTS]
        counts = [_range(getattr(record, name) for record in variant.records.values()) for name in ("steps", "rows")]
        rows.append((variant.name, *costs, *counts, str(len(variant.diverged))))
    return Sheet("Cost of a run at the chosen rate", head, tuple(rows))


def _of_rates(summary: Summary) -> list[Sheet]:
    tried = [variant for variant in summary.variants if len(variant.choice.rates) > 1]
    if not tried:
        return []
    rates = sorted({rate for variant in tried for rate in variant.choice.rates})
    rows = []
    for variant in tried:
        cells = [variant.name]
        for rate in rates:
            estimate = variant.choice.rates.get(rate)
            text = ("diverged" if estimate is None else _shown(estimate)) if rate in variant.choice.rates else ""
            cells.append(f"{text} *" if rate == variant.choice.chosen else text)
        rows.append(tuple(cells))
    head = ("variant", *(f"{rate:g}" for rate in rates))
    return [Sheet("Learning rates by what they were chosen by; * is the chosen one", head, tuple(rows))]


def _rate(variant: VariantSummary) -> str:
    chosen = variant.choice.chosen
    return "–" if chosen is None else f"{chosen:g}{' (edge)' if variant.choice.at_edge else ''}"


def _shown(estimate: Estimate, digits: int = 4) -> str:
    error = estimate.standard_error
    if error < 1e-9 * abs(estimate.mean):  # What sums round to where all seeds are alike.
        error = 0.0
    spread = "" if math.isnan(error) else f" ± {error:.2g}"
    whole = f"{estimate.mean:.0f}" if abs(estimate.mean) >= 1000 else f"{estimate.mean:.{digits}g}"
    return whole + spread


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return "–" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def print_report(summary: Summary, console: Console) -> None:
    """Print all tables and notes."""
    for sheet in sheets(summary):
        table = Table(title=Text(printable(sheet.title)), title_justify="left")
        for number, name in enumerate(sheet.head):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in sheet.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)
    for note in summary.notes:
        console.print(Text(printable(f"Note: {note}")), soft_wrap=True)


def write_report(summary: Summary, folder: Path, title: str) -> list[Path]:
    """Write ``report.md``, ``report.html`` and their pictures into the folder of a study; returns the files."""
    pictures = [folder / "pareto.png", folder / "rates.png"]
    draw_pareto(summary, pictures[0])
    if not draw_rates(summary, pictures[1]):
        pictures[1].unlink(missing_ok=True)
        pictures.pop()
    texts = {
        folder / "report.md": as_markdown(summary, title, pictures),
        folder / "report.html": as_html(summary, title, pictures),
    }
    for path, text in texts.items():
        with replaced_file(path, "w", encoding="utf-8") as file:
            file.write(text)
    return [*texts, *pictures]


def as_markdown(summary: Summary, title: str, pictures: list[Path]) -> str:
    """The report as GitHub shows it."""
    lines = [f"# {title}", ""]
    for note in summary.notes:
        lines += [f"- **Note**: {_in_markdown(note)}"]
    for sheet in sheets(summary):
        rows = [sheet.head, ("---", *["---:"] * (len(sheet.head) - 1)), *sheet.rows]
        lines += [
            "",
            f"**{_in_markdown(sheet.title)}**",
            "",
            *(f"| {' | '.join(map(_in_markdown, r))} |" for r in rows),
        ]
    lines += ["", *(f"![{path.stem}]({path.name})" for path in pictures), "", *(f"- {note}" for note in FOOTNOTES)]
    return "\n".join(lines) + "\n"


def _in_markdown(text: str) -> str:
    return printable(text).replace("|", r"\|").replace("<", "&lt;").replace("\n", " ").replace("*", r"\*")


def as_html(summary: Summary, title: str, pictures: list[Path]) -> str:
    """The report as one page that needs no other file."""
    from html import escape

    def shown(text: str) -> str:
        return escape(printable(text))

    parts = [f"<h1>{shown(title)}</h1>"]
    parts += ["<ul>", *(f"<li>{shown(note)}</li>" for note in summary.notes), "</ul>"] if summary.notes else []
    for sheet in sheets(summary):
        head = "".join(f"<th scope=col>{shown(name)}</th>" for name in sheet.head)
        rows = "".join(f"<tr>{''.join(f'<td>{shown(cell)}</td>' for cell in row)}</tr>\n" for row in sheet.rows)
        caption = f"<caption>{shown(sheet.title)}</caption>"
        parts.append(
            f"<div class=wide><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    for path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<p><img alt="{path.stem}" src="data:image/png;base64,{data}"></p>')
    parts += ["<ul>", *(f"<li>{shown(note)}</li>" for note in FOOTNOTES), "</ul>"]
    start = (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{shown(title)}</title><style>{STYLE}</style>"
    )
    return start + "</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
