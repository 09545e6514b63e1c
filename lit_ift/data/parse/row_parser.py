"""Rows of one source, all by one layout: from a record to a checked `Row`."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from lit_ift.chat.conversation import Conversation
from lit_ift.data.parse.columns import ColumnMap, ColumnNames, Columns, check_read, null_option, present_columns
from lit_ift.data.parse.content import check_no_placeholder
from lit_ift.data.parse.fields import Field
from lit_ift.data.parse.instruction import parse_prompt
from lit_ift.data.parse.json_columns import with_lists
from lit_ift.data.parse.layouts import (
    ANSWERED,
    LAYOUTS,
    Layout,
    candidates,
    check_columns,
    check_layout,
    holding_answers,
    known_layouts,
    misspelt,
    near_misses,
    parse_judged,
    read_columns,
)
from lit_ift.data.parse.messages import PROMPT_ENDS, check_opening
from lit_ift.data.parse.pairs import with_soft_label
from lit_ift.data.parse.scores import ScoreRange
from lit_ift.data.parse.tool_calls import parse_tools
from lit_ift.data.read.record import Record
from lit_ift.data.rows import Row, RowKind
from lit_ift.errors import RowError, UserError

_FOREIGN: Final = {"system_prompt": "Rename it to 'system'", "system_message": "Rename it to 'system'"}
"""Columns that no layout reads although they belong into the prompt, and what to do."""

MAX_SHOWN: Final = 30
"""Columns of a row that an error lists."""


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
        check_columns(columns)
        self.score_range = score_range
        self.preference_scale = preference_scale
        self.needs_answer = needs_answer
        self.layout = layout
        """Name of the layout of the source; None until a row was recognised."""
        self._declared = layout is not None
        self._first: Record | None = None
        self._kind: RowKind | None = None
        self.names = self._column_names(columns)
        if layout is not None and layout not in ANSWERED:
            self._check_score_options_used(LAYOUTS[layout].kind, layout, "")

    def parse(self, record: Record) -> Row:
        """Turn a row into a checked one.

        Raises:
            RowError: no layout fits, a field has the wrong type or value, or a column that changes what the row means
                would be ignored.
            UserError: the row fits more than one layout, or another one than the rows before; or its values show that
                an option of the source is wrong.
        """
        named = self.names.read(record, is_open=self.layout is None or self._declared)
        try:
            return self._parse(with_lists(named))
        except RowError as error:
            raise self.names.in_source_words(error) from error.__cause__

    def _parse(self, record: Record) -> Row:
        name = self.layout if self.layout is not None and self._declared else self._recognise(record)
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
        return row if scale is None else with_soft_label(record, row, scale)

    def _column_names(self, columns: ColumnMap | None) -> ColumnNames:
        own = LAYOUTS if self.layout is None else {self.layout: replace(LAYOUTS[self.layout], fallback=False)}
        prompts = [layout.prompts.prompt for layout in own.values() if layout.prompts is not None]
        return ColumnNames(
            columns,
            read_columns(),
            lambda present: any(not layout.fallback and layout.columns_in(present) for layout in own.values()),
            takes_prompts=not self.needs_answer and "prompt" in prompts,
        )

    def _check_kind(self, row: Row, name: str) -> None:
        """Refuse a row without the label or score that the rows before it have, or with one that they have not."""
        if self._kind is None:
            self._check_score_options_used(row.kind, name, f"{row.origin}: ")
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
        if len(fitting) > 1:
            raise UserError(
                f"{record.origin}: columns {_quoted(record)} fit several layouts: {', '.join(fitting)}. Set layout "
                "to the one to use, or remove the columns that do not belong to it."
            )
        if self.layout is None:
            if not fitting:
                remedy = near_misses(present) or (
                    "Say what they are, as in --columns '{prompt: Question, completion: Answer}', or rename them to "
                    f"those of one layout: {known_layouts()}"
                )
                problem = f"columns {_quoted(record)} fit no known layout"
                raise RowError(record.origin, "", problem, remedy, reason="layout")
            _check_foreign(record, fitting[0])
        elif fitting and fitting[0] != self.layout and not _is_flawed(record, LAYOUTS[self.layout], fitting[0]):
            assert self._first is not None
            raise UserError(
                f"{record.origin}: columns {_quoted(record)} are those of layout '{fitting[0]}', but "
                f"{self._first.origin} has layout '{self.layout}' (columns {_quoted(self._first)}). Split the source "
                "into one per layout, or set layout to read all rows by one."
            )
        if self.layout in (None, *fitting):
            _check_spelling(record, fitting[0], present)
        if self.layout is None:
            self.layout, self._first = fitting[0], record
        return self.layout

    def _fitting(self, record: Record, present: Columns) -> list[str]:
        """Names of the layouts that the row may be of: one, unless it cannot be told."""
        names = [name for name in candidates(present) if (holds := LAYOUTS[name].holds) is None or holds(record)]
        names = [name for name in names if not LAYOUTS[name].fallback] or names
        columns = {name: LAYOUTS[name].columns_in(present) for name in names}
        names = [
            name
            for name in names
            if not any(columns[name] < columns[other] or name in LAYOUTS[other].before for other in names)
        ]
        if names or self.needs_answer:
            return names
        # Layouts whose bare prompt is the same column read it alike: that of the source is taken, or the first.
        by_column: dict[str, str] = {}
        for name in (self.layout, *LAYOUTS) if self.layout else LAYOUTS:
            prompts = LAYOUTS[name].prompts
            if prompts is not None and prompts.prompt in present:
                by_column.setdefault(prompts.prompt, name)
        return list(by_column.values())

    def _check_score_options_used(self, kind: RowKind, name: str, where: str) -> None:
        unused = {}
        if self.preference_scale is not None and kind != "preference":
            unused[f"preference_scale={self.preference_scale:g}"] = "pairs"
        if self.score_range is not None and (kind != "scored" or name == "helpsteer2"):
            unused[f"score_range={list(self.score_range)}"] = "score to scale"
        for option, what in unused.items():
            remedy = f"Remove {option.partition('=')[0]}, or correct the layout."
            raise UserError(f"{where}{option} is set, but layout '{name}' has no {what}. {remedy}")


def _texts(row: Row) -> Iterator[str]:
    for side in row.sides.values():
        if isinstance(side, Conversation):
            yield from (message["content"] for message in side.messages)


def _check_spelling(record: Record, name: str, present: Columns) -> None:
    """Refuse a column that would be ignored although it looks like one that would change what the row means."""
    if found := misspelt(name, present):
        column, known = found
        remedy = f"If it is that, say --columns '{{{known}: {column}}}'; if it means nothing, {null_option([column])}"
        problem = f"is no column of layout '{name}', but '{known}' would be"
        raise Field.of(record, column).error(problem, remedy, "layout")


def _is_flawed(record: Record, source: Layout, fitting: str) -> bool:
    """Whether a row that fits another layout is rather one of the `source`'s layout that lacks a value."""
    present = present_columns(record)
    columns, own = LAYOUTS[fitting].columns_in(present), source.columns_in(present)
    if own:
        # The values are not of the source's layout, whose parser says so; or the other layout says more.
        return source.holds is not None and not source.holds(record) and columns <= own
    return any(
        record.data.keys() >= required and (columns < required or (required - columns) & present)
        for required in map(frozenset, source.required)
    )


def _lacking(record: Record, name: str, present: Columns) -> RowError:
    """The error of a row without a column that its layout needs."""
    nearest = min(LAYOUTS[name].required, key=lambda columns: len({*columns} - present))
    missing = next(column for column in nearest if column not in present)
    problem = "is null" if missing in record.data else "missing"
    return Field.of(record, missing).error(
        f"{problem}, but layout '{name}' needs it (columns: {_quoted(record)})",
        near_misses(present, missing) or "Add the column or choose another layout",
        "layout",
    )


def _check_foreign(record: Record, name: str) -> None:
    layouts = [name, *holding_answers(record)] if LAYOUTS[name].parse is parse_judged else [name]
    for foreign in (_FOREIGN, *(LAYOUTS[layout].foreign for layout in layouts)):
        for column, remedy in foreign.items():
            field = Field.of(record, column)
            problem = f"is ignored by layout '{name}', although it looks like a part of the conversation"
            remedy = f"{remedy}. If it means nothing, say {null_option([column])}"
            field.require(field.value in (None, "", []), problem, remedy, "layout")


def _mere_prompt(record: Record, layout: Layout) -> Conversation | None:
    """The row as a mere prompt; None if it has an answer, or too few columns for a prompt."""
    present = present_columns(record)
    if layout.prompts is None or layout.prompts.prompt not in present:
        return None
    has_answer_apart = bool(layout.prompts.answer)
    if has_answer_apart and layout.columns_in(present):
        return None
    field = Field.of(record, layout.prompts.prompt)
    messages = parse_prompt(record, layout.prompts)
    role = messages[-1]["role"]
    if not has_answer_apart and role not in PROMPT_ENDS:
        return None
    problem = f"has no answer and ends with the turn of the {role}, so there is nothing for the model to answer"
    remedy = "End it with a user or tool turn, or add the assistant's answer"
    field.require(role in PROMPT_ENDS, problem, remedy)
    check_opening(record, messages, field.path)
    return Conversation(messages, tools=parse_tools(record), num_prompt_messages=len(messages))


def _quoted(record: Record) -> str:
    """The row's columns, in their order, those that are null aside."""
    shown = [f"'{name[:60]}'" for name, value in record.data.items() if value is not None]
    return ", ".join(shown[:MAX_SHOWN] + ["..."] * (len(shown) > MAX_SHOWN)) or "(none)"
