"""The lake: gymnasium's map and transition table, checked, and what classical planning makes of it.

S cells, row by row; A = 4 actions in gymnasium's order: left, down, right, up; K outcomes of a move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lit_ift.errors import UserError, needing
from lit_ift.frozen_lake.result import Array

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
    """A lake as arrays, all taken from gymnasium's own transition table."""

    rows: list[str]  # the map, one string a row
    slippery: bool  # whether moves may slip
    outcomes: Integers  # cells that a move may end in, (S, A, K)
    chances: Array  # their probabilities, (S, A, K)
    transition: Array  # probability of every next cell, (S, A, S)
    reward: Array  # expected reward of a move, (S, A)
    aim: Integers  # cell that a move leads to if it does not slip, (S, A)
    start: int  # the cell where games begin
    terminal: NDArray[np.bool_]  # holes and goals, (S,)
    goal: NDArray[np.bool_]  # goals, (S,)
    judged: NDArray[np.bool_]  # cells that a policy is judged in: not terminal, within reach of the start, (S,)

    @property
    def num_cells(self) -> int:
        """S."""
        return len(self.terminal)


def make_lake(map_or_name: str | Sequence[str], *, slippery: bool = False) -> Lake:
    """Build a lake from the name of one of gymnasium's maps, or from rows of letters.

    Raises:
        UserError: gymnasium is missing, or the map cannot be played; the message names row, column and letter.
    """
    with needing("gymnasium", "lake", "The lake"):
        from gymnasium.envs.toy_text import frozen_lake
    if isinstance(map_or_name, str) and map_or_name not in frozen_lake.MAPS:
        raise UserError(
            f"lake.map={map_or_name!r} is none of gymnasium's maps: {', '.join(frozen_lake.MAPS)}. Name one of them, "
            'or give the rows of your own, such as ["SFF", "FHF", "FFG"].'
        )
    rows = list(frozen_lake.MAPS[map_or_name] if isinstance(map_or_name, str) else map_or_name)
    check_map(rows)
    # Letter by letter: a row of one letter would be taken for a letter.
    desc: Any = [list(row) for row in rows]
    letters = np.array(desc).reshape(-1)
    terminal, goal, start = np.isin(letters, ["H", "G"]), letters == "G", int((letters == "S").argmax())
    moves = frozen_lake.FrozenLakeEnv(desc=desc, is_slippery=slippery).P
    width = 3 if slippery else 1
    # A terminal cell has one outcome, itself, which stands for all.
    table = np.array([[(moves[s][a] * width)[:width] for a in range(len(ACTIONS))] for s in range(len(letters))])
    chances = np.where(terminal[:, None, None], 1 / width, table[..., 0])
    outcomes = table[..., 1].astype(np.int64)
    transition = np.zeros((len(letters), len(ACTIONS), len(letters)))
    at = np.arange(len(letters))[:, None, None], np.arange(len(ACTIONS))[:, None]
    np.add.at(transition, (*at, outcomes), chances)
    aim = outcomes[..., width // 2]  # Slips to either side stand around it.
    reached = np.zeros_like(terminal)
    reached[start] = True
    for _ in letters:
        reached[aim[reached & ~terminal]] = True
    if not (reached & goal).any():
        row, column = divmod(start, len(rows[0]))
        raise UserError(
            f"lake.map: no path leads from the start (row {row + 1} column {column + 1}) to a goal. "
            "Turn holes (H) on the way into ice (F)."
        )
    reward = (chances * table[..., 2]).sum(-1)
    return Lake(rows, slippery, outcomes, chances, transition, reward, aim, start, terminal, goal, reached & ~terminal)


def check_map(rows: Sequence[str]) -> None:
    """Refuse a map that is no map.

    Raises:
        UserError: it is empty or ragged, has an unknown letter, not exactly one start, or no goal.
    """
    known = ", ".join(f"{letter} ({name})" for letter, name in LETTERS.items())
    if not rows or not all(isinstance(row, str) and row for row in rows):
        raise UserError(f"lake.map={list(rows)!r} is empty or has an empty row. Give at least one row of {known}.")
    cells = [(f"row {y}", f"column {x}", letter) for y, row in enumerate(rows, 1) for x, letter in enumerate(row, 1)]
    starts = [f"{row} {column}" for row, column, letter in cells if letter == "S"]
    problems = [
        f"row {y}, {row!r}, has {len(row)} cells, row 1 has {len(rows[0])}. Make all rows equally long."
        for y, row in enumerate(rows, 1)
        if len(row) != len(rows[0])
    ]
    problems += [
        f"{row}, {column} is {letter!r}. Use {known}." for row, column, letter in cells if letter not in LETTERS
    ]
    if len(starts) != 1:
        where = f": {', '.join(starts)}" if starts else ""
        problems.append(f"it has {len(starts)} starts{where}. Put S in exactly one cell.")
    if not any("G" in row for row in rows):
        problems.append("it has no goal. Put G in at least one cell.")
    if problems:
        raise UserError(f"lake.map: {problems[0]}")


def value_iteration(lake: Lake, discount: float) -> tuple[Array, Array]:
    """Optimal values of cells, (S,), and of moves, (S, A), for a reward of 1 at a goal.

    The discount, what a reward is worth one move later, is in (0, 1): a short way is better than a long one.
    """
    values = np.zeros(lake.num_cells)
    while True:
        of_moves = lake.reward + discount * lake.transition @ values
        new = of_moves.max(axis=1)
        if (np.abs(new - values) <= CONVERGED * new).all():
            return new, lake.reward + discount * lake.transition @ new
        values = new


def optimal_policy(lake: Lake, discount: float) -> Array:
    """The optimal policy as a matrix of probabilities, (S, A); rows of cells that are not judged are uniform.

    Of several optimal actions in a cell it takes the first in the order left, down, right, up, so that it is
    deterministic, as the route to be imitated is.

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
    policy: Array = np.eye(len(ACTIONS))[best.argmax(axis=1)]
    policy[~lake.judged] = 1 / len(ACTIONS)
    return policy
