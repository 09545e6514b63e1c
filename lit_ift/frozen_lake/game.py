"""A lake with all that is known of it before training, and the exact worth of policies: no game is played.

M policies, S cells, A actions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_ift.frozen_lake.result import Array
from lit_ift.frozen_lake.routes import Route, optimal_route, suboptimal_route
from lit_ift.frozen_lake.settings import LakeOptions
from lit_ift.frozen_lake.world import Lake, make_lake, optimal_policy


@dataclass(frozen=True)
class Game:
    """A lake, its optimum, and the two routes that are learned from."""

    lake: Lake
    optimal: Array  # the optimal policy, (S, A)
    chosen: Route  # the optimal route
    rejected: Route  # the sub-optimal route
    discount: float  # what a reward is worth one move later
    horizon: int  # moves that a game may last; then it is lost

    def judge(self, policies: Tensor) -> dict[str, Tensor]:
        """Every metric of ``lit_ift.frozen_lake.result.METRICS``, (M,) each, of policies (M, S, A) in float64.

        The MSEs are means over actions and over cells: those of the optimal route, or all that are judged. Terminal
        cells never count. Perturbed starts are all judged cells but the start, each as likely as any other.
        """
        errors = (policies - torch.from_numpy(self.optimal)).square().mean(-1)
        cells, judged, start = np.arange(self.lake.num_cells), self.lake.judged, self.lake.start
        elsewhere = judged & (cells != start)
        success = self.values(policies, 1.0)
        greedy = torch.nn.functional.one_hot(policies.argmax(-1), policies.shape[-1]).to(policies.dtype)
        return {
            "mse_trajectory": errors[:, judged & np.isin(cells, self.chosen.cells)].mean(-1),
            "mse_all": errors[:, judged].mean(-1),
            "success_greedy": self.values(greedy, 1.0)[:, start],
            "success_sampled": success[:, start],
            "return": self.values(policies, self.discount)[:, start],
            # A lake whose start is its only cell has no other to start from.
            "success_perturbed": success[:, elsewhere if elsewhere.any() else judged].mean(-1),
        }

    def values(self, policies: Tensor, discount: float) -> Tensor:
        """Expected discounted reward of a game from every cell, (M, S); with discount 1 the chance of success."""
        cells, actions = self.lake.reward.shape
        table = self._moves().T
        reward = torch.from_numpy(self.lake.reward.reshape(-1))
        weights = policies.flatten(1)
        values = policies.new_zeros(len(policies), cells)
        for _ in range(self.horizon):
            # Column by column: what the moves are worth, then the mean over the policy's actions.
            values = (weights * (reward + discount * (values @ table))).view(-1, cells, actions).sum(-1)
        return values

    def visits(self, policies: Tensor) -> Tensor:
        """Expected number of visits to every cell in one game, (M, S); of a terminal cell the chance to end there."""
        table, playing = self._moves(), torch.from_numpy(~self.lake.terminal)
        here = policies.new_zeros(len(policies), self.lake.num_cells)
        here[:, self.lake.start] = 1.0
        total = here.clone()
        for _ in range(self.horizon):
            here = ((here * playing).unsqueeze(-1) * policies).flatten(1) @ table
            total += here
        return total

    def _moves(self) -> Tensor:
        """Probability of every next cell by cell and action, (S·A, S)."""
        return torch.from_numpy(self.lake.transition.reshape(-1, self.lake.num_cells))


def make_game(options: LakeOptions, seed: int) -> Game:
    """Plan on the lake; the seed is that of the routes on a slippery one, which are sampled.

    Raises:
        UserError: the map cannot be played or has no such routes.
    """
    lake = make_lake(options.map, slippery=options.slippery)
    optimal = optimal_policy(lake, options.discount)
    chosen = optimal_route(lake, optimal, options.horizon, seed)
    rejected = suboptimal_route(lake, options.suboptimal, chosen, optimal, options.horizon, seed)
    return Game(lake, optimal, chosen, rejected, options.discount, options.horizon)
