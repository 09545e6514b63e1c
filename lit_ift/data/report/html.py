"""Reports and previews as self-contained HTML pages: no script, nothing loaded, every text escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from lit_ift.data.report.account import DataReport, Lengths
from lit_ift.data.report.preview import LEGEND, Segment, Segmenter, Shown, folded, visible
from lit_ift.data.report.terminal import Figure, bins, facts, figures, hints, named, tables_of_counts, token_lines
from lit_ift.errors import UserError

NUM_NAMED: Final = 20
"""Row ids and messages shown of each finding."""

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1d2126; --dim: #656d76; --page: #fff; --line: #d8dee4; --bar: #3b7dd8;
  --warn: #9a5b00; --bad: #b42318; --good: #18794e; --trained: #c7f0d2; --control: #8250df;
  --control-trained: #e3d3ff; --alike: #ffd1cc; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --dim: #98a2ad; --page: #14181d; --line: #333a42;
  --bar: #6aa5f0; --warn: #e3ab4d; --bad: #ff8f86; --good: #63d093; --trained: #1d4a30; --control: #c4a1ff;
  --control-trained: #473070; --alike: #6b221c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
h3 small { color: var(--dim); font-weight: normal; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } th { font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name, td.part, td.note { white-space: nowrap; }
tr.none td { color: var(--dim); } tr.fault td { color: var(--warn); } td.part { padding-left: 1.2rem; }
td.ids { min-width: 14rem; overflow-wrap: anywhere; font-size: .85rem; }
.scroll { overflow-x: auto; margin-bottom: 1.2rem; } p { margin: .3rem 0; }
.side { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); } .warn { color: var(--warn); }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; } svg rect { fill: var(--bar); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: .7rem; border: 1px solid var(--line);
  border-radius: 6px; font: 13px/1.6 ui-monospace, monospace; }
.prompt, .padding { color: var(--dim); } .padding { text-decoration: line-through; }
.trained { background: var(--trained); } .control { color: var(--control); font-weight: 600; }
.control-trained { background: var(--control-trained); font-weight: 600; }
.lookalike { background: var(--alike); outline: 1px solid var(--bad); }
pre.tokens span { border-right: 1px solid var(--bar); } sub { color: var(--dim); font-size: .65em; }
.legend span { margin-right: 1rem; padding: 0 .3rem; font-family: ui-monospace, monospace; font-size: 13px; }
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


def report_page(reports: Mapping[str, DataReport], failed: Sequence[str]) -> str:
    """Reports by split, with the thresholds that they exceed."""
    passed = '<p class="good">No threshold that was set is exceeded.</p>'
    verdict = f'<p class="bad"><b>Failed</b></p>{_list(failed, "bad")}' if failed else passed
    return _page("Data check", verdict + "".join(_split(report) for report in reports.values()))


def preview_page(conversations: Iterable[Shown], segmenter: Segmenter, *, tokens: bool = False) -> str:
    """Conversations with the state of every token in colour.

    Args:
        conversations: what to show.
        segmenter: for their tokenizer.
        tokens: show the borders of tokens and their ids.
    """
    keys = "".join(f'<span class="{_class(style)}">{escape(words)}</span>' for style, words in LEGEND.items())
    parts = [f'<p class="legend">{keys}<span class="dim">↵ line break, ⇥ tab, · blanks</span></p>']
    for conversation in conversations:
        body = "".join(
            _segment(segment, tokens)
            for segment in folded(segmenter.segments(conversation.example, conversation.attention_mask), tokens=tokens)
        )
        parts.append(
            f"<h3>{_text(conversation.title)} <small>{escape(conversation.figures)}</small></h3>"
            f"<pre{' class=tokens' if tokens else ''}>{body}</pre>"
        )
    return _page("Data preview", "".join(parts))


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>{body}</body></html>\n"
    )


def _split(report: DataReport) -> str:
    parts = [f"<h2>{escape(report.split)}</h2>"]
    parts.append(_list(hints(report), "warn"))
    parts.append(_table(("", "rows!", "share!", "", "first rows"), map(_figure_row, figures(report))))
    if report.rows_kept:
        parts.append(_tokens(report))
        parts += [f'<p class="dim">{escape(name)}: {escape(value)}</p>' for name, value in facts(report)]
        parts.append('<div class="side">')
        parts += [
            f"<div><h3>{name} a conversation</h3>{_histogram(lengths)}</div>"
            for name, lengths, _ in token_lines(report)
        ]
        parts.append("</div>")
        ends = [
            _row((_code(end.token), f"{end.turns:,}", "yes" if end.stops else "no"), ("", "n", ""))
            for end in report.turn_ends[:NUM_NAMED]
        ]
        if report.turns_cut:
            ends.append(_row(("cut off by max_length", f"{report.turns_cut:,}", "no"), ("", "n", "")))
        parts.append(_table(("trained turns end in", "turns!", "stops"), ends))
        for name, counts in tables_of_counts(report).items():
            rows = [
                _row(
                    (_text(key), f"{of.rows:,}", f"{of.tokens:,}", f"{of.target_tokens:,}", f"{of.weight:g}"),
                    ("ids", "n", "n", "n", "n"),
                )
                for key, of in counts.items()
            ]
            parts.append(_table((name, "rows!", "tokens!", "trained!", "weight!"), rows))
    if report.messages:
        parts.append("<h3>Skipped rows</h3>")
        parts += [_list(texts, "") for texts in report.messages.values()]
    return "".join(parts)


def _figure_row(line: Figure) -> str:
    state = "" if not line.is_fault else "fault" if line.count else "none"
    note = escape(line.note) if line.count else ""
    cells = (escape(line.name), f"{line.count:,}", escape(line.share), note, escape(named(line, NUM_NAMED)))
    return _row(cells, ("part" if line.is_part else "name", "n", "n", "note", "ids"), state)


def _tokens(report: DataReport) -> str:
    rows = [
        _row(
            (name, *(f"{n:,}" for n in (of.total, epoch, of.median, of.p95, of.longest))),
            ("", "n", "n", "n", "n", "n"),
        )
        for name, of, epoch in token_lines(report)
    ]
    return _table(("", "total!", "an epoch!", "median!", "p95!", "longest!"), rows)


def _histogram(lengths: Lengths) -> str:
    """Horizontal bars, one a bin."""
    step, label, longest = 16, 90, 260
    marks = []
    for i, (name, count, share) in enumerate(bins(lengths)):
        y = i * step
        width = max(1.0, longest * share) if count else 0.0
        marks.append(
            f'<text x="{label - 6}" y="{y + 12}" text-anchor="end">{name}</text>'
            f'<rect x="{label}" y="{y + 2}" width="{width:.1f}" height="{step - 4}"/>'
            f'<text x="{label + width + 5:.1f}" y="{y + 12}">{count:,}</text>'
        )
    height, width_all = step * len(lengths.counts), label + longest + 60
    return f'<svg width="{width_all}" height="{height}" role="img" aria-label="histogram">{"".join(marks)}</svg>'


def _segment(segment: Segment, tokens: bool) -> str:
    text = escape(visible(segment.text, blanks=tokens))
    ids = f"<sub>{','.join(map(str, segment.ids))}</sub>" if tokens else ""
    if ids and text.endswith("\n"):
        text, ids = text[:-1], f"{ids}\n"
    return f'<span class="{_class(segment.style)}">{text}{ids}</span>'


def _class(style: str) -> str:
    return style.replace(" ", "-")


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    return escape(visible(text))


def _list(texts: Iterable[str], style: str) -> str:
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f'<ul class="{style}">{items}</ul>' if items else ""


def _table(headers: Sequence[str], rows: Iterable[str]) -> str:
    """A table; a header that ends in ``!`` is one of numbers."""
    head = "".join(
        f'<th class="n">{escape(header[:-1])}</th>' if header.endswith("!") else f"<th>{escape(header)}</th>"
        for header in headers
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(cells: Sequence[str], classes: Sequence[str], state: str = "") -> str:
    """A row of cells that are HTML already."""
    inner = "".join(
        f'<td class="{name}">{cell}</td>' if name else f"<td>{cell}</td>"
        for cell, name in zip(cells, classes, strict=True)
    )
    return f'<tr class="{state}">{inner}</tr>' if state else f"<tr>{inner}</tr>"
