"""Layouts: how a source's rows are recognised by their columns, and how each becomes a checked `Row`."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lit_ift.chat.conversation import Conversation, Message
from lit_ift.data.parse import instruction as instruct_formats
from lit_ift.data.parse import pairs as pair_formats
from lit_ift.data.parse import scores as score_formats
from lit_ift.data.parse import texts as text_format
from lit_ift.data.parse.columns import (
    ColumnMap,
    ColumnNames,
    Columns,
    check_map,
    check_read,
    null_option,
    present_columns,
)
from lit_ift.data.parse.content import check_no_placeholder
from lit_ift.data.parse.messages import PROMPT_ENDS, check_opening, parse_tools
from lit_ift.data.parse.scores import HELPSTEER2_ATTRIBUTES, ScoreRange
from lit_ift.data.parse.tool_calls import TOOL_COLUMNS
from lit_ift.data.parse.training_flags import FLAG_COLUMNS
from lit_ift.data.read.records import Record
from lit_ift.data.rows import Row, RowKind
from lit_ift.errors import RowError, UserError, did_you_mean, nearest

NEAR: Final = 0.8
"""How alike two column names are from which on one may be a misspelling of the other, 1 being the same."""


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


def _judged(record: Record, score_range: ScoreRange | None) -> Row:
    """A row with a label or a score: its answer stands in the one instruction layout whose columns it has."""
    names = _holding_answers(record)
    if len(names) > 1:
        problem = f"hold an answer each (layouts {' and '.join(names)})"
        columns = sorted(set().union(*(ANSWERED[name].columns_in(present_columns(record)) for name in names)))
        remedy = f"Say which ones the score or label is not about, as in {null_option(columns[:1])}"
        raise RowError(record.origin, ", ".join(columns), problem, remedy)
    return ANSWERED[names[0]].parse(record, score_range)


def _holding_answers(record: Record) -> list[str]:
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
    "unpaired": Layout("unpaired", _with_answer("label"), _judged, optional=_OF_JUDGED, holds=_holding_answers),
    "scored": Layout("scored", _with_answer("score"), _judged, optional=_OF_JUDGED, holds=_holding_answers),
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

_SYNONYMS: Final = {"response": "completion", "answer": "completion", "question": "prompt"}
"""Columns of rows that fit no layout, and what they are mostly called."""

_FOREIGN: Final = {"system_prompt": "Rename it to 'system'", "system_message": "Rename it to 'system'"}
"""Columns that no layout reads although they belong into the prompt, and what to do."""

MAX_SHOWN: Final = 30
"""Columns of a row that an error lists."""

MAX_CACHED: Final = 1000
"""Sets of columns whose layout a parser remembers."""


def to_row(
    record: Record,
    *,
    layout: str | None = None,
    score_range: ScoreRange | None = None,
    needs_answer: bool = True,
) -> Row:
    """Turn a single row into a checked one; `RowParser` does so for all rows of a source and sees that they agree.

    Args:
        record: the row.
        layout: a key of `LAYOUTS`; None recognises the layout by the columns.
        score_range: lowest and highest score that a row of layout ``scored`` can have; by default 0 and 1.
        needs_answer: refuse instruction rows without an answer; otherwise they become mere prompts.

    Raises:
        RowError: no layout fits, or a field has the wrong type or value.
        UserError: more than one layout fits, or an argument is wrong.
    """
    return RowParser(layout=layout, score_range=score_range, needs_answer=needs_answer).parse(record)


def check_layout(layout: str) -> None:
    """Do nothing if `layout` is a key of `LAYOUTS`.

    Raises:
        UserError: it is not.
    """
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise UserError(f"layout={layout!r} is not known.{did_you_mean(layout, LAYOUTS)} Known layouts: {_known()}.")


def check_columns(columns: Any, where: str = "columns") -> None:
    """Do nothing if `columns` is a `columns.ColumnMap` that can be obeyed, or None.

    Args:
        columns: the value of the option.
        where: how the option is named in messages.

    Raises:
        UserError: it is no mapping of texts, names a column that no layout reads, or contradicts itself.
    """
    check_map(columns, _read_columns(), where)


def _read_columns() -> Columns:
    return frozenset().union(*(layout.columns for layout in LAYOUTS.values()))


def check_score_range(score_range: ScoreRange) -> None:
    """Do nothing if `score_range` is two finite numbers, the lower one first.

    Raises:
        UserError: it is not.
    """
    low, high = score_range
    if not (math.isfinite(high - low) and low < high):
        raise UserError(f"score_range={list(score_range)} must be two finite numbers, the lower one first.")


class RowParser:
    """Turns the rows of one source into checked ones, all by one layout.

    Args:
        layout: a key of `LAYOUTS`, by which every row is read; None takes the layout of the first row whose columns
            are those of one, and stays with it.
        score_range: lowest and highest score that a row of layout ``scored`` can have; by default 0 and 1.
        preference_scale: of pairs with scores, from which `with_soft_label` makes a soft label.
        needs_answer: refuse instruction rows without an answer; otherwise they become mere prompts.
        columns: what columns of the source are, where their names do not say it; see `columns.ColumnMap`.

    Raises:
        UserError: an argument is wrong, or `score_range` or `preference_scale` has no effect with `layout`.
    """

    def __init__(
        self,
        *,
        layout: str | None = None,
        score_range: ScoreRange | None = None,
        preference_scale: float | None = None,
        needs_answer: bool = True,
        columns: ColumnMap | None = None,
    ) -> None:
        if layout is not None:
            check_layout(layout)
        if score_range is not None:
            check_score_range(score_range)
        self.score_range = score_range
        self.preference_scale = preference_scale
        self.needs_answer = needs_answer
        self._layout = layout
        self._declared = layout is not None
        self._first: Record | None = None
        self._candidates: dict[Columns, list[str]] = {}
        self._suspects: dict[Columns, str] = {}
        self._kind: RowKind | None = None
        self.names = self._column_names(columns)
        if layout is not None and layout not in ANSWERED:
            self._check_score_options_used(LAYOUTS[layout].kind, layout, "")

    @property
    def layout(self) -> str | None:
        """Name of the layout of the source; None until a row was recognised."""
        return self._layout

    def parse(self, record: Record) -> Row:
        """Turn a row into a checked one.

        Raises:
            RowError: no layout fits, a field has the wrong type or value, or a column that changes what the row means
                would be ignored.
            UserError: the row fits more than one layout, or another one than the rows before; or its values show that
                an option of the source is wrong.
        """
        named = self.names.read(record, is_open=self._layout is None or self._declared)
        try:
            return self._parse(named)
        except RowError as error:
            raise self.names.in_source_words(error) from error.__cause__

    def _parse(self, record: Record) -> Row:
        name = self._layout if self._declared else self._recognise(record)
        assert name is not None
        layout = LAYOUTS[name]
        if not self._declared:
            _check_foreign(record, name)
        present = present_columns(record)
        prompt = None if self.needs_answer else _mere_prompt(record, layout)
        if prompt is None and not layout.columns_in(present):
            raise _lacking(record, name, present)
        check_read(record, name, layout.columns_in(present) | layout.optional)
        if prompt is not None:
            return Row("instruction", record.origin, {"answer": prompt})
        row = layout.parse(record, self.score_range)
        check_no_placeholder(record, _texts(row))
        self._check_kind(row, name)
        self.names.note_unread(present - layout.columns_in(present) - layout.optional)
        scale = self.preference_scale
        return row if scale is None else pair_formats.with_soft_label(record, row, scale)

    def _column_names(self, columns: ColumnMap | None) -> ColumnNames:
        own = LAYOUTS if self._layout is None else {self._layout: replace(LAYOUTS[self._layout], fallback=False)}
        check_columns(columns)
        return ColumnNames(
            columns,
            _read_columns(),
            lambda present: any(not layout.fallback and layout.columns_in(present) for layout in own.values()),
            takes_prompts=not self.needs_answer and any(layout.prompt_required == "prompt" for layout in own.values()),
        )

    def _check_kind(self, row: Row, name: str) -> None:
        """Refuse a row without the label or score that the rows before it have, or with one that they have not."""
        if self._kind is None:
            self._check_score_options_used(row.kind, name, row.origin)
            self._kind = row.kind
        if row.kind == self._kind:
            return
        if row.kind == "instruction":
            mark = "label" if self._kind == "unpaired" else "score"
            raise RowError(row.origin, mark, "is missing, but the rows before have one", "Add it or remove the row")
        raise UserError(
            f"{row.origin}: the row is {row.kind} data, but the rows before are {self._kind} data. Split the source "
            "into one for each."
        )

    def _recognise(self, record: Record) -> str:
        """The layout of the source, which this row fits."""
        present = present_columns(record)
        fitting = self._fitting(record, present)
        locked = self._layout
        if len(fitting) > 1:
            raise UserError(
                f"{record.origin}: columns {_quoted(record)} fit several layouts: {', '.join(fitting)}. Set layout "
                "to the one to use, or remove the columns that do not belong to it."
            )
        if locked is None:
            if not fitting:
                remedy = _near_misses(present) or (
                    "Say what they are, as in --columns '{prompt: Question, completion: Answer}', or rename them to "
                    f"those of one layout: {_known()}"
                )
                problem = f"columns {_quoted(record)} fit no known layout"
                raise RowError(record.origin, "", problem, remedy, reason="layout")
            _check_foreign(record, fitting[0])
            self._check_spelling(record, fitting[0], present)
            self._layout, self._first = fitting[0], record
            return fitting[0]
        if fitting and fitting[0] != locked and not _is_flawed(record, LAYOUTS[locked], fitting[0], present):
            raise self._mixed(record, fitting[0])
        if fitting == [locked]:
            self._check_spelling(record, locked, present)
        return locked

    def _fitting(self, record: Record, present: Columns) -> list[str]:
        """Names of the layouts that the row may be of: one, unless it cannot be told."""
        if present not in self._candidates:
            _bound(self._candidates)
            self._candidates[present] = [
                name for name, layout in LAYOUTS.items() if not layout.declared_only and layout.columns_in(present)
            ]
        names = [name for name in self._candidates[present] if (holds := LAYOUTS[name].holds) is None or holds(record)]
        names = [name for name in names if not LAYOUTS[name].fallback] or names
        if len(names) > 1:
            columns = {name: LAYOUTS[name].columns_in(present) for name in names}
            names = [
                name
                for name in names
                if not any(columns[name] < columns[other] or name in LAYOUTS[other].before for other in names)
            ]
        if not names and not self.needs_answer:
            # Layouts whose bare prompt is the same column read it alike: that of the source is taken, or the first.
            by_column: dict[str, str] = {}
            for name in (self._layout, *LAYOUTS) if self._layout else LAYOUTS:
                if LAYOUTS[name].parse_prompt is not None and LAYOUTS[name].prompt_required in present:
                    by_column.setdefault(LAYOUTS[name].prompt_required, name)
            names = list(by_column.values())
        return names

    def _check_spelling(self, record: Record, name: str, present: Columns) -> None:
        """Refuse a column that would be ignored although it looks like one that would change what the row means."""
        if present not in self._suspects:
            _bound(self._suspects)
            self._suspects[present] = _suspect(LAYOUTS[name], present)
        if suspect := self._suspects[present]:
            column, _, known = suspect.partition("\n")
            problem = f"is no column of layout '{name}', but '{known}' would be"
            remedy = (
                f"If it is that, say --columns '{{{known}: {column}}}'; if it means nothing, {null_option([column])}"
            )
            raise RowError(record.origin, column, problem, remedy, reason="layout")

    def _check_score_options_used(self, kind: RowKind, name: str, origin: str) -> None:
        where = f"{origin}: " if origin else ""
        if self.preference_scale is not None and kind != "preference":
            raise UserError(
                f"{where}preference_scale={self.preference_scale:g} is set, but layout '{name}' has no pairs. Remove "
                "preference_scale, or correct the layout."
            )
        if self.score_range is not None and (kind != "scored" or name == "helpsteer2"):
            raise UserError(
                f"{where}score_range={list(self.score_range)} is set, but layout '{name}' has no score to scale. "
                "Remove score_range, or correct the layout."
            )

    def _mixed(self, record: Record, name: str) -> UserError:
        assert self._first is not None
        return UserError(
            f"{record.origin}: columns {_quoted(record)} are those of layout '{name}', but {self._first.origin} has "
            f"layout '{self._layout}' (columns {_quoted(self._first)}). Split the source into one per "
            "layout, or set layout to read all rows by one."
        )


def _texts(row: Row) -> Iterator[str]:
    for side in row.sides.values():
        if isinstance(side, Conversation):
            yield from (message["content"] for message in side.messages)


def _bound(cache: dict[Columns, Any]) -> None:
    """Empty a cache by columns that has grown large, for every row may have columns of its own."""
    if len(cache) >= MAX_CACHED:
        cache.clear()


def _is_flawed(record: Record, locked: Layout, fitting: str, present: Columns) -> bool:
    """Whether a row that fits another layout is rather one of the `locked` layout that lacks a value."""
    other = LAYOUTS[fitting]
    columns = other.columns_in(present)
    if locked.columns_in(present):
        # The values are not of the locked layout, whose parser says so; or the other layout says more.
        return locked.holds is not None and not locked.holds(record) and columns <= locked.columns_in(present)
    return any(
        record.data.keys() >= required and (columns < required or (required - columns) & present)
        for required in map(frozenset, locked.required)
    )


def _lacking(record: Record, name: str, present: Columns) -> RowError:
    """The error of a row without a column that its layout needs."""
    nearest = min(LAYOUTS[name].required, key=lambda columns: len({*columns} - present))
    missing = next(column for column in nearest if column not in present)
    problem = "is null" if missing in record.data else "missing"
    return RowError(
        record.origin,
        missing,
        f"{problem}, but layout '{name}' needs it (columns: {_quoted(record)})",
        _near_misses(present) or "Add the column or choose another layout",
        reason="layout",
    )


def _check_foreign(record: Record, name: str) -> None:
    layouts = [name, *_holding_answers(record)] if LAYOUTS[name].parse is _judged else [name]
    foreign = [LAYOUTS[layout].foreign.items() for layout in layouts]
    for column, remedy in (*_FOREIGN.items(), *(item for items in foreign for item in items)):
        if record.data.get(column) not in (None, "", []):
            problem = f"is ignored by layout '{name}', although it looks like a part of the conversation"
            remedy = f"{remedy}. If it means nothing, say {null_option([column])}"
            raise RowError(record.origin, column, problem, remedy, reason="layout")


def _mere_prompt(record: Record, layout: Layout) -> Conversation | None:
    """The row as a mere prompt; None if it has an answer, or too few columns for a prompt."""
    present = present_columns(record)
    field = layout.prompt_required
    if layout.parse_prompt is None or field not in present:
        return None
    answer_apart = not all(columns == (field,) for columns in layout.required)
    if answer_apart and layout.columns_in(present):
        return None
    messages = layout.parse_prompt(record)
    role = messages[-1]["role"]
    if role not in PROMPT_ENDS:
        if not answer_apart:
            return None
        raise RowError(
            record.origin,
            field,
            f"has no answer and ends with the turn of the {role}, so there is nothing for the model to answer",
            "End it with a user or tool turn, or add the assistant's answer",
        )
    check_opening(record, messages, field)
    return Conversation(messages, tools=parse_tools(record), num_prompt_messages=len(messages))


def _suspect(layout: Layout, present: Columns) -> str:
    """A column and, after a line break, what it may be a misspelling of; empty if there is none."""
    own = layout.columns_in(present)
    if not own:
        return ""
    richer = (columns for other in LAYOUTS.values() for columns in other.required if own < frozenset(columns))
    wanted = layout.optional.union(*richer) - present
    for column in sorted(present - own - layout.optional):
        if known := _near(column, wanted):
            return f"{column}\n{known}"
    return ""


def _near(column: str, known: Columns) -> str:
    """The known column that `column` may be a misspelling of; empty if there is none."""
    plain = column[:60].lower().strip()
    # Names such as prompt_id, response2 and raw_messages are made from a known one on purpose.
    candidates = [
        name for name in known if plain == name or not re.fullmatch(rf"(.+[-_. ])?{name}([-_. ].+|\d+)?", plain)
    ]
    return nearest(plain, candidates, cutoff=NEAR) or ""


def _near_misses(present: Columns) -> str:
    """Spelling suggestions for columns that nearly have a known name; empty if there are none."""
    known = frozenset().union(*(columns for layout in LAYOUTS.values() for columns in layout.required))
    near = {column: _near(column, known) for column in sorted(present - known)}
    usual = {column: name for column, name in _SYNONYMS.items() if column in present and name not in present}
    hints = {column: name for column, name in near.items() if name} or usual
    if not hints:
        return ""
    said = ", ".join(f"'{column}' should be '{name}'" for column, name in hints.items())
    option = ", ".join(f"{name}: {column}" for column, name in hints.items())
    return f"Perhaps {said}: rename it, or say --columns '{{{option}}}'"


def _quoted(record: Record) -> str:
    """The row's columns, in their order, those that are null aside."""
    shown = [f"'{name[:60]}'" for name, value in record.data.items() if value is not None]
    return ", ".join(shown[:MAX_SHOWN] + ["..."] * (len(shown) > MAX_SHOWN)) or "(none)"


def _known() -> str:
    return "; ".join(
        f"{name} ({' or '.join(', '.join(columns) for columns in layout.required)})" for name, layout in LAYOUTS.items()
    )
