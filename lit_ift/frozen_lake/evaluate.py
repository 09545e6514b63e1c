"""What a policy is worth, computed from the transition table: exact, without playing a game.

M policies, S cells, A actions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_ift.frozen_lake.result import Array
from lit_ift.frozen_lake.world import Lake


@dataclass(frozen=True)
class Judge:
    """Measures policies on a lake.

    Args:
        lake: the lake.
        optimal: the optimal policy, (S, A).
        route: cells of the optimal route.
        discount: what a reward is worth one move later.
        horizon: moves that a game may last; then it is lost.
    """

    lake: Lake
    optimal: Array
    route: list[int]
    discount: float
    horizon: int

    def __call__(self, policies: Tensor) -> dict[str, Tensor]:
        """Every metric of ``lit_ift.frozen_lake.result.METRICS``, (M,) each, of policies (M, S, A) in float64.

        The MSEs are means over actions and over cells: those of the optimal route, or all that are judged. Terminal
        cells never count. Perturbed starts are all judged cells but the start, each as likely as any other.
        """
        errors = (policies - torch.from_numpy(self.optimal)).square().mean(-1)
        on_route = np.zeros_like(self.lake.judged)
        on_route[self.route] = True
        elsewhere = self.lake.judged.copy()
        elsewhere[self.lake.start] = False
        success = self.values(policies, 1.0)
        greedy = torch.nn.functional.one_hot(policies.argmax(-1), policies.shape[-1]).to(policies.dtype)
        start = self.lake.start
        return {
            "mse_trajectory": errors[:, on_route & self.lake.judged].mean(-1),
            "mse_all": errors[:, self.lake.judged].mean(-1),
            "success_greedy": self.values(greedy, 1.0)[:, start],
            "success_sampled": success[:, start],
            "return": self.values(policies, self.discount)[:, start],
            # A lake whose start is its only cell has no other to start from.
            "success_perturbed": success[:, elsewhere if elsewhere.any() else self.lake.judged].mean(-1),
        }

    def values(self, policies: Tensor, discount: float) -> Tensor:
        """Expected discounted reward of a game from every cell, (M, S); with discount 1 the chance of success."""
        cells, actions = self.lake.reward.shape
        table = torch.from_numpy(self.lake.transition.reshape(cells * actions, cells)).T
        reward = torch.from_numpy(self.lake.reward.reshape(-1))
        weights = policies.flatten(1)
        values = policies.new_zeros(len(policies), cells)
        for _ in range(self.horizon):
            # Column by column: what the moves are worth, then the mean over the policy's actions.
            values = (weights * (reward + discount * (values @ table))).view(-1, cells, actions).sum(-1)
        return values

    def visits(self, policies: Tensor) -> Tensor:
        """Expected number of visits to every cell in one game, (M, S); of a terminal cell the chance to end there."""
        cells, actions = self.lake.reward.shape
        table = torch.from_numpy(self.lake.transition.reshape(cells * actions, cells))
        playing = torch.from_numpy(~self.lake.terminal)
        here = policies.new_zeros(len(policies), cells)
        here[:, self.lake.start] = 1.0
        total = here.clone()
        for _ in range(self.horizon):
            here = ((here * playing).unsqueeze(-1) * policies).flatten(1) @ table
            total += here
        return total
