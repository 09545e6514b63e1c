"""Layouts: by which columns a format is recognised, and how its rows are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.parse import instruction as instruct_formats
from lit_ift.data.parse import pairs as pair_formats
from lit_ift.data.parse import scores as score_formats
from lit_ift.data.parse import texts as text_format
from lit_ift.data.parse.columns import (
    Columns,
    check_map,
    null_option,
    present_columns,
)
from lit_ift.data.parse.scores import HELPSTEER2_ATTRIBUTES, ScoreRange
from lit_ift.data.parse.tool_calls import TOOL_COLUMNS
from lit_ift.data.parse.training_flags import FLAG_COLUMNS
from lit_ift.data.read.records import Record
from lit_ift.data.rows import Row, RowKind
from lit_ift.errors import RowError, UserError, did_you_mean


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
        parse_prompt: from a row without an answer to the messages to answer; None if such rows are not taken.
        prompt_required: the column that such a row must have.
        declared_only: whether it is a choice that the columns do not tell.
        fallback: whether it is taken only where no other layout fits.
    """

    kind: RowKind
    required: tuple[tuple[str, ...], ...]
    parse: Callable[[Record, ScoreRange | None], Row]
    optional: Columns = frozenset()
    holds: Callable[[Record], object] | None = None
    before: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    parse_prompt: Callable[[Record], list[Message]] | None = None
    prompt_required: str = ""
    declared_only: bool = False
    fallback: bool = False

    def columns_in(self, present: Columns) -> Columns:
        """Those of the present columns that make a row this layout's; none if one is lacking."""
        return frozenset().union(*(columns for columns in self.required if present.issuperset(columns)))

    @property
    def columns(self) -> Columns:
        """All columns that it reads."""
        return self.optional.union(*self.required)


Parse = Callable[[Record, ScoreRange | None], Row]


def _instruction(parse: Callable[[Record], Conversation]) -> Parse:
    return lambda record, score_range: score_formats.judged(record, parse(record), score_range)


def _pair(parse: Callable[[Record], Row]) -> Parse:
    return lambda record, _: pair_formats.with_two_answers(parse(record))


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


def _parse_chosen(record: Record, _: ScoreRange | None) -> Row:
    present = present_columns(record)
    if "question" in present and "prompt" not in present:
        return pair_formats.chosen_only(pair_formats.parse_orca(record))
    parse = pair_formats.parse_hh if pair_formats.is_hh(record) else pair_formats.parse_preference
    return pair_formats.chosen_only(parse(record))


_COMMON: Final = frozenset({"system", *TOOL_COLUMNS})
_JUDGED: Final = _COMMON | {"label", "score"}
_TURNS: Final = frozenset(FLAG_COLUMNS)
_OF_JUDGED: Final = _COMMON | _TURNS | {"input", "context"}
_SCORES: Final = frozenset({"score_chosen", "score_rejected"})

_OF_CONVERSATIONS: Final = (
    *("messages", "conversations", "system", "tools", "prompt", "completion", "instruction", "input", "output"),
    *("question", "answer", "response", "chosen", "rejected"),
)
"""Columns that say something beside a text only if it is no raw text."""

ANSWERED: Final[dict[str, Layout]] = {
    "messages": Layout(
        "instruction",
        (("messages",),),
        _instruction(instruct_formats.parse_messages_row),
        optional=_JUDGED | _TURNS,
        parse_prompt=instruct_formats.messages_prompt,
        prompt_required="messages",
    ),
    "prompt_completion": Layout(
        "instruction",
        (("prompt", "completion"),),
        _instruction(instruct_formats.parse_prompt_completion),
        optional=_JUDGED,
        foreign={
            "response": "Keep one answer",
            "context": "Write it into the prompt",
            "input": "Write it into the prompt",
            "history": "Write conversations of several turns as messages",
        },
        parse_prompt=instruct_formats.prompt_alone,
        prompt_required="prompt",
    ),
    "alpaca": Layout(
        "instruction",
        (("instruction", "output"),),
        _instruction(instruct_formats.parse_alpaca),
        optional=_JUDGED | {"input"},
        foreign={
            "context": "Rename it to 'input', or 'output' to 'response' for layout dolly",
            "history": "Write conversations of several turns as messages",
        },
        parse_prompt=instruct_formats.alpaca_prompt,
        prompt_required="instruction",
    ),
    "dolly": Layout(
        "instruction",
        (("instruction", "response"),),
        _instruction(instruct_formats.parse_dolly),
        optional=_JUDGED | {"context"},
        foreign={"input": "Rename it to 'context', or 'response' to 'output' for layout alpaca"},
        parse_prompt=instruct_formats.dolly_prompt,
        prompt_required="instruction",
    ),
    "sharegpt": Layout(
        "instruction",
        (("conversations",),),
        _instruction(instruct_formats.parse_sharegpt),
        optional=_JUDGED | _TURNS,
        parse_prompt=instruct_formats.sharegpt_prompt,
        prompt_required="conversations",
    ),
    "ultrachat": Layout(
        "instruction",
        (("data",),),
        _instruction(instruct_formats.parse_ultrachat),
        optional=_JUDGED,
        holds=instruct_formats.is_ultrachat,
    ),
}
"""Layouts of one answer. With a label its row is unpaired, with a score scored."""


def _with_answer(mark: str) -> tuple[tuple[str, ...], ...]:
    return tuple((*columns, mark) for layout in ANSWERED.values() for columns in layout.required)


LAYOUTS: Final[dict[str, Layout]] = {
    **ANSWERED,
    "preference": Layout(
        "preference",
        (("chosen", "rejected"), *((*columns, "rejected") for columns in pair_formats.WITH_CHOSEN)),
        _pair(pair_formats.parse_preference),
        optional=_COMMON | _SCORES | pair_formats.PROMPT_COLUMNS | {"preference", "gold"},
        # UltraFeedback has the chosen conversation once more as messages.
        before=("messages",),
        foreign={"history": "Write conversations of several turns as messages"},
    ),
    "hh_rlhf": Layout(
        "preference",
        (("chosen", "rejected"),),
        _pair(pair_formats.parse_hh),
        optional=_COMMON | _SCORES | {"prompt", "preference"},
        holds=pair_formats.is_hh,
        before=("preference", "messages"),
    ),
    "orca": Layout(
        "preference",
        (("question", "chosen", "rejected"),),
        _pair(pair_formats.parse_orca),
        optional=_COMMON | _SCORES | {"preference"},
        before=("hh_rlhf", "messages"),
        foreign={"prompt": "Keep one of 'prompt' and 'question'"},
    ),
    "chosen": Layout(
        "instruction",
        (("chosen", "rejected"),),
        _parse_chosen,
        optional=_COMMON | _SCORES | pair_formats.PROMPT_COLUMNS | {"question", "preference", "gold"},
        declared_only=True,
    ),
    "unpaired": Layout("unpaired", _with_answer("label"), parse_judged, optional=_OF_JUDGED, holds=holding_answers),
    "scored": Layout("scored", _with_answer("score"), parse_judged, optional=_OF_JUDGED, holds=holding_answers),
    "helpsteer2": Layout(
        "scored",
        (("prompt", "response", *HELPSTEER2_ATTRIBUTES),),
        lambda record, _: score_formats.parse_helpsteer2(record),
        optional=_COMMON,
    ),
    "text": Layout(
        "instruction",
        (("text",),),
        lambda record, _: text_format.parse_document(record),
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


def known_layouts() -> str:
    """All layouts with their columns, for messages."""
    return "; ".join(
        f"{name} ({' or '.join(', '.join(columns) for columns in layout.required)})" for name, layout in LAYOUTS.items()
    )
