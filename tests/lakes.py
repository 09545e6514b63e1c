"""Small studies and games of the lake for tests."""

from typing import Any

import torch

from lit_ift.frozen_lake.game import Game, make_game
from lit_ift.frozen_lake.methods import Lesson, Objective
from lit_ift.frozen_lake.policy import Loss, Members, cell_features
from lit_ift.frozen_lake.settings import LakeOptions, PolicyOptions, Protocol, Settings, StartOptions

SMALL = ["SFF", "FHF", "FFG"]
"""Down, down, right, right; or right, right, down, down. No longer way enters no cell twice."""


def tiny_settings(**changes: Any) -> Settings:
    """A study that takes a second."""
    given = {
        "lake": LakeOptions(horizon=30),
        "policy": PolicyOptions(hidden=8),
        "start": StartOptions(updates=10),
        "protocol": Protocol(updates=8, learning_rates=[1e-3, 1e-2], tuning_seeds=2, seeds=3, points=4),
        "methods": ["sft", "ift"],
        "figures": False,
        "animations": False,
        "progress": False,
    }
    return Settings(**{**given, **changes})


def small_game(**options: Any) -> Game:
    """A game on a map of gymnasium's, or on the one that is given."""
    return make_game(LakeOptions(**{"horizon": 30, **options}), seed=0)


def members_of(game: Game, seeds: list[int], rates: int = 1, hidden: int = 8) -> Members:
    """Untrained policies that see cells one-hot."""
    return Members(cell_features(game.lake, "one_hot"), hidden, seeds, rates)


def lesson_of(game: Game, policy: Members, updates: int = 10) -> Lesson:
    """What a run on a game is given, with uniform policies as the reference."""
    reference = torch.full_like(policy.table().detach(), 0.25).log()
    return Lesson(game, reference, updates)


def loss_of(objective: Objective, lesson: Lesson) -> Loss:
    """What members are trained for in a lesson."""
    return lambda policy, step: objective.losses(policy, lesson, step)
