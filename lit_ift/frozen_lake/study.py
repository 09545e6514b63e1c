"""The comparison: the same search, the same budget and the same starts for every method.

R learning rates, N seeds, M = R·N members, S cells, A actions.
"""

import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_ift.errors import UserError
from lit_ift.frozen_lake.game import Game, make_game
from lit_ift.frozen_lake.methods import Lesson
from lit_ift.frozen_lake.policy import Loss, Members, PolicyModule, cell_features, train
from lit_ift.frozen_lake.result import METRICS, Array, Outcome, Study
from lit_ift.frozen_lake.settings import LABELS, Metric, Settings, StartOptions
from lit_ift.frozen_lake.world import ACTIONS


def pretraining_text(game: Game, options: StartOptions) -> Array:
    """How much of what the starting policy has seen is each action in each cell, (S, A), sums to 1.

    Aimless walks are taken as a whole, in expectation, rather than sampled.
    """
    shape = game.optimal.shape
    of_routes: list[Array] = []
    for route in (game.rejected, game.chosen):
        counts = np.zeros(shape)
        np.add.at(counts, (route.cells[:-1], route.actions), 1.0)
        of_routes.append(counts / counts.sum())
    if options.kind == "clone":
        return of_routes[0]
    aimless = torch.full((1, *shape), 1 / len(ACTIONS), dtype=torch.float64)
    visits: Array = game.visits(aimless)[0].numpy() * ~game.lake.terminal
    walks = np.repeat(visits[:, None] / (visits.sum() * len(ACTIONS)), len(ACTIONS), axis=1)
    return np.asarray(options.suboptimal * of_routes[0] + options.optimal * of_routes[1] + options.walks * walks)


class Recorder(L.Callback):
    """Takes all metrics before training and ``points`` times in its ``updates``, evenly, the last time at its end."""

    def __init__(self, game: Game, updates: int, points: int) -> None:
        self.game = game
        self.due = sorted({round(updates * i / points) for i in range(points + 1)})
        self.metrics: dict[int, dict[str, Tensor]] = {}
        """By the number of updates."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        self.metrics[trainer.global_step] = self.game.judge(pl_module.policy.policies())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in self.due:
            self.on_train_start(trainer, pl_module)


@dataclass(frozen=True)
class _Run:
    """What all runs of a study share."""

    settings: Settings
    game: Game

    def members(self, seeds: list[int], rates: int = 1) -> Members:
        policy = self.settings.policy
        features = cell_features(self.game.lake, policy.features)
        return Members(features, policy.hidden, seeds, rates)

    def fit(self, policy: Members, loss: Loss, rates: list[float], updates: int, *callbacks: L.Callback) -> None:
        train(PolicyModule(policy, loss, rates, updates, self.settings.protocol.warmup), callbacks)

    def starting_weights(self, seeds: list[int]) -> list[Tensor]:
        """Weights of the starting policy of every seed, trained by cross-entropy to a distribution over moves."""
        policy, options = self.members(seeds), self.settings.start
        if options.kind != "random":
            text = torch.from_numpy(pretraining_text(self.game, options))
            self.fit(policy, lambda p, _: -(text * p.table()).sum((1, 2)), [options.learning_rate], options.updates)
        return [weight.detach() for weight in policy.weights()]

    def train(
        self, name: str, seeds: list[int], start: list[Tensor], rates: list[float], *callbacks: L.Callback
    ) -> tuple[Members, Lesson]:
        """Train one method from the given weights with every learning rate."""
        policy = self.members(seeds, len(rates))
        policy.start_from(start)
        updates, objective = self.settings.protocol.updates, self.settings.objective(name)
        lesson = Lesson(self.game, policy.table().detach(), updates)
        self.fit(policy, lambda p, step: objective.losses(p, lesson, step), rates, updates, *callbacks)
        return policy, lesson

    def best_rates(self, name: str, seeds: list[int], start: list[Tensor]) -> dict[str, float]:
        """For each metric the learning rate with the best mean over the tuning seeds; of equals the lowest."""
        rates = sorted(self.settings.protocol.learning_rates)
        policy, _ = self.train(name, seeds, start, rates)
        found = {}
        for metric, values in self.game.judge(policy.policies()).items():
            means = values.view(len(rates), len(seeds)).mean(1)
            losses = means if metric.startswith("mse") else -means
            found[metric] = rates[int(losses.nan_to_num(nan=torch.inf).argmin())]
        return found

    def outcome(self, name: str, seeds: list[int], start: list[Tensor], rate: float) -> Outcome:
        """Judge a method on fresh seeds."""
        recorder = Recorder(self.game, self.settings.protocol.updates, self.settings.protocol.points)
        policy, lesson = self.train(name, seeds, start, [rate], recorder)
        policies = policy.policies()
        if not policies.isfinite().all():
            raise UserError(
                f"{LABELS[name]} with learning rate {rate} diverges on some seeds. "
                "Leave that rate out of protocol.learning_rates."
            )
        recorded = list(recorder.metrics.values())
        return Outcome(
            name=name,
            label=LABELS[name],
            learning_rate=rate,
            metrics={metric: recorded[-1][metric].numpy() for metric in METRICS},
            steps=np.array(list(recorder.metrics)),
            curves={metric: torch.stack([taken[metric] for taken in recorded], 1).numpy() for metric in METRICS},
            policies=policies.numpy(),
            visits=self.game.visits(policies).mean(0).numpy(),
            moves=lesson.moves,
        )


def run_study(settings: Settings) -> Study:
    """Run a whole study. The same settings give the same numbers.

    Every method starts, seed for seed, from the same policies; tries the same learning rates on the tuning seeds; and
    is judged with the best one on seeds that took no part in the choice.

    Raises:
        UserError: the map cannot be played or has no such routes, or a method diverges.
    """
    return run_studies(settings, [settings.protocol.tune_by])[0]


def run_studies(settings: Settings, choices: Sequence[Metric]) -> list[Study]:
    """Run a study once for each way to choose learning rates. What the studies have in common is done once.

    Args:
        settings: of all; ``protocol.tune_by`` has no effect.
        choices: metrics that choose, one a study.

    Returns:
        As many studies, each as ``run_study`` gives it but for its seconds, which are those of all.

    Raises:
        UserError: see ``run_study``.
    """
    began = time.perf_counter()
    protocol = settings.protocol
    game = make_game(settings.lake, protocol.seed)
    tuning = list(range(protocol.seed, protocol.seed + protocol.tuning_seeds))
    fresh = list(range(tuning[-1] + 1, tuning[-1] + 1 + protocol.seeds))
    outcomes: dict[tuple[str, float], Outcome] = {}
    chosen: list[list[Outcome]] = [[] for _ in choices]
    with alone():
        run = _Run(settings, game)
        starts = {"tuning": run.starting_weights(tuning), "fresh": run.starting_weights(fresh)}
        first = run.members(fresh)
        first.start_from(starts["fresh"])
        for name in tqdm(settings.methods, unit="method", disable=not settings.progress):
            best = run.best_rates(name, tuning, starts["tuning"])
            for choice, found in zip(choices, chosen, strict=True):
                key = name, best[choice]
                if key not in outcomes:
                    outcomes[key] = run.outcome(name, fresh, starts["fresh"], best[choice])
                found.append(outcomes[key])
        start = first.policies().mean(0).numpy()
    return [
        Study(
            rows=game.lake.rows,
            slippery=game.lake.slippery,
            optimal=game.optimal,
            start=start,
            chosen=game.chosen.cells,
            rejected=game.rejected.cells,
            outcomes=found,
            settings=_plain(replace(settings, protocol=replace(protocol, tune_by=choice))),
            seconds=time.perf_counter() - began,
        )
        for choice, found in zip(choices, chosen, strict=True)
    ]


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON knows them: paths become text."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return plain


@contextmanager
def alone() -> Iterator[None]:
    """Let torch use one thread, and leave out Lightning's hints, which are the same in every run.

    Tensors this small are not worth sharing out, and sums keep their order.
    """
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            logging.disable(level)
