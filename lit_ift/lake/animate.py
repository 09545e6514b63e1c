"""Short animations of games on the lake, one GIF a method."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_ift.errors import UserError
from lit_ift.lake import style
from lit_ift.lake.figures import STEPS, draw_lake, draw_policy
from lit_ift.lake.result import Array, Outcome, Study

ACTIONS = ("left", "down", "right", "up")

MAX_MOVES = 100
"""A game that has not ended by then is out of time; gymnasium's limit of the 4x4 lake."""

SEED = 0
"""All methods play with the same random numbers, so that what differs is the policy."""

Transitions = dict[int, dict[int, list[tuple[float, int, float, bool]]]]
"""Cell -> action -> (probability, next cell, reward, whether the game ends), as gymnasium has it."""


@dataclass(frozen=True)
class Game:
    """One game as it was played.

    Args:
        cells: visited cells in order, one more than actions.
        actions: actions chosen.
        slipped: whether a move went elsewhere than its action, one an action.
        end: ``goal``, ``hole`` or ``time``.
    """

    cells: list[int]
    actions: list[int]
    slipped: list[bool]
    end: str


def save_animations(study: Study, folder: Path) -> list[Path]:
    """Save ``play-<name>.gif`` for every method: one sampled game of the policy of the seed with the median MSE.

    Args:
        study: the lake and the methods' policies.
        folder: made if missing; files there of these names are replaced.

    Returns:
        Paths of the files, in the order of the methods. The same study gives the same bytes.

    Raises:
        UserError: gymnasium is not installed.
    """
    transitions = transition_table(study.rows, study.slippery)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for outcome in study.outcomes:
        policy = median_policy(outcome)
        game = play(study.rows, transitions, policy)
        frames = draw_game(study, outcome.label, policy, game)
        path = folder / f"play-{outcome.name}.gif"
        # Long games run faster, and the end stays in view.
        pace = int(np.clip(12_000 / len(frames), 120, 600))
        durations = [pace] * (len(frames) - 1) + [2_500]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)
        paths.append(path)
    return paths


def transition_table(rows: list[str], slippery: bool) -> Transitions:
    """Where each action may lead, from gymnasium's FrozenLake.

    Raises:
        UserError: gymnasium is not installed.
    """
    try:
        from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
    except ImportError as error:
        raise UserError("the animations need gymnasium's Frozen Lake: pip install 'lit-ift[lake]'") from error
    table: Transitions = FrozenLakeEnv(desc=rows, is_slippery=slippery).P
    return table


def median_policy(outcome: Outcome) -> Array:
    """The policy of the seed whose MSE over all cells is the median, the lower one of an even number, (S, A)."""
    order = np.argsort(outcome.metrics["mse_all"], kind="stable")
    policy: Array = outcome.policies[order[(len(order) - 1) // 2]]
    return policy


def play(rows: list[str], transitions: Transitions, policy: Array, seed: int = SEED) -> Game:
    """Play one game from the start, with actions and slips sampled.

    Args:
        rows: the map.
        transitions: that of ``transition_table``.
        policy: probability of every action in every cell, (S, A).
        seed: of actions and slips.
    """
    letters = "".join(rows)
    cell = letters.index("S")
    random = np.random.default_rng(seed)
    cells, actions, slipped = [cell], [], []
    while len(actions) < MAX_MOVES:
        action = int(random.choice(len(ACTIONS), p=policy[cell] / policy[cell].sum()))
        outcomes = transitions[cell][action]
        reached = outcomes[random.choice(len(outcomes), p=[outcome[0] for outcome in outcomes])]
        # Gymnasium lists the intended move between the slips to either side.
        slipped.append(reached[1] != outcomes[len(outcomes) // 2][1])
        actions.append(action)
        cell = reached[1]
        cells.append(cell)
        if reached[3]:
            return Game(cells, actions, slipped, "goal" if letters[cell] == "G" else "hole")
    return Game(cells, actions, slipped, "time")


def caption(label: str, game: Game, index: int) -> str:
    """What stands below frame ``index``: the step, the action about to be taken, and how the game ended."""
    slip = ", slipped" if index and game.slipped[index - 1] else ""
    if index < len(game.actions):
        return f"{label} · step {index + 1}: {ACTIONS[game.actions[index]]}" + (f" ({slip[2:]})" if slip else "")
    ends = {"goal": "goal reached", "hole": "fell into a hole", "time": "out of time"}
    return f"{label} · {ends[game.end]} after {len(game.actions)} steps"
