"""Whether the rows are what the module trains on, told before training; and which part of a mixed one takes which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_ift.data.pipeline import ResolvedSource
from lit_ift.data.rows import ROW_KINDS, SIDES, RowKind
from lit_ift.data.store import StoredRows
from lit_ift.errors import UserError

REMEDIES: Final[dict[RowKind, str]] = {
    "instruction": "leave these rows out",
    "preference": "leave these rows out, or set layout: chosen to train on the chosen answers alone",
    "unpaired": "leave these rows out, or say data.columns: {label: null} to train on all answers alike",
    "scored": "leave these rows out, or say data.columns: {score: null} to train on all answers alike",
}


@dataclass(frozen=True)
class RowParts:
    """Which part of a mixed objective each row of a split goes to.

    Args:
        names: parts that have rows in the split, in the order of the module.
        of_rows: index into `names` of each row, (R,).
    """

    names: tuple[str, ...]
    of_rows: npt.NDArray[np.int64]

    def rows_of(self, name: str) -> npt.NDArray[np.int64]:
        """The rows of a part, ascending."""
        return np.flatnonzero(self.of_rows == self.names.index(name))

    def shortest(self, lengths: Sequence[int]) -> dict[str, int]:
        """The shortest row of each part, which stands in where a batch has no row of the part."""
        return {name: min(self.rows_of(name).tolist(), key=lengths.__getitem__) for name in self.names}


def parts_of(module: Any) -> Mapping[str, Any] | None:
    """The parts of a mixed objective by their names; None for any other module."""
    parts = getattr(module, "parts", None)
    return dict(parts.items()) if isinstance(parts, Mapping | nn.ModuleDict) else None


def check_match(split: str, rows: StoredRows, sources: Sequence[ResolvedSource], module: Any) -> None:
    """Refuse rows of a kind that a module does not train on, and what only a mixed objective knows.

    Args:
        split: for messages.
        rows: of the split.
        sources: where they came from.
        module: says in ``kinds`` what it takes, and in ``needs_gold`` whether pairs must have a third answer. One
            that says nothing takes all.

    Raises:
        UserError: names module, kind, the first such row, and a remedy.
    """
    name = type(module).__name__
    if parts_of(module) is not None:
        raise UserError(f"{name} mixes objectives, which take rows of several kinds. Set data: FeedbackDataModule.")
    for source in sources:
        if source.part is not None:
            raise UserError(
                f"data.{split}: {source.name} has the option part={source.part!r}, but {name} has no parts. Remove "
                "the option, or choose a module that mixes objectives."
            )
    check_rows(split, rows, np.arange(len(rows)), module, name)


def check_rows(split: str, rows: StoredRows, indices: npt.NDArray[np.int64], taker: Any, name: str) -> None:
    """Refuse rows that `taker`, a module or a part of one, does not train on.

    Args:
        split: for messages.
        rows: of the split.
        indices: of the rows that go there, ascending.
        taker: has ``kinds`` and perhaps ``needs_gold``, ``losses_without_weights`` (without it, its losses take none)
            and ``uses_soft_labels``, of which it is warned if no pair has one.
        name: of the taker, for messages.

    Raises:
        UserError: names taker, kind, the first such row, and a remedy.
    """
    taken: frozenset[RowKind] | None = getattr(taker, "kinds", None)
    if taken is None:
        return
    kinds = rows.kinds[indices]
    strange = ~np.isin(kinds, [ROW_KINDS.index(kind) for kind in taken])
    if strange.any():
        first = int(strange.argmax())
        kind = ROW_KINDS[kinds[first]]
        listed = " and ".join(kind for kind in ROW_KINDS if kind in taken)
        raise UserError(
            f"data.{split}: {name} trains on {listed} rows, but {int((kinds == kinds[first]).sum()):,} rows are {kind} "
            f"data, the first of them {rows[int(indices[first])].row_id}. Choose a module that takes {kind} rows, or "
            f"{REMEDIES[kind]}."
        )
    weighted = rows.weighted[indices]
    heedless: list[str] | None = getattr(taker, "losses_without_weights", None)
    if weighted.any() and heedless != []:
        named = f" ({', '.join(heedless)})" if heedless else ""
        raise UserError(
            f"data.{split}: the loss of {name}{named} takes no weights of turns, but {int(weighted.sum()):,} rows have "
            f"some, the first of them {rows[int(indices[weighted.argmax()])].row_id}. Choose losses that take "
            "data_weights, such as nll, or write true or false instead of the weights."
        )
    pairs = kinds == ROW_KINDS.index("preference")
    if getattr(taker, "uses_soft_labels", False) and pairs.any() and not rows.scored[indices][pairs].any():
        rank_zero_warn(
            f"data.{split}: the loss of {name} asks how likely the chosen answer of a pair is the better one, but no "
            "pair says so, and all count as certain. Add a column 'preference', set preference_scale on a source whose "
            "pairs have scores, or choose a loss without soft labels."
        )
    if getattr(taker, "needs_gold", False):
        lacking = pairs & (rows.side_counts[indices] == len(SIDES["preference"]))
        if lacking.any():
            first = int(indices[lacking.argmax()])
            raise UserError(
                f"data.{split}: {name} needs a third answer, the best one, but {int(lacking.sum()):,} pairs have "
                f"none, the first of them {rows[first].row_id}. Add a column 'gold', leave these rows out, or choose "
                "another loss."
            )


def route(
    split: str,
    rows: StoredRows,
    sources: Sequence[tuple[ResolvedSource, int]],
    parts: Mapping[str, Any],
    *,
    needs_all: bool,
) -> RowParts:
    """Tell which part each row goes to: the one that its source names, else the one named as its kind.

    Args:
        split: for messages.
        rows: of the split.
        sources: where they came from and how many did, in the order of the rows.
        parts: of the module, by name.
        needs_all: every part must have a row, as in training.

    Raises:
        UserError: there is no such part, it does not take the rows that go there, or it has no row at all.
    """
    names = list(parts)
    by_kind = np.array([names.index(kind) if kind in names else -1 for kind in ROW_KINDS])
    of_rows = by_kind[rows.kinds]
    end = 0
    for source, count in sources:
        start, end = end, end + count
        if source.part is None:
            continue
        if source.part not in parts:
            raise UserError(
                f"data.{split}: {source.name} has the option part={source.part!r}, but the parts of the module are "
                f"{', '.join(names)}. Name one of them."
            )
        of_rows[start:end] = names.index(source.part)
    lost = of_rows < 0
    if lost.any():
        first = int(lost.argmax())
        kind = ROW_KINDS[rows.kinds[first]]
        raise UserError(
            f"data.{split}: no part of the module is called {kind!r}, so the {kind} row {rows[first].row_id} goes "
            f"nowhere. Give its source the option part with one of {', '.join(names)}, or leave it out."
        )
    for number, name in enumerate(names):
        mine = np.flatnonzero(of_rows == number)
        if needs_all and not len(mine):
            raise UserError(
                f"data.{split}: no row goes to the part {name!r} of the module. Add a source with part: {name}, or "
                "remove the part."
            )
        check_rows(split, rows, mine, parts[name], f"the part {name!r}")
    filled = [number for number in range(len(names)) if (of_rows == number).any()]
    return RowParts(tuple(names[number] for number in filled), np.searchsorted(filled, of_rows))
