"""The two trajectories that are learned from: an optimal and a sub-optimal one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from lit_ift.errors import UserError
from lit_ift.frozen_lake.result import Array
from lit_ift.frozen_lake.world import ACTIONS, Lake

Suboptimal = Literal["longer", "hole"]

TRIES: Final = 10_000
"""Games that are sampled on a slippery lake to find a fitting one."""


@dataclass(frozen=True)
class Route:
    """A game: ``cells`` in order, the last one terminal, and the ``actions`` taken in all but the last."""

    cells: list[int]
    actions: list[int]


def optimal_route(lake: Lake, policy: Array, horizon: int, seed: int) -> Route:
    """The way that the optimal ``policy``, (S, A), goes within ``horizon`` moves.

    Where nothing slips there is one, taking the first of several optimal actions. On a slippery lake it is the first
    game, sampled with ``seed``, that reaches a goal; what is imitated are its cells and the actions chosen in them, not
    the slips.

    Raises:
        UserError: no game reaches a goal within the horizon.
    """
    for route in _games(lake, policy, horizon, [seed, 0]):
        if lake.goal[route.cells[-1]]:
            return route
    if not lake.slippery:
        raise UserError(f"The shortest way to a goal takes more than lake.horizon={horizon} moves. Raise it.")
    raise UserError(
        f"None of {TRIES} games of the optimal policy reaches a goal within lake.horizon={horizon} moves. "
        "Raise lake.horizon, or take a map with fewer holes."
    )


def suboptimal_route(lake: Lake, kind: Suboptimal, best: Route, policy: Array, horizon: int, seed: int) -> Route:
    """A worse way than ``best``.

    ``longer`` reaches a goal in more moves, ``hole`` ends in a hole. Where nothing slips it is the shortest such way
    that enters no cell twice; of several, one that leaves ``best`` earliest, then the first in the order of actions.
    On a slippery lake it is the first such game of a player who moves at random every second time, else by ``policy``.

    Raises:
        UserError: the lake has no such way within ``horizon`` moves.
    """
    ends = lake.goal if kind == "longer" else lake.terminal & ~lake.goal
    fewest = len(best.actions) + 1 if kind == "longer" else 1
    found: Route | None
    if lake.slippery:
        games = _games(lake, 0.5 * policy + 0.5 / len(ACTIONS), horizon, [seed, 1])
        found = next((game for game in games if ends[game.cells[-1]] and len(game.actions) >= fewest), None)
    else:
        found = _shortest(lake, ends, fewest, best, horizon)
    if found is None:
        what, other = ("longer way to a goal", "hole") if kind == "longer" else ("way into a hole", "longer")
        raise UserError(
            f"lake.suboptimal={kind!r}: the map has no {what} within lake.horizon={horizon} moves. "
            f"Take lake.suboptimal={other!r}, or another map."
        )
    return found


def _games(lake: Lake, policy: Array, horizon: int, seed: list[int]) -> Iterator[Route]:
    """Games of a policy, sampled one after the other; one alone where all are the same."""
    generator = np.random.default_rng(seed)
    return (sampled_route(lake, policy, horizon, generator) for _ in range(TRIES if lake.slippery else 1))


def sampled_route(lake: Lake, policy: Array, horizon: int, generator: np.random.Generator) -> Route:
    """One game of a policy, (S, A), with actions and slips sampled."""
    cells, actions = [lake.start], list[int]()
    while not lake.terminal[cells[-1]] and len(actions) < horizon:
        action = int(generator.choice(len(ACTIONS), p=policy[cells[-1]]))
        cells.append(int(generator.choice(lake.outcomes[cells[-1], action], p=lake.chances[cells[-1], action])))
        actions.append(action)
    return Route(cells, actions)


def _shortest(lake: Lake, ends: NDArray[np.bool_], fewest: int, best: Route, horizon: int) -> Route | None:
    """The shortest way of at least so many moves to one of the ``ends`` that enters no cell twice and leaves ``best``.

    Of several it is the one that leaves earliest.
    """
    rows, columns = np.divmod(np.arange(lake.num_cells), len(lake.rows[0]))
    colours = (rows + columns) % 2
    for length in range(fewest, min(horizon, int(lake.judged.sum())) + 1):
        # As on a chessboard, every move changes the colour: so many moves cannot end on just any of them.
        fitting = ends & (colours == (colours[lake.start] + length) % 2)
        for shared in range(len(best.actions)):
            start = Route(best.cells[: shared + 1], best.actions[:shared])
            found = _extended(lake, start, length, fitting, avoid=best.actions[shared])
            if found is not None:
                return found
    return None


def _extended(lake: Lake, way: Route, length: int, ends: NDArray[np.bool_], avoid: int | None = None) -> Route | None:
    """The first way of exactly ``length`` moves to one of the ``ends``, (S,), that begins with ``way``.

    It enters no cell twice, and does not go on from ``way`` with the action to ``avoid``.
    """
    here, left = way.cells[-1], length - len(way.actions)
    if left == 0 or lake.terminal[here]:
        return way if left == 0 and ends[here] else None
    # Without a look at what is still open, all ways through a dead end would be tried: too many to wait for.
    distance = _distances(lake, ends, way.cells)
    for action, after in enumerate(lake.aim[here].tolist()):
        if action != avoid and after not in way.cells and distance[after] < left:
            found = _extended(lake, Route([*way.cells, after], [*way.actions, action]), length, ends)
            if found is not None:
                return found
    return None


def _distances(lake: Lake, ends: NDArray[np.bool_], closed: list[int]) -> NDArray[np.float64]:
    """Moves to the nearest of the ``ends`` from every cell around the ``closed`` ones, (S,); infinite without a way."""
    distance = np.where(ends, 0.0, np.inf)
    may_pass = ~lake.terminal
    may_pass[closed] = False
    while True:
        nearer = np.where(may_pass, np.minimum(distance, 1 + distance[lake.aim].min(axis=1)), distance)
        if (nearer == distance).all():
            return distance
        distance = nearer
