"""The lake: gymnasium's map and transition table, checked, and what classical planning makes of it.

S cells, row by row; A = 4 actions in gymnasium's order: left, down, right, up; K outcomes of a move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lit_ift.errors import UserError
from lit_ift.frozen_lake.result import Array

Ties = Literal["first", "uniform"]
Integers = NDArray[np.int64]

ACTIONS: Final = ("left", "down", "right", "up")
LETTERS: Final = {"S": "start", "F": "frozen", "H": "hole", "G": "goal"}
CONVERGED: Final = 1e-12
"""Value iteration stops where no value changes by more than this share of it."""
TINY: Final = 1e-290
"""Values below are close to the smallest numbers there are, and lose their digits."""
EQUAL: Final = 1e-9
"""Values of actions that differ by less than this share count as equal."""


@dataclass(frozen=True)
class Lake:
    """A lake as arrays, all taken from gymnasium's own transition table.

    Args:
        rows: the map, one string a row.
        slippery: whether moves may slip.
        outcomes: cells that a move may end in, (S, A, K).
        chances: their probabilities, (S, A, K).
        transition: probability of every next cell, (S, A, S).
        reward: expected reward of a move, (S, A).
        aim: cell that a move leads to if it does not slip, (S, A).
        start: the cell where games begin.
        terminal: holes and goals, (S,).
        goal: goals, (S,).
        judged: cells that a policy is judged in: not terminal, and within reach of the start, (S,).
    """

    rows: list[str]
    slippery: bool
    outcomes: Integers
    chances: Array
    transition: Array
    reward: Array
    aim: Integers
    start: int
    terminal: NDArray[np.bool_]
    goal: NDArray[np.bool_]
    judged: NDArray[np.bool_]

    @property
    def num_cells(self) -> int:
        """S."""
        return len(self.terminal)


def make_lake(map_or_name: str | Sequence[str], *, slippery: bool = False) -> Lake:
    """Build a lake from the name of one of gymnasium's maps, or from rows of letters.

    Raises:
        UserError: gymnasium is missing, or the map cannot be played; the message names row, column and letter.
    """
    try:
        from gymnasium.envs.toy_text import frozen_lake
    except ImportError as error:
        raise UserError("The lake needs gymnasium. Install it with: pip install 'lit-ift[lake]'") from error
    if isinstance(map_or_name, str) and map_or_name not in frozen_lake.MAPS:
        raise UserError(
            f"lake.map={map_or_name!r} is none of gymnasium's maps: {', '.join(frozen_lake.MAPS)}. Name one of them, "
            'or give the rows of your own, such as ["SFF", "FHF", "FFG"].'
        )
    rows = list(frozen_lake.MAPS[map_or_name] if isinstance(map_or_name, str) else map_or_name)
    check_map(rows)
    # Letter by letter: a row of one letter would be taken for a letter.
    desc: Any = [list(row) for row in rows]
    table, dry = (frozen_lake.FrozenLakeEnv(desc=desc, is_slippery=slips).P for slips in (slippery, False))
    letters = np.array(desc).reshape(-1)
    cells, actions, width = len(letters), len(ACTIONS), 3 if slippery else 1
    outcomes, chances = np.zeros((cells, actions, width), dtype=np.int64), np.zeros((cells, actions, width))
    transition, reward = np.zeros((cells, actions, cells)), np.zeros((cells, actions))
    aim = np.zeros((cells, actions), dtype=np.int64)
    for cell, action in np.ndindex(cells, actions):
        aim[cell, action] = dry[cell][action][0][1]
        for k, (chance, after, gain, _) in enumerate(table[cell][action]):
            outcomes[cell, action, k], chances[cell, action, k] = after, chance
            transition[cell, action, after] += chance
            reward[cell, action] += chance * gain
    terminal = np.isin(letters, ["H", "G"])
    start = int((letters == "S").argmax())
    reached = _reached(aim, terminal, start)
    if not (reached & (letters == "G")).any():
        row, column = divmod(start, len(rows[0]))
        raise UserError(
            f"lake.map: no path leads from the start (row {row + 1} column {column + 1}) to a goal. "
            "Turn holes (H) on the way into ice (F)."
        )
    return Lake(
        rows=rows,
        slippery=slippery,
        outcomes=outcomes,
        chances=chances,
        transition=transition,
        reward=reward,
        aim=aim,
        start=start,
        terminal=terminal,
        goal=letters == "G",
        judged=reached & ~terminal,
    )


def check_map(rows: Sequence[str]) -> None:
    """Refuse a map that is no map.

    Raises:
        UserError: it is empty or ragged, has an unknown letter, not exactly one start, or no goal.
    """
    known = ", ".join(f"{letter} ({name})" for letter, name in LETTERS.items())
    if not rows or not all(isinstance(row, str) and row for row in rows):
        raise UserError(f"lake.map={list(rows)!r} is empty or has an empty row. Give at least one row of {known}.")
    starts = []
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise UserError(
                f"lake.map: row {number}, {row!r}, has {len(row)} cells, row 1 has {len(rows[0])}. "
                "Make all rows equally long."
            )
        for column, letter in enumerate(row, 1):
            if letter not in LETTERS:
                raise UserError(f"lake.map: row {number}, column {column} is {letter!r}. Use {known}.")
            if letter == "S":
                starts.append(f"row {number} column {column}")
    if len(starts) != 1:
        where = f": {', '.join(starts)}" if starts else ""
        raise UserError(f"lake.map has {len(starts)} starts{where}. Put S in exactly one cell.")
    if not any("G" in row for row in rows):
        raise UserError("lake.map has no goal. Put G in at least one cell.")


def _reached(aim: Integers, terminal: NDArray[np.bool_], start: int) -> NDArray[np.bool_]:
    """Cells that play from the start can come to, (S,). Play ends in holes and goals."""
    reached = np.zeros_like(terminal)
    reached[start] = True
    while True:
        further = reached.copy()
        further[aim[reached & ~terminal]] = True
        if (further == reached).all():
            return reached
        reached = further


def value_iteration(lake: Lake, discount: float) -> tuple[Array, Array]:
    """Optimal values of cells, (S,), and of moves, (S, A), for a reward of 1 at a goal.

    Args:
        lake: the lake.
        discount: what a reward is worth one move later, in (0, 1); below 1 it makes a short way better than a long one.
    """
    values = np.zeros(lake.num_cells)
    while True:
        of_moves = lake.reward + discount * lake.transition @ values
        new = of_moves.max(axis=1)
        if (np.abs(new - values) <= CONVERGED * new).all():
            return new, lake.reward + discount * lake.transition @ new
        values = new


def optimal_policy(lake: Lake, discount: float, *, ties: Ties = "first") -> Array:
    """The optimal policy as a matrix of probabilities, (S, A); rows of cells that are not judged are uniform.

    Args:
        lake: the lake.
        discount: see ``value_iteration``.
        ties: of several optimal actions in a cell, ``first`` takes the first in the order left, down, right, up, so
            that the policy is deterministic, as the route to be imitated is; ``uniform`` shares between them.

    Raises:
        UserError: the discount is so small that somewhere the goal is worth nothing.
    """
    values, of_moves = value_iteration(lake, discount)
    if values[lake.judged].min() < TINY:
        raise UserError(
            f"lake.discount={discount}: from the cell farthest away the goal is worth less than {TINY:g}, too little "
            "for a computer to tell good moves from bad ones. Take a discount nearer to 1."
        )
    best = of_moves >= of_moves.max(axis=1, keepdims=True) * (1 - EQUAL)
    policy: Array = best / best.sum(axis=1, keepdims=True)
    if ties == "first":
        policy = np.eye(len(ACTIONS))[best.argmax(axis=1)]
    policy[~lake.judged] = 1 / len(ACTIONS)
    return policy
