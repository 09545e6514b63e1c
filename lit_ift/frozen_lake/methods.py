"""The objectives that learn from the two given routes, by the loss functions that language models are trained with.

A game is to them what an answer is to a language model: the actions are its tokens, the cell is the prefix. M members,
T moves, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from lit_ift.frozen_lake.policy import Members
from lit_ift.frozen_lake.routes import Route
from lit_ift.frozen_lake.world import Lake
from lit_ift.losses.ift import Norm, Side, Source, ift_loss, temporal_residual
from lit_ift.losses.kto import kl_baseline, kto_loss
from lit_ift.losses.pair.reference import dpo_loss, ipo_loss
from lit_ift.losses.pair.reference_free import orpo_loss
from lit_ift.losses.sft import sft_loss
from lit_ift.losses.uft import Discrepancy, uft_loss
from lit_ift.modules.lambda_schedule import LambdaSchedule
from lit_ift.options import CheckedOptions, NonNegative, Positive, Range, UnitInterval


@dataclass
class Lesson:
    """What a run of training is given.

    Args:
        lake: the game, for the on-policy objectives; of the others only IFT asks it where a move leads.
        chosen: the optimal route.
        rejected: the sub-optimal route.
        reference: log-probabilities of the starting policies in every cell [nats], (M, S, A).
        updates: how many there will be.
        discount: what a reward is worth one move later.
        horizon: moves that a game may last.
        moves: moves that on-policy objectives have played so far, of a member.
    """

    lake: Lake
    chosen: Route
    rejected: Route
    reference: Tensor
    updates: int
    discount: float
    horizon: int
    moves: float = field(default=0.0)


class Objective(Protocol):
    """A way to learn from a lesson."""

    def begin(self, lesson: Lesson) -> "Learner":
        """Whatever gives the losses of a run."""
        ...


class Learner(Protocol):
    """An objective in a run."""

    def losses(self, policy: Members, step: int) -> Tensor:
        """One loss a member, (M,)."""
        ...


@dataclass(frozen=True)
class Stateless(CheckedOptions):
    """An objective that keeps nothing between updates: a function of the policy, the lesson and the step.

    Not an ABC: a base that is no dataclass would make the parser take the options of an objective
    for a class to be chosen (`class_path`, `init_args`).
    """

    def begin(self, lesson: Lesson) -> "Learner":
        return _Bound(self, lesson)

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        """One loss a member, (M,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Bound:
    objective: Stateless
    lesson: Lesson

    def losses(self, policy: Members, step: int) -> Tensor:
        return self.objective.losses(policy, self.lesson, step)


def route_logps(policy: Members, route: Route) -> Tensor:
    """Log-probability of every action of a route in its cell [nats], (M, T)."""
    return _of_actions(policy(policy.see(torch.tensor(route.cells[:-1]))), route.actions)


def _of_actions(logps: Tensor, actions: Sequence[int]) -> Tensor:
    """(M, T, A) -> (M, T)."""
    return logps[:, torch.arange(len(actions)), torch.tensor(actions)]


def _answers(policy: Members, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of both routes, (M,) each."""
    return route_logps(policy, lesson.chosen).sum(-1), route_logps(policy, lesson.rejected).sum(-1)


def _reference(lesson: Lesson) -> tuple[Tensor, Tensor]:
    """The same under the starting policy."""
    chosen, rejected = (
        _of_actions(lesson.reference[:, torch.tensor(route.cells[:-1])], route.actions).sum(-1)
        for route in (lesson.chosen, lesson.rejected)
    )
    return chosen, rejected


def _lengths(lesson: Lesson, like: Tensor) -> tuple[Tensor, Tensor]:
    """Moves of both routes, (M,) each."""
    return like.new_full(like.shape, len(lesson.chosen.actions)), like.new_full(
        like.shape, len(lesson.rejected.actions)
    )


@dataclass(frozen=True)
class SFT(Stateless):
    """Supervised fine-tuning on the optimal route: ``lit_ift.losses.sft_loss``."""

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        del step
        nll = -route_logps(policy, lesson.chosen)
        return sft_loss(nll, torch.ones_like(nll, dtype=torch.bool))[0]


@dataclass(frozen=True)
class IFT(Stateless):
    """Intuitive Fine-Tuning on the optimal route: ``temporal_residual`` and ``ift_loss`` of ``lit_ift.losses.ift``.

    The policy first looks one move ahead, without gradient: its greedy action from the previous *true* cell leads to
    some cell (on a slippery lake: where it would lead without slipping). What it then sees at the true cell is the mean
    of both cells' features with weights 1-λ and λ. The start is seen as it is, as a prompt is.

    Args:
        lam: λ, in [0, 1].
        gamma: γ, in [0, 1].
        lam_noise: standard deviation of λ's disturbance, relative to λ; one draw an update and seed.
        source: see ``lit_ift.losses.ift.propagation_weights``.
        side: see there.
        norm: see there.
        detach_weights: see ``lit_ift.losses.ift.ift_loss``.
    """

    lam: UnitInterval = 0.2
    gamma: UnitInterval = 0.95
    lam_noise: NonNegative = 0.0
    source: Source = "loss"
    side: Side = "left"
    norm: Norm = "l1"
    detach_weights: bool = False

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        nll = -_of_actions(policy(self.fused(policy, lesson, step)), lesson.chosen.actions)
        return ift_loss(
            nll,
            torch.ones_like(nll, dtype=torch.bool),
            gamma=self.gamma,
            source=self.source,
            side=self.side,
            norm=self.norm,
            detach_weights=self.detach_weights,
        )[0]

    @torch.no_grad()
    def fused(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        """What the members see on the optimal route, (M, T, F)."""
        cells = torch.tensor(lesson.chosen.cells[:-1])
        true = policy.see(cells)
        greedy = policy(true[:, :-1]).argmax(-1)
        expected = torch.from_numpy(lesson.lake.aim)[cells[:-1], greedy]
        mask = torch.ones(expected.shape, dtype=torch.bool)
        return temporal_residual(true, policy.features[expected].flatten(0, 1), mask, self._lam(policy, lesson, step))

    def _lam(self, policy: Members, lesson: Lesson, step: int) -> float | Tensor:
        """λ of this update: one for all, or with noise one a fused position, (M·(T-1), 1)."""
        if not self.lam_noise:
            return self.lam
        drawn = [
            LambdaSchedule(self.lam, noise=self.lam_noise, seed=seed).at(step, lesson.updates) for seed in policy.seeds
        ]
        of_members = torch.tensor(drawn, dtype=torch.float64).repeat(policy.rates)
        return of_members.repeat_interleave(len(lesson.chosen.actions) - 1).unsqueeze(-1)


@dataclass(frozen=True)
class DPO(Stateless):
    """Direct preference optimization on both routes, away from the starting policy: ``lit_ift.losses.dpo_loss``.

    Args:
        beta: β [1/nat].
        label_smoothing: ε in [0, 0.5).
    """

    beta: Positive = 0.1
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        del step
        return dpo_loss(
            *_answers(policy, lesson), *_reference(lesson), beta=self.beta, label_smoothing=self.label_smoothing
        )[0]


@dataclass(frozen=True)
class ORPO(Stateless):
    """Odds ratio preference optimization on both routes, without a reference: ``lit_ift.losses.orpo_loss``.

    Args:
        beta: β, weight of the odds ratio.
    """

    beta: Positive = 0.25

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        del step
        answers = _answers(policy, lesson)
        return orpo_loss(*answers, *_lengths(lesson, answers[0]), beta=self.beta)[0]


@dataclass(frozen=True)
class IPO(Stateless):
    """Identity preference optimization on both routes: ``lit_ift.losses.ipo_loss``.

    Args:
        beta: β [1/nat].
        average: compare log-ratios per move, not per route.
    """

    beta: Positive = 0.1
    average: bool = False

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        del step
        answers = _answers(policy, lesson)
        lengths = _lengths(lesson, answers[0])
        return ipo_loss(*answers, *_reference(lesson), *lengths, beta=self.beta, average=self.average)[0]


@dataclass(frozen=True)
class KTO(Stateless):
    """Kahneman-Tversky optimization: a thumb up for the optimal route, one down for the other.

    ``kto_loss`` and ``kl_baseline`` of ``lit_ift.losses.kto``, the mean over both routes. The baseline is that of
    answers after prompts of other rows. Here both rows have the same prompt, the start: so each row's mismatched answer
    is the other row's.

    Args:
        beta: β [1/nat].
        desirable_weight: λ_D.
        undesirable_weight: λ_U.
    """

    beta: Positive = 0.1
    desirable_weight: NonNegative = 1.0
    undesirable_weight: NonNegative = 1.0

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        del step
        logps, reference = torch.stack(_answers(policy, lesson), -1), torch.stack(_reference(lesson), -1)
        is_desirable = torch.tensor([True, False])

        def of_member(logps: Tensor, reference: Tensor) -> Tensor:
            kl = kl_baseline(logps, reference)  # A mean over both rows, whichever is mismatched with which.
            return kto_loss(
                logps,
                reference,
                is_desirable,
                kl,
                beta=self.beta,
                desirable_weight=self.desirable_weight,
                undesirable_weight=self.undesirable_weight,
            )[0].mean()

        # The baseline belongs to a batch, here the two routes of one member.
        losses: Tensor = vmap(of_member)(logps, reference)
        return losses


@dataclass(frozen=True)
class UFT(Stateless):
    """Unified fine-tuning: the optimal route has score 1, the other 0, and implicit rewards are fitted to them.

    ``lit_ift.losses.uft.uft_loss``, the mean over both routes.

    Args:
        beta: β of the implicit reward [1/nat]; at the paper's 0.01 six moves hardly move the reward.
        discrepancy: ``mse`` or ``bce``.
    """

    beta: Positive = 0.1
    discrepancy: Discrepancy = "mse"

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        del step
        rewards = [
            self.beta * (now - before) for now, before in zip(_answers(policy, lesson), _reference(lesson), strict=True)
        ]
        scores = (torch.ones_like(rewards[0]), torch.zeros_like(rewards[1]))
        both = [
            uft_loss(reward, score, discrepancy=self.discrepancy)[0]
            for reward, score in zip(rewards, scores, strict=True)
        ]
        return torch.stack(both).mean(0)
