"""Names of columns that may be misspelt, and what they are mostly meant to be."""

import re
from typing import Final

from lit_ift.data.parse.columns import ANSWER_NAMES, PROMPT_NAMES, Columns
from lit_ift.data.parse.layouts import LAYOUTS, Layout
from lit_ift.errors import nearest

NEAR: Final = 0.8
"""How alike two column names are from which on one may be a misspelling of the other, 1 being the same."""


_SYNONYMS: Final = {"response": "completion", "answer": "completion", "question": "prompt"}
"""Columns of rows that fit no layout, and what they are mostly called."""


def misspelt(layout: Layout, present: Columns) -> str:
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
