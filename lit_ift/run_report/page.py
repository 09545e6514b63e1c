"""One self-contained HTML page: no script, nothing loaded; what comes from rows and models stays text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lit_ift.run_report.colours import DIVERGING, RISING, Scale
from lit_ift.run_report.spans import LEGENDS, RowSpans, View

LETTERS: Final[dict[View, str]] = {"change": "c", "margin": "m", "surprise": "s", "weight": "w"}
"""What the classes of a view begin with in `spans`."""

SAYS: Final = ("below a token, what the model would say in its place", "below a token, what the model intuited")
"""What the text below tokens is called, for objectives that do not use it and for those that do."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table; its mark is ``right``, ``wrong`` or none."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table; ``numbers`` are the places of columns that are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page, of what of these there is, in this order.

    Attributes:
        key: where links lead to.
        title: over it.
        lines: sentences.
        facts: names and values.
        table: see `Table`.
        drawn: SVG that was made from escaped text.
        folded_title: what leads to the folded text.
        folded: long text that opens on a click; as `Markup` it is HTML that was made from escaped text.
    """

    key: str
    title: str
    lines: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    drawn: Any = None
    folded_title: str = ""
    folded: Any = ""


@dataclass(frozen=True)
class Page:
    """What is on the page.

    Attributes:
        title: its name.
        about: what it is of, line by line.
        sections: before the tokens.
        tokens: rows with coloured tokens; None where there are none.
        token_lines: what they are, in sentences.
    """

    title: str
    about: Sequence[str]
    sections: Sequence[Section] = ()
    tokens: RowSpans | None = None
    token_lines: Sequence[str] = field(default_factory=tuple)

    def html(self) -> str:
        """The page as one string."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("lit_ift.run_report", "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        tokens = self.tokens
        weighted = tokens is not None and tokens.has_weights()
        return environment.get_template("page.html.jinja").render(
            title=self.title,
            about=self.about,
            sections=self.sections,
            token_lines=self.token_lines,
            views=[] if tokens is None else [_view(name, scale) for name, scale in tokens.views().items()],
            says=weighted,
            says_label="below a token, what the model intuited in its place"
            if weighted
            else "what the model would say",
            figures=[] if tokens is None else tokens.figures(),
            rows=None if tokens is None else tokens.shown(),
        )


def _view(name: View, scale: Scale) -> Mapping[str, Any]:
    title, text = LEGENDS[name]
    bounds = (f"≤ {scale.low:+g}", f"≥ {scale.high:+g}")
    if name == "weight":
        bounds = (f"≤ {2**scale.low:g}", f"≥ {2**scale.high:g}")
    elif name == "surprise":
        bounds = (f"{scale.low:g}", f"≥ {scale.high:g}")
    return {
        "name": name,
        "title": title,
        "text": text,
        "letter": LETTERS[name],
        "colours": RISING if name == "surprise" else DIVERGING,
        "both_sides": name != "surprise",
        "low": bounds[0],
        "high": bounds[1],
    }
