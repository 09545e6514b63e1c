"""The comparison: the same search, the same budget and the same starts for every method.

R learning rates, N seeds, M = R·N members, S cells, A actions.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_ift.errors import UserError
from lit_ift.frozen_lake.evaluate import Judge
from lit_ift.frozen_lake.methods import Lesson
from lit_ift.frozen_lake.policy import Members, PolicyModule, cell_features, train
from lit_ift.frozen_lake.result import METRICS, Array, Outcome, Study
from lit_ift.frozen_lake.routes import Route, optimal_route, suboptimal_route
from lit_ift.frozen_lake.settings import LABELS, Metric, Settings, StartOptions
from lit_ift.frozen_lake.world import ACTIONS, Lake, make_lake, optimal_policy

LOWER_IS_BETTER = ("mse_trajectory", "mse_all")


@dataclass(frozen=True)
class Game:
    """A lake with everything that is known of it before training.

    Args:
        lake: the lake.
        optimal: the optimal policy, (S, A).
        chosen: the optimal route.
        rejected: the sub-optimal route.
        judge: measures policies.
    """

    lake: Lake
    optimal: Array
    chosen: Route
    rejected: Route
    judge: Judge


def make_game(settings: Settings) -> Game:
    """Plan on the lake.

    Raises:
        UserError: the map cannot be played or has no such routes.
    """
    options, seed = settings.lake, settings.protocol.seed
    lake = make_lake(options.map, slippery=options.slippery)
    optimal = optimal_policy(lake, options.discount, ties=options.ties)
    best = optimal_policy(lake, options.discount)
    chosen = optimal_route(lake, best, options.horizon, seed)
    rejected = suboptimal_route(lake, options.suboptimal, chosen, best, options.horizon, seed)
    return Game(lake, optimal, chosen, rejected, Judge(lake, optimal, chosen.cells, options.discount, options.horizon))


@dataclass(frozen=True)
class Pretraining:
    """Cross-entropy to a distribution over cells and actions, which no policy but the starting one is trained with.

    Args:
        text: how much of the text is each action in each cell, (S, A), sums to 1.
    """

    text: Tensor

    def losses(self, policy: Members, step: int) -> Tensor:
        """One loss a member, (M,)."""
        del step
        return -(self.text * policy.table()).sum((1, 2))


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
    visits: Array = game.judge.visits(aimless)[0].numpy() * ~game.lake.terminal
    walks = np.repeat(visits[:, None] / (visits.sum() * len(ACTIONS)), len(ACTIONS), axis=1)
    return np.asarray(options.suboptimal * of_routes[0] + options.optimal * of_routes[1] + options.walks * walks)


class Recorder(L.Callback):
    """Takes all metrics before training and ``points`` times in it, evenly, the last time at its end.

    Args:
        judge: measures policies.
        updates: of the run.
        points: how often; at most once an update.
    """

    def __init__(self, judge: Judge, updates: int, points: int) -> None:
        self.judge = judge
        self.due = sorted({round(updates * i / points) for i in range(points + 1)})
        self.steps: list[int] = []
        self.metrics: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in self.due:
            self._record(trainer, pl_module)

    def _record(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, PolicyModule)
        self.steps.append(trainer.global_step)
        self.metrics.append(self.judge(module.policy.policies()))


class _Progress(L.Callback):
    def __init__(self, bar: "tqdm[Any]") -> None:
        self.bar = bar

    def on_train_batch_end(self, *_: Any) -> None:
        self.bar.update()


@dataclass
class _Run:
    """What all runs of a study share."""

    settings: Settings
    game: Game
    bar: "tqdm[Any]"
    callbacks: list[L.Callback] = field(init=False)

    def __post_init__(self) -> None:
        self.callbacks = [_Progress(self.bar)]

    def members(self, seeds: list[int], rates: int = 1) -> Members:
        policy = self.settings.policy
        features = cell_features(self.game.lake, policy.features)
        return Members(features, policy.hidden, policy.activation, seeds, rates)

    def starting_weights(self, seeds: list[int]) -> list[Tensor]:
        """Weights of the starting policy of every seed."""
        policy, options = self.members(seeds), self.settings.start
        if options.kind != "random":
            self.bar.set_description("starting policies")
            text = Pretraining(torch.from_numpy(pretraining_text(self.game, options)))
            module = PolicyModule(policy, text, [options.learning_rate], options.updates, self.settings.protocol.warmup)
            train(module, self.callbacks)
        return [weight.detach() for weight in policy.weights()]

    def train(
        self, name: str, seeds: list[int], start: list[Tensor], rates: list[float], recorder: Recorder | None = None
    ) -> tuple[Members, Lesson]:
        """Train one method from the given weights with every learning rate."""
        protocol, lake = self.settings.protocol, self.settings.lake
        policy = self.members(seeds, len(rates))
        policy.start_from(start)
        with torch.no_grad():
            reference = policy.table()
        lesson = Lesson(
            lake=self.game.lake,
            chosen=self.game.chosen,
            rejected=self.game.rejected,
            reference=reference,
            updates=protocol.updates,
            discount=lake.discount,
            horizon=lake.horizon,
        )
        learner = self.settings.objective(name).begin(lesson)
        module = PolicyModule(policy, learner, rates, protocol.updates, protocol.warmup)
        train(module, [*self.callbacks, *([recorder] if recorder else [])])
        return policy, lesson

    def best_rates(self, name: str, seeds: list[int], start: list[Tensor]) -> dict[str, float]:
        """For each metric the learning rate with the best mean over the tuning seeds; of equals the lowest."""
        rates = sorted(self.settings.protocol.learning_rates)
        policy, _ = self.train(name, seeds, start, rates)
        found = {}
        for metric, values in self.game.judge(policy.policies()).items():
            means = values.view(len(rates), len(seeds)).mean(1)
            losses = means if metric in LOWER_IS_BETTER else -means
            found[metric] = rates[int(losses.nan_to_num(nan=torch.inf).argmin())]
        return found

    def outcome(self, name: str, seeds: list[int], start: list[Tensor], rate: float) -> Outcome:
        """Judge a method on fresh seeds."""
        protocol = self.settings.protocol
        recorder = Recorder(self.game.judge, protocol.updates, protocol.points)
        policy, lesson = self.train(name, seeds, start, [rate], recorder)
        policies = policy.policies()
        if not policies.isfinite().all():
            raise UserError(
                f"{LABELS[name]} with learning rate {rate} diverges on some seeds. "
                "Leave that rate out of protocol.learning_rates."
            )
        return Outcome(
            name=name,
            label=LABELS[name],
            learning_rate=rate,
            metrics={metric: recorder.metrics[-1][metric].numpy() for metric in METRICS},
            steps=np.array(recorder.steps),
            curves={metric: torch.stack([m[metric] for m in recorder.metrics], 1).numpy() for metric in METRICS},
            policies=policies.numpy(),
            visits=self.game.judge.visits(policies).mean(0).numpy(),
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
    game = make_game(settings)
    tuning = list(range(protocol.seed, protocol.seed + protocol.tuning_seeds))
    fresh = list(range(tuning[-1] + 1, tuning[-1] + 1 + protocol.seeds))
    pretraining = 0 if settings.start.kind == "random" else 2 * settings.start.updates
    total = pretraining + (1 + len(choices)) * len(settings.methods) * protocol.updates
    outcomes: dict[tuple[str, float], Outcome] = {}
    chosen: list[list[Outcome]] = [[] for _ in choices]
    with one_thread(), tqdm(total=total, unit="update", disable=not settings.progress) as bar:
        run = _Run(settings, game, bar)
        starts = {"tuning": run.starting_weights(tuning), "fresh": run.starting_weights(fresh)}
        first = run.members(fresh)
        first.start_from(starts["fresh"])
        for name in settings.methods:
            bar.set_description(LABELS[name])
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
            settings=plain(asdict(replace(settings, protocol=replace(protocol, tune_by=choice)))),
            seconds=time.perf_counter() - began,
        )
        for choice, found in zip(choices, chosen, strict=True)
    ]


def plain(value: Any) -> Any:
    """Settings as JSON knows them: paths become text."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: tensors this small are not worth sharing out, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
