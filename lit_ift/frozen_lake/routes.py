"""The two trajectories that are learned from: an optimal and a sub-optimal one."""

from collections import deque
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
    """The way that the optimal policy goes.

    Where nothing slips there is one, taking the first of several optimal actions. On a slippery lake it is the first
    sampled game that reaches a goal; what is imitated are its cells and the actions chosen in them, not the slips.

    Args:
        lake: the lake.
        policy: the optimal policy, (S, A).
        horizon: moves that a game may last.
        seed: of the sampling.

    Raises:
        UserError: no game reaches a goal within the horizon.
    """
    if lake.slippery:
        generator = np.random.default_rng([seed, 0])
        for _ in range(TRIES):
            route = sampled_route(lake, policy, horizon, generator)
            if lake.goal[route.cells[-1]]:
                return route
        raise UserError(
            f"None of {TRIES} games of the optimal policy reaches a goal within lake.horizon={horizon} moves. "
            "Raise lake.horizon, or take a map with fewer holes."
        )
    cells, actions = [lake.start], list[int]()
    while not lake.terminal[cells[-1]]:
        if len(actions) == horizon:
            raise UserError(f"The shortest way to a goal takes more than lake.horizon={horizon} moves. Raise it.")
        actions.append(int(policy[cells[-1]].argmax()))
        cells.append(int(lake.aim[cells[-1], actions[-1]]))
    return Route(cells, actions)


def suboptimal_route(lake: Lake, kind: Suboptimal, best: Route, policy: Array, horizon: int, seed: int) -> Route:
    """A worse way than ``best``.

    ``longer`` reaches a goal in more moves, ``hole`` ends in a hole. Where nothing slips it is the shortest such way
    that enters no cell twice; of several, one that leaves ``best`` earliest, then the first in the order of actions.
    On a slippery lake it is the first such game of a player who moves at random every second time.

    Args:
        lake: the lake.
        kind: how it is worse.
        best: the optimal route.
        policy: the optimal policy, (S, A).
        horizon: moves that a game may last.
        seed: of the sampling.

    Raises:
        UserError: the lake has no such way.
    """
    found: Route | None = None
    if lake.slippery:
        generator = np.random.default_rng([seed, 1])
        clumsy = 0.5 * policy + 0.5 / len(ACTIONS)
        for _ in range(TRIES):
            game = sampled_route(lake, clumsy, horizon, generator)
            end = game.cells[-1]
            if lake.terminal[end] and not lake.goal[end] if kind == "hole" else _is_longer(lake, game, best):
                found = game
                break
    else:
        found = _shortest(lake, kind, best, horizon)
    if found is None:
        what = "longer way to a goal" if kind == "longer" else "way into a hole"
        other = "hole" if kind == "longer" else "longer"
        raise UserError(
            f"lake.suboptimal={kind!r}: the map has no {what} within lake.horizon={horizon} moves. "
            f"Take lake.suboptimal={other!r}, or another map."
        )
    return found


def _is_longer(lake: Lake, game: Route, best: Route) -> bool:
    return bool(lake.goal[game.cells[-1]]) and len(game.actions) > len(best.actions)


def sampled_route(lake: Lake, policy: Array, horizon: int, generator: np.random.Generator) -> Route:
    """One game of a policy, (S, A), with actions and slips sampled."""
    cells, actions = [lake.start], list[int]()
    while not lake.terminal[cells[-1]] and len(actions) < horizon:
        action = int(generator.choice(len(ACTIONS), p=policy[cells[-1]]))
        cells.append(int(generator.choice(lake.outcomes[cells[-1], action], p=lake.chances[cells[-1], action])))
        actions.append(action)
    return Route(cells, actions)


def _shortest(lake: Lake, kind: Suboptimal, best: Route, horizon: int) -> Route | None:
    ends = lake.goal if kind == "longer" else lake.terminal & ~lake.goal
    before = [sorted({int(c) for c in (lake.aim == cell).any(axis=1).nonzero()[0]}) for cell in range(lake.num_cells)]
    rows, columns = np.divmod(np.arange(lake.num_cells), len(lake.rows[0]))
    colours = (rows + columns) % 2
    shortest = len(best.actions) + 1 if kind == "longer" else 1
    longest = min(horizon, int(lake.judged.sum()))
    for length in range(shortest, longest + 1):
        # As on a chessboard, every move changes the colour: so many moves cannot end on just any of them.
        fitting = ends & (colours == (colours[lake.start] + length) % 2)
        for shared in range(len(best.actions)):
            found = _leaving_after(lake, best, shared, length, fitting, before)
            if found is not None:
                return found
    return None


def _leaving_after(
    lake: Lake, best: Route, shared: int, length: int, ends: NDArray[np.bool_], before: list[list[int]]
) -> Route | None:
    """The first way of exactly ``length`` moves to one of ``ends`` that leaves ``best`` after ``shared`` moves."""
    cells, actions = best.cells[: shared + 1], best.actions[:shared]

    def extend() -> bool:
        cell, left = cells[-1], length - len(actions)
        if left == 0:
            return bool(ends[cell])
        if lake.terminal[cell]:
            return False
        # Without a look at what is still open, all ways through a dead end would be tried: too many to wait for.
        distance = _distances(lake, ends, before, cells)
        for action in range(len(ACTIONS)):
            after = int(lake.aim[cell, action])
            if after in cells or (len(actions) == shared and action == best.actions[shared]):
                continue
            if distance.get(after, length) > left - 1:
                continue
            cells.append(after)
            actions.append(action)
            if extend():
                return True
            cells.pop()
            actions.pop()
        return False

    return Route(cells, actions) if extend() else None


def _distances(lake: Lake, ends: NDArray[np.bool_], before: list[list[int]], closed: list[int]) -> dict[int, int]:
    """Moves to the nearest of ``ends`` from every cell that has a way there around the ``closed`` ones.

    Args:
        lake: the lake.
        ends: where to, (S,).
        before: of every cell those that a move leads from to it.
        closed: cells that must not be entered.
    """
    found = {int(cell): 0 for cell in ends.nonzero()[0]}
    queue = deque(found)
    while queue:
        cell = queue.popleft()
        for other in before[cell]:
            if other not in found and not lake.terminal[other] and other not in closed:
                found[other] = found[cell] + 1
                queue.append(other)
    return found
