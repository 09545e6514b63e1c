"""What a study of the Frozen Lake game found out: plain arrays, from which figures, tables and files are made.

S cells of the map, row by row; A = 4 actions in gymnasium's order: left, down, right, up; N seeds; K points in time.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

METRICS = {
    "mse_trajectory": "MSE to the optimal policy, cells of the optimal route",
    "mse_all": "MSE to the optimal policy, all cells",
    "success_greedy": "success of greedy play",
    "success_sampled": "success of sampled play",
    "return": "discounted return of sampled play",
    "success_perturbed": "success of sampled play from perturbed starts",
}
"""Names of the metrics and what they are. The MSEs are better when lower, all others are shares in [0, 1]."""


@dataclass(frozen=True)
class Outcome:
    """One method on one lake, over all seeds."""

    name: str  # as in the configuration, such as ``ift``
    label: str  # as in figures, such as ``IFT``
    learning_rate: float  # the one that was chosen for it
    metrics: dict[str, Array]  # metric -> one value a seed, (N,)
    steps: NDArray[np.int64]  # numbers of updates at which the curves were taken, (K,)
    curves: dict[str, Array]  # metric -> its value over training, (N, K)
    policies: Array  # probability of every action in every cell at the end, (N, S, A)
    visits: Array  # expected number of visits to every cell in one sampled game, mean over seeds, (S,)
    moves: float = 0.0  # moves on the lake that a policy made to be trained; only on-policy methods make any

    def mean(self, metric: str) -> float:
        """Mean over seeds."""
        return float(self.metrics[metric].mean())

    def standard_error(self, metric: str) -> float:
        """Standard error of the mean over seeds."""
        values = self.metrics[metric]
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Study:
    """All methods on one lake."""

    rows: list[str]  # the map, one string a row, of the letters S, F, H, G
    slippery: bool  # whether moves may slip
    optimal: Array  # optimal policy, (S, A)
    start: Array  # the policy that training began from, mean over seeds, (S, A)
    chosen: list[int]  # cells of the optimal route in order
    rejected: list[int]  # cells of the sub-optimal route in order
    outcomes: list[Outcome]  # one a method, in the order of the configuration
    settings: dict[str, Any] = field(default_factory=dict)  # the whole configuration, as plain values
    seconds: float = 0.0  # how long the study took

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return len(self.rows), len(self.rows[0])
