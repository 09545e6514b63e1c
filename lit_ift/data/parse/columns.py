"""Columns at the border: by which names they are read, and which of them must not be passed over."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from lit_ift.data.parse.content import MEDIA, is_empty
from lit_ift.data.parse.fields import Field
from lit_ift.data.parse.json_columns import LISTS
from lit_ift.data.parse.training_flags import FLAG_COLUMNS
from lit_ift.data.read.record import Record
from lit_ift.errors import RowError, UserError, did_you_mean

ColumnMap = Mapping[str, str | None]
"""The option ``columns``: a column that layouts read to the one that it is in the source, as in ``{prompt: Question}``;
or a column of the source to None, which says that it means nothing."""

Columns = frozenset[str]


class Meaning(NamedTuple):
    """What a column says about a row.

    Args:
        what: it, in words that follow "the column holds".
        read_as: the column by which layouts read it; empty if none does.
    """

    what: str
    read_as: str = ""


_GOOD, _SCORE, _PAIR = "whether the answer is good", "how good the answer is", "an answer of a pair"

MEANINGS: Final[dict[str, Meaning]] = {
    name: Meaning(what, read_as)
    for what, read_as, names in (
        (_GOOD, "label", "label labels kto_label thumbs_up thumb_up thumb thumbs upvoted liked good is_good correct"),
        (_GOOD, "label", "is_correct desirable is_desirable is_accepted is_chosen"),
        ("whether the answer is bad", "", "is_bad thumb_down thumbs_down undesirable"),
        (_SCORE, "score", "score scores rating ratings reward rewards stars grade quality helpfulness correctness"),
        (_SCORE, "score", "quality_score overall_score overall_rating reward_score"),
        (_SCORE, "score", "answer_score response_score completion_score"),
        (_PAIR, "chosen", "chosen"),
        (_PAIR, "rejected", "rejected"),
        ("a reference answer", "gold", "gold"),
        ("how likely the chosen answer is the better one", "preference", "preference"),
        ("the score of the chosen answer", "score_chosen", "score_chosen"),
        ("the score of the rejected answer", "score_rejected", "score_rejected"),
        ("by how much the chosen answer is better", "", "margin margins"),
        ("which answer is the better one", "", "winner winners preferred better"),
        ("which turns are trained on", "", " ".join(FLAG_COLUMNS)),
        ("how much the row counts", "", "sample_weight sample_weights"),
    )
    for name in names.split()
}
"""Columns that change what a row means. A row is refused if one holds a value that its layout does not read."""

_MEDIA: Final = Meaning("an input that a text model cannot see")

OTHER_NAMES: Final[dict[str, str]] = {
    other: name
    for name, others in {
        "label": "kto_tag",
        "chosen": "chosen_response chosen_messages chosen_answer",
        "rejected": "rejected_response rejected_messages rejected_answer",
        "score_chosen": "chosen_score chosen_rating rating_chosen chosen_reward",
        "score_rejected": "rejected_score rejected_rating rating_rejected rejected_reward",
    }.items()
    for other in others.split()
}
"""Names that mean a column that layouts read and nothing else."""

PROMPT_NAMES: Final = ("prompt", "question", "query", "input", "instruction")
ANSWER_NAMES: Final = ("completion", "response", "answer", "output")
"""Everyday names of a question and its answer. Where a row has one of each and fits no layout, they are these."""

_BESIDE_A_PROMPT: Final = frozenset({"context", "history", "passage", "document", "choices", "options"})
"""Parts of a prompt, beside which an everyday name is not all of it."""

_HOLD_A_PROMPT: Final = frozenset({"prompt", "question", "messages", "conversations", "instruction"})
"""Columns from which a pair has its prompt, or that hold it inside a conversation."""

MAX_PLANS: Final = 1000
"""Sets of columns whose names are remembered."""


def check_map(columns: Any, known: Iterable[str], where: str) -> None:
    """Do nothing if `columns` is a `ColumnMap` that can be obeyed, or None.

    Args:
        columns: the value of the option.
        known: columns that layouts read.
        where: how the option is named in messages.

    Raises:
        UserError: it is no mapping of texts, names a column that no layout reads, or contradicts itself.
    """
    if columns is None:
        return
    is_map = isinstance(columns, Mapping) and all(
        isinstance(name, str) and (column is None or (isinstance(column, str) and column))
        for name, column in columns.items()
    )
    if not is_map:
        raise UserError(
            f"{where}={columns!r} must map columns that are read to columns of the data, such as "
            "{prompt: Question, completion: Answer}, or to null."
        )
    known = set(known)
    given = {name: column for name, column in columns.items() if column is not None}
    for name, column in given.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"{where}: no layout reads a column '{name}'.{hint} They read {', '.join(sorted(known))}.")
        if list(given.values()).count(column) > 1 or columns.get(column, "") is None:
            raise UserError(f"{where}: the column '{column}' is said to be two things. Say one.")


class ColumnNames:
    """Gives the columns of one source the names by which layouts read them.

    The user's names come first. Then case, white space and hyphens do not count, and `OTHER_NAMES` are understood. A
    row that still fits no layout may have everyday names.

    Args:
        columns: the user's names.
        known: columns that layouts read.
        fits: whether a row with such columns, none of them null, is of a layout that the source may have.
        takes_prompts: whether a row with nothing but a ``prompt`` can be read.
    """

    def __init__(
        self, columns: ColumnMap | None, known: Columns, fits: Callable[[Columns], bool], *, takes_prompts: bool = False
    ) -> None:
        columns = columns or {}
        self.given: dict[str, str | None] = {
            name if column is None else column: None if column is None else name for name, column in columns.items()
        }
        """Columns that the user named, and what they are; those of which a row had something are in `found`."""
        self._known = known | MEANINGS.keys() | set(PROMPT_NAMES) | set(ANSWER_NAMES)
        self._fits = fits
        self._takes_prompts = takes_prompts
        self._everyday: dict[str, str] = {}
        self._plans: dict[tuple[tuple[str, bool], ...], dict[str, str | None]] = {}
        self._sources: dict[str, str] = {}
        self.found: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()

    def read(self, record: Record, *, is_open: bool) -> Record:
        """The row with the names by which layouts read its columns.

        Args:
            record: the row as it was read.
            is_open: whether no row before it settled how rows are laid out. If it is settled, everyday names count only
                if they counted then.

        Raises:
            RowError: two columns are the same by their names.
        """
        data = record.data
        signature = tuple((name, value is None) for name, value in data.items())
        if signature not in self._plans:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[signature] = self._plan(record)
        plan = self._plans[signature]
        self._count(name for name, new in plan.items() if new is None and data[name] is not None)
        named = record
        if plan:
            named = replace(record, data={new: v for n, v in data.items() if (new := plan.get(n, n)) is not None})
        self._sources = {new: name for name, new in plan.items() if new is not None}
        present = present_columns(named)
        if (is_open or self._everyday) and (not self._fits(present) or _is_bare_pair(named, present)):
            named = self._with_everyday_names(named, present)
        return named

    def note_unread(self, columns: Iterable[str]) -> None:
        """Count columns of the row that was read last that its layout does not read."""
        self._count(self._sources.get(column, column) for column in columns)

    def _count(self, columns: Iterable[str]) -> None:
        self.left_out.update(column for column in columns if column in self.left_out or len(self.left_out) < MAX_PLANS)

    def in_source_words(self, error: RowError) -> RowError:
        """`error` of the row that was read last, with its field as the source names it."""
        column = re.split(r"[.\[]", error.field)[0]
        given = {new: name for name, new in self.given.items() if new is not None}
        name = self._sources.get(column) or given.get(column, column)
        if name == column:
            return error
        path = name + error.field.removeprefix(column)
        return RowError(error.origin, path, error.problem, error.remedy, reason=error.reason)

    def _plan(self, record: Record) -> dict[str, str | None]:
        """New names of the row's columns, as far as they change; None for those that mean nothing."""
        data = record.data
        plan = self._given_names(data)
        given = {name for name in plan.values() if name is not None}
        found: dict[str, str] = {}
        # Exact names first: they are what the others may be another name of. Null columns take what is left.
        for column in sorted(data, key=lambda column: (data[column] is None, self._canonical(column) != column)):
            name = self._canonical(column)
            if column in plan:
                continue
            if name in given:
                plan[column] = None
            elif name not in found:
                found[name] = column
                if name != column:
                    plan[column] = name
            else:
                problem = f"is '{name}' by another name, but there is the column '{found[name]}' as well"
                remedy = f"Say which one means nothing: {null_option([column])}"
                Field.of(record, column).require(data[column] is None, problem, remedy)
        self.renamed |= {
            column: new for column, new in plan.items() if new is not None and len(self.renamed) < MAX_PLANS
        }
        # What is null gives way to the column that has its name now.
        yielding = {new for column, new in plan.items() if new is not None and new in data and new not in plan}
        return {**plan, **dict.fromkeys(yielding)}

    def _given_names(self, data: Mapping[str, Any]) -> dict[str, str | None]:
        """What the user says of the row's columns; case and hyphens do not count where nothing has the exact name."""
        plan: dict[str, str | None] = {}
        for column in data:
            key = column if column in self.given else self._canonical(column)
            if key in self.given and (key == column or key not in data):
                plan[column] = self.given[key]
                self.found.add(key)
        return plan

    def _canonical(self, column: str) -> str:
        if column in self._known:
            return column
        folded = re.sub(r"[\s-]+", "_", column[:60].strip().lower())
        name = OTHER_NAMES.get(folded, folded)
        return name if name in self._known or MEDIA.fullmatch(name) else column

    def _with_everyday_names(self, record: Record, present: Columns) -> Record:
        """The row without everyday names, if it can be read then; those of earlier rows hold where it has gaps."""
        said = frozenset(column for column in present if not is_empty(record.data[column]))
        names = _everyday_names(present, said, self._takes_prompts) or self._everyday
        names = {column: name for column, name in names.items() if column in record.data and name not in present}
        can_be_read = self._fits(present - names.keys() | {*names.values()})
        if not names or not (can_be_read or self._everyday or self._takes_prompts):
            return record
        self._everyday |= names
        for column, name in names.items():
            original = self._sources.pop(column, column)
            self._sources[name] = original
            self.renamed[original] = name
        kept = {column: value for column, value in record.data.items() if column not in names.values()}
        return replace(record, data={names.get(column, column): value for column, value in kept.items()})


def present_columns(record: Record) -> Columns:
    """The row's columns that are not null. Arrow tables give every row every column, None where it was absent."""
    return frozenset(name for name, value in record.data.items() if value is not None)


def check_read(record: Record, layout: str, read: Columns) -> None:
    """Do nothing if the row has no column with a meaning but those that are read; empty ones say nothing.

    A column has a meaning if it is one of `MEANINGS`, or holds images, sounds or films by its name.

    Args:
        record: the row, as `ColumnNames` gives it.
        layout: name of its layout, for the message.
        read: columns that the layout reads.

    Raises:
        RowError: it has.
    """
    unread = [
        column
        for column, value in record.data.items()
        if _meaning(column) and not is_empty(value) and not (column in read and _is_read(column, value))
    ]
    for column in unread:
        what, read_as = _meaning(column) or _MEDIA
        remedies = []
        if read_as not in ("", column):
            remedies.append(f"{_option({read_as: column})} says that it is the {read_as}")
        if read_as in ("chosen", "rejected"):
            remedies.append("leave layout out, or set layout: preference, to read the row as a pair")
        remedies.append(f"{null_option(unread)} says that {'they mean' if len(unread) > 1 else 'it means'} nothing")
        remedy = "; ".join(remedies)
        raise Field.of(record, column).error(
            f"holds {what}, which layout '{layout}' does not read",
            f"{remedy[0].upper()}{remedy[1:]} (in a configuration: data.columns)",
            "layout",
        )


def _meaning(column: str) -> Meaning | None:
    return MEANINGS.get(column) or (_MEDIA if MEDIA.fullmatch(column) else None)


def _is_read(column: str, value: Any) -> bool:
    """Whether a layout that reads the column reads such a value: of flags for turns, a list of them."""
    return column not in FLAG_COLUMNS or isinstance(value, list) or value == 1


def null_option(columns: Iterable[str]) -> str:
    """The option that says that columns mean nothing, as it is written on the command line."""
    return _option(dict.fromkeys(columns))


def _option(columns: ColumnMap) -> str:
    pairs = ", ".join(f"{name}: {'null' if column is None else column}" for name, column in columns.items())
    return f"--columns '{{{pairs}}}'"


def _everyday_names(present: Columns, said: Columns, takes_prompts: bool) -> dict[str, str]:
    """What the row's everyday names stand for; nothing if that is not clear.

    Args:
        present: columns that are not null.
        said: those of them that are not empty.
        takes_prompts: whether a prompt may stand alone.
    """
    prompts = [name for name in PROMPT_NAMES if name in said] or [name for name in PROMPT_NAMES if name in present]
    answers = [name for name in ANSWER_NAMES if name in present]
    if len(prompts) != 1 or said & _BESIDE_A_PROMPT or present & {*LISTS}:
        return {}
    if present >= {"chosen", "rejected"} or (not answers and takes_prompts and prompts != ["instruction"]):
        return {prompts[0]: "prompt"}
    return {prompts[0]: "prompt", answers[0]: "completion"} if len(answers) == 1 else {}


def _is_bare_pair(record: Record, present: Columns) -> bool:
    """Whether the row has two answers and no prompt by the names of a layout."""
    if not present >= {"chosen", "rejected"} or present & _HOLD_A_PROMPT:
        return False
    return isinstance(record.data["chosen"], str | dict)
