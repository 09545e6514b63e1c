"""Two-layer policies, many at once, trained by Lightning.

R learning rates, N seeds, M = R·N members, T positions, F features, H hidden units, S cells, A actions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lit_ift.frozen_lake.world import ACTIONS, Lake
from lit_ift.modules.optim import CosineSchedule

Features = Literal["one_hot", "coordinates"]


class Members(nn.Module):
    """R·N independent policies, member r·N + n being that of rate r and seed n; every rate has own parameters.

    Rates begin alike. The weights of a seed depend on that seed alone, so a member is the same in any company. All in
    float64, which costs little at this size and keeps rounding out of the comparison. ``features``, (S, F), are what a
    policy sees of each cell.
    """

    features: Tensor

    def __init__(self, features: Tensor, hidden: int, seeds: Sequence[int], rates: int) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.seeds = list(seeds)
        self.rates = rates
        weights = [_initial(features.shape[1], hidden, seed) for seed in self.seeds]
        stacked = [torch.stack(tensors) for tensors in zip(*weights, strict=True)]
        self.groups = nn.ModuleList(
            nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in stacked]) for _ in range(rates)
        )

    @property
    def num_members(self) -> int:
        """M."""
        return self.rates * len(self.seeds)

    def weights(self) -> list[Tensor]:
        """Weights and biases of both layers, the members' in the first dimension: (M, F, H), (M, 1, H), …"""
        parts: list[tuple[Tensor, ...]] = list(zip(*self.groups, strict=True))
        return [torch.cat(tensors) if len(tensors) > 1 else tensors[0] for tensors in parts]

    @torch.no_grad()
    def start_from(self, weights: Sequence[Tensor]) -> None:
        """Set the weights of every rate to those of N trained members, as ``weights`` returns them."""
        for group in self.groups:
            for parameter, value in zip(group.parameters(), weights, strict=True):
                parameter.copy_(value)

    def forward(self, inputs: Tensor) -> Tensor:
        """Log-probabilities of actions [nats], (M, T, F) -> (M, T, A)."""
        first, first_bias, second, second_bias = self.weights()
        hidden = torch.baddbmm(first_bias, inputs, first).relu()
        logits: Tensor = torch.baddbmm(second_bias, hidden, second)
        return logits.log_softmax(-1)

    def see(self, cells: Tensor) -> Tensor:
        """What every member sees of cells, (T,) for all members alike or (M, T), as (M, T, F)."""
        return self.features[cells].expand(self.num_members, -1, -1)

    def table(self) -> Tensor:
        """Log-probabilities in every cell, (M, S, A)."""
        logps: Tensor = self(self.features.expand(self.num_members, -1, -1))
        return logps

    @torch.no_grad()
    def policies(self) -> Tensor:
        """Probabilities in every cell, (M, S, A)."""
        return self.table().exp()


def _initial(inputs: int, hidden: int, seed: int) -> list[Tensor]:
    """Weights and biases of both layers, uniform within ±1/sqrt(fan-in), as in ``torch.nn.Linear``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((inputs, hidden), (1, hidden), (hidden, len(ACTIONS)), (1, len(ACTIONS)))
    fans = (inputs, inputs, hidden, hidden)
    return [
        (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) / math.sqrt(fan)
        for shape, fan in zip(shapes, fans, strict=True)
    ]


def cell_features(lake: Lake, kind: Features) -> Tensor:
    """What a policy sees of each cell: (S, S) for ``one_hot``; (S, 2) for ``coordinates``, scaled to [-1, 1]."""
    if kind == "one_hot":
        return torch.eye(lake.num_cells, dtype=torch.float64)
    height, width = len(lake.rows), len(lake.rows[0])
    rows, columns = np.divmod(np.arange(lake.num_cells), width)
    scaled = [2 * rows / max(1, height - 1) - 1, 2 * columns / max(1, width - 1) - 1]
    return torch.from_numpy(np.stack(scaled, axis=1))


Loss = Callable[[Members, int], Tensor]
"""One loss a member, (M,), in an update; each a function of that member's parameters alone."""


class PolicyModule(L.LightningModule):
    """Trains all members at once, each as if it were alone.

    The members' losses are summed, never averaged, and RMSprop works on each parameter by itself: so no member's
    update depends on another member. Learning rates, one a rate of ``policy``, warm up over a share of the updates and
    fall along a cosine.
    """

    def __init__(
        self, policy: Members, loss: Loss, learning_rates: Sequence[float], updates: int, warmup: float
    ) -> None:
        super().__init__()
        self.policy, self.loss, self.learning_rates = policy, loss, learning_rates
        self.updates, self.warmup = updates, warmup

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        return self.loss(self.policy, batch).sum()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = [
            {"params": list(group.parameters()), "lr": rate}
            for group, rate in zip(self.policy.groups, self.learning_rates, strict=True)
        ]
        optimizer = torch.optim.RMSprop(groups)
        schedule = CosineSchedule(optimizer, warmup=self.warmup, total_steps=self.updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(module: PolicyModule, callbacks: Sequence[L.Callback] = ()) -> None:
    """Run all updates of a module; its batches are the numbers of the updates."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # A list is an iterable of batches, which is all that Lightning asks for.
    trainer.fit(module, train_dataloaders=list(range(module.updates)))
