"""Studies of the lake with made-up numbers, for tests of what is drawn from them."""

from collections.abc import Sequence

import numpy as np

from lit_ift.frozen_lake.result import METRICS, Array, Outcome, Study

SMALL = ["SFFF", "FHFH", "FFFH", "HFFG"]
LARGE = ["SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"]
WIDE = ["SFFFF", "FHFFG"]
HORIZON = 80
"""Moves that a game on them may last."""


def policies(shape: tuple[int, ...], seed: int) -> Array:
    """Random probabilities of the four actions, (*shape, 4)."""
    return np.random.default_rng(seed).dirichlet(np.ones(4), shape)


def make_study(
    rows: Sequence[str] = SMALL, names: Sequence[str] = ("sft", "ift"), seeds: int = 4, slippery: bool = False
) -> Study:
    """A study in which every number differs from every other."""
    cells = len(rows) * len(rows[0])
    random = np.random.default_rng(0)
    outcomes = [
        Outcome(
            name=name,
            label=name.upper(),
            learning_rate=0.01,
            metrics={metric: random.uniform(0.05, 0.9, seeds) for metric in METRICS},
            steps=np.arange(5) * 10,
            curves={metric: random.uniform(0.05, 0.9, (seeds, 5)) for metric in ("mse_all", "success_sampled")},
            policies=policies((seeds, cells), index),
            visits=random.uniform(0, 2, cells),
        )
        for index, name in enumerate(names)
    ]
    last = cells - 1
    below = list(range(0, cells, len(rows[0])))
    return Study(
        rows=list(rows),
        slippery=slippery,
        optimal=policies((cells,), 100),
        start=policies((cells,), 101),
        chosen=[*below, last],
        rejected=[0, 1, last],
        outcomes=outcomes,
        settings={"lake": {"horizon": HORIZON}},
    )
