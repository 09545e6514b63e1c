"""Layouts: by which columns a format is recognised, how its rows are read, and which columns may be misspelt."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from lit_ift.data.parse import pairs
from lit_ift.data.parse.columns import (
    ANSWER_NAMES,
    PROMPT_NAMES,
    Columns,
    check_map,
    null_option,
    present_columns,
)
from lit_ift.data.parse.instruction import FORMATS, Format, is_ultrachat, parse_conversation, parse_document
from lit_ift.data.parse.json_columns import LISTS
from lit_ift.data.parse.scores import HELPSTEER2_ATTRIBUTES, ScoreRange, judged, parse_helpsteer2
from lit_ift.data.parse.tool_calls import TOOL_COLUMNS
from lit_ift.data.parse.training_flags import FLAG_COLUMNS
from lit_ift.data.read.record import Record
from lit_ift.data.rows import Row, RowKind
from lit_ift.errors import RowError, UserError, did_you_mean, nearest

MAX_CACHED: Final = 1000
"""Sets of columns of which it is remembered what they may be."""

NEAR: Final = 0.8
"""How alike two column names are from which on one may be a misspelling of the other, 1 being the same."""

_SYNONYMS: Final = {"response": "completion", "answer": "completion", "question": "prompt"}
"""Columns of rows that fit no layout, and what they are mostly called."""

Parse = Callable[[Record, ScoreRange | None], Row]


@dataclass(frozen=True)
class Layout:
    """How a data format is recognised and read.

    Args:
        kind: what its rows are.
        required: columns that must be there and not null; several sets if any one of them will do.
        parse: from a row that has them to a checked `Row`; the second argument is the declared range of scores.
        optional: further columns that it reads.
        holds: true if the row's values are of this layout, for a layout whose columns are those of another or have
            common names.
        before: layouts whose columns are there too in rows of this one.
        foreign: columns of another layout that would be ignored although they belong into the prompt, and what to do.
            What `columns.MEANINGS` lists needs no mention here.
        prompts: how a row without an answer is read, a mere prompt; None if such rows are not taken.
        declared_only: whether it is a choice that the columns do not tell.
        fallback: whether it is taken only where no other layout fits.
    """

    kind: RowKind
    required: tuple[tuple[str, ...], ...]
    parse: Parse
    optional: Columns = frozenset()
    holds: Callable[[Record], object] | None = None
    before: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    prompts: Format | None = None
    declared_only: bool = False
    fallback: bool = False

    def columns_in(self, present: Columns) -> Columns:
        """Those of the present columns that make a row this layout's; none if one is lacking."""
        return frozenset().union(*(columns for columns in self.required if present.issuperset(columns)))

    @property
    def columns(self) -> Columns:
        """All columns that it reads."""
        return self.optional.union(*self.required)


def parse_judged(record: Record, score_range: ScoreRange | None) -> Row:
    """A row with a label or a score: its answer stands in the one instruction layout whose columns it has."""
    names = holding_answers(record)
    if len(names) > 1:
        problem = f"hold an answer each (layouts {' and '.join(names)})"
        columns = sorted(set().union(*(ANSWERED[name].columns_in(present_columns(record)) for name in names)))
        remedy = f"Say which ones the score or label is not about, as in {null_option(columns[:1])}"
        raise RowError(record.origin, ", ".join(columns), problem, remedy)
    return ANSWERED[names[0]].parse(record, score_range)


def holding_answers(record: Record) -> list[str]:
    """Layouts of one answer whose columns the row has."""
    present = present_columns(record)
    fitting = ((name, layout) for name, layout in ANSWERED.items() if layout.columns_in(present))
    return [name for name, layout in fitting if layout.holds is None or layout.holds(record)]


def _pair(parse: Callable[[Record], Row]) -> Parse:
    return lambda record, _: pairs.with_two_answers(parse(record))


def _parse_chosen(record: Record, _: ScoreRange | None) -> Row:
    present = present_columns(record)
    is_orca = "question" in present and "prompt" not in present
    parse = pairs.parse_orca if is_orca else pairs.parse_hh if pairs.is_hh(record) else pairs.parse_preference
    return pairs.chosen_only(parse(record))


_COMMON: Final = frozenset({"system", *TOOL_COLUMNS})
_JUDGED: Final = _COMMON | FLAG_COLUMNS.keys() | {"label", "score", "input", "context"}
_SCORES: Final = frozenset({"score_chosen", "score_rejected"})

_AS_MESSAGES: Final = "Write conversations of several turns as messages"
_INTO_PROMPT: Final = "Write it into the prompt"

_OF_CONVERSATIONS: Final = (
    *("messages", "conversations", "system", "tools", "prompt", "completion", "instruction", "input", "output"),
    *("question", "answer", "response", "chosen", "rejected"),
)
"""Columns that say something beside a text only if it is no raw text."""


def _answered(name: str, foreign: Mapping[str, str] | None = None) -> Layout:
    """The layout of a format of one answer."""
    columns = FORMATS[name]
    context = {columns.context} - {""}
    return Layout(
        "instruction",
        (tuple(filter(None, (columns.prompt, columns.answer))),),
        lambda record, score_range: judged(record, parse_conversation(record, columns), score_range),
        optional=_COMMON | {"label", "score"} | context | (FLAG_COLUMNS.keys() if columns.prompt in LISTS else set()),
        holds=is_ultrachat if name == "ultrachat" else None,
        foreign=foreign or {},
        prompts=None if name == "ultrachat" else columns,
    )


ANSWERED: Final[dict[str, Layout]] = {
    "messages": _answered("messages"),
    "prompt_completion": _answered(
        "prompt_completion",
        {"response": "Keep one answer", "context": _INTO_PROMPT, "input": _INTO_PROMPT, "history": _AS_MESSAGES},
    ),
    "alpaca": _answered(
        "alpaca",
        {"context": "Rename it to 'input', or 'output' to 'response' for layout dolly", "history": _AS_MESSAGES},
    ),
    "dolly": _answered("dolly", {"input": "Rename it to 'context', or 'response' to 'output' for layout alpaca"}),
    "sharegpt": _answered("sharegpt"),
    "ultrachat": _answered("ultrachat"),
}
"""Layouts of one answer. With a label its row is unpaired, with a score scored."""


def _with_answer(mark: str) -> tuple[tuple[str, ...], ...]:
    return tuple((*columns, mark) for layout in ANSWERED.values() for columns in layout.required)


LAYOUTS: Final[dict[str, Layout]] = {
    **ANSWERED,
    "preference": Layout(
        "preference",
        (("chosen", "rejected"), *((*columns, "rejected") for columns in pairs.WITH_CHOSEN)),
        _pair(pairs.parse_preference),
        optional=_COMMON | _SCORES | pairs.PROMPT_COLUMNS | {"preference", "gold"},
        # UltraFeedback has the chosen conversation once more as messages.
        before=("messages",),
        foreign={"history": _AS_MESSAGES},
    ),
    "hh_rlhf": Layout(
        "preference",
        (("chosen", "rejected"),),
        _pair(pairs.parse_hh),
        optional=_COMMON | _SCORES | {"prompt", "preference"},
        holds=pairs.is_hh,
        before=("preference", "messages"),
    ),
    "orca": Layout(
        "preference",
        (("question", "chosen", "rejected"),),
        _pair(pairs.parse_orca),
        optional=_COMMON | _SCORES | {"preference"},
        before=("hh_rlhf", "messages"),
        foreign={"prompt": "Keep one of 'prompt' and 'question'"},
    ),
    "chosen": Layout(
        "instruction",
        (("chosen", "rejected"),),
        _parse_chosen,
        optional=_COMMON | _SCORES | pairs.PROMPT_COLUMNS | {"question", "preference", "gold"},
        declared_only=True,
    ),
    "unpaired": Layout("unpaired", _with_answer("label"), parse_judged, optional=_JUDGED, holds=holding_answers),
    "scored": Layout("scored", _with_answer("score"), parse_judged, optional=_JUDGED, holds=holding_answers),
    "helpsteer2": Layout(
        "scored",
        (("prompt", "response", *HELPSTEER2_ATTRIBUTES),),
        lambda record, _: parse_helpsteer2(record),
        optional=_COMMON,
    ),
    "text": Layout(
        "instruction",
        (("text",),),
        lambda record, _: parse_document(record),
        foreign=dict.fromkeys(_OF_CONVERSATIONS, "A text has no turns: write them as messages"),
        fallback=True,
    ),
}
"""Known layouts, by the names that users declare. A new data format is one function and one entry here."""


def check_layout(layout: str) -> None:
    """Do nothing if `layout` is a key of `LAYOUTS`.

    Raises:
        UserError: it is not.
    """
    if not isinstance(layout, str) or layout not in LAYOUTS:
        hint = did_you_mean(layout, LAYOUTS)
        raise UserError(f"layout={layout!r} is not known.{hint} Known layouts: {known_layouts()}.")


def check_columns(columns: Any, where: str = "columns") -> None:
    """Do nothing if `columns` is a `columns.ColumnMap` that can be obeyed, or None.

    Args:
        columns: the value of the option.
        where: how the option is named in messages.

    Raises:
        UserError: it is no mapping of texts, names a column that no layout reads, or contradicts itself.
    """
    check_map(columns, read_columns(), where)


def read_columns() -> Columns:
    """All columns that any layout reads."""
    return frozenset().union(*(layout.columns for layout in LAYOUTS.values()))


@lru_cache(MAX_CACHED)
def candidates(present: Columns) -> list[str]:
    """The layouts whose columns are present, unless they are to be declared."""
    return [name for name, layout in LAYOUTS.items() if not layout.declared_only and layout.columns_in(present)]


def known_layouts() -> str:
    """All layouts with their columns, for messages."""
    return "; ".join(
        f"{name} ({' or '.join(', '.join(columns) for columns in layout.required)})" for name, layout in LAYOUTS.items()
    )


@lru_cache(MAX_CACHED)
def misspelt(name: str, present: Columns) -> tuple[str, str] | None:
    """A column that a layout would ignore, and the one that it may be a misspelling of; None if there is none.

    Args:
        name: of the layout.
        present: the row's columns.
    """
    layout = LAYOUTS[name]
    own = layout.columns_in(present)
    richer = (columns for other in LAYOUTS.values() for columns in other.required if own < frozenset(columns))
    wanted = layout.optional.union(*richer) - present
    columns = sorted(present - own - layout.optional) if own else []
    return next(((column, known) for column in columns if (known := _near(column, wanted))), None)


def _near(column: str, known: Columns) -> str:
    """The known column that `column` may be a misspelling of; empty if there is none."""
    plain = column[:60].lower().strip()
    # Names such as prompt_id, response2 and raw_messages are made from a known one on purpose.
    candidates = [
        name for name in known if plain == name or not re.fullmatch(rf"(.+[-_. ])?{name}([-_. ].+|\d+)?", plain)
    ]
    return nearest(plain, candidates, cutoff=NEAR) or ""


def near_misses(present: Columns, missing: str = "") -> str:
    """Suggestions for columns that nearly have a known name, or have another one; empty if there are none.

    Args:
        present: the row's columns.
        missing: the column that its layout lacks; empty if it has no layout.
    """
    known = frozenset().union(*(columns for layout in LAYOUTS.values() for columns in layout.required))
    near = {column: _near(column, known) for column in sorted(present - known)}
    usual = {column: name for column, name in _SYNONYMS.items() if column in present and name not in present}
    if missing:
        alike = next((names for names in (PROMPT_NAMES, ANSWER_NAMES) if missing in names), ())
        usual = {column: missing for column in alike if column in present}
    hints = {column: name for column, name in near.items() if name} or usual
    if not hints:
        return ""
    said = ", ".join(f"'{column}' should be '{name}'" for column, name in hints.items())
    option = ", ".join(f"{name}: {column}" for column, name in hints.items())
    return f"Perhaps {said}: rename it, or say --columns '{{{option}}}'"
