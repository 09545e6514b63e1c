"""The objectives that learn from the two given routes, by the loss functions that language models are trained with.

A game is to them what an answer is to a language model: the actions are its tokens, the cell is the prefix. M members,
T moves, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from lit_ift.frozen_lake.policy import Members
from lit_ift.frozen_lake.routes import Route
from lit_ift.losses.ift import Norm, PropagationSide, Source, ift_loss, temporal_residual
from lit_ift.losses.kto import kl_baseline, kto_loss
from lit_ift.losses.pair.reference import dpo_loss, ipo_loss
from lit_ift.losses.pair.reference_free import orpo_loss
from lit_ift.losses.sft import sft_loss
from lit_ift.losses.uft import uft_loss
from lit_ift.modules.lambda_schedule import LambdaSchedule
from lit_ift.options import NonNegative, Positive, UnitInterval, check_options

if TYPE_CHECKING:
    from lit_ift.frozen_lake.game import Game


@dataclass
class Lesson:
    """What a run of training is given."""

    game: "Game"  # on-policy objectives play on it; IFT asks it where a move leads, the others see its routes
    reference: Tensor  # log-probabilities of the starting policies in every cell [nats], (M, S, A)
    updates: int  # how many there will be
    moves: float = 0.0  # moves that on-policy objectives have played so far, of a member
    memory: dict[str, Any] = field(default_factory=dict)  # what an objective keeps between updates

    def pair(self, policy: Members) -> dict[str, Tensor]:
        """What pair losses take of both routes, (M,) each: summed log-probabilities, the reference's, and lengths."""
        found: dict[str, Tensor] = {}
        for side, route in (("chosen", self.game.chosen), ("rejected", self.game.rejected)):
            logps = route_logps(policy, route).sum(-1)
            reference = of_actions(self.reference[:, route.cells[:-1]], route).sum(-1)
            lengths = torch.full_like(logps, len(route.actions))
            found |= {f"{side}_logps": logps, f"reference_{side}_logps": reference, f"{side}_lengths": lengths}
        return found


@dataclass(frozen=True)
class Options:
    """Options that are checked against their annotations.

    A dataclass, because the parser takes the options of a class with another base for one to be chosen (`class_path`).
    """

    def __post_init__(self) -> None:
        check_options(type(self), vars(self))


@dataclass(frozen=True)
class Objective(Options):
    """A way to learn from a lesson."""

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        """One loss a member, (M,)."""
        raise NotImplementedError


def route_logps(policy: Members, route: Route) -> Tensor:
    """Log-probability of every action of a route in its cell [nats], (M, T)."""
    return of_actions(policy(policy.see(torch.tensor(route.cells[:-1]))), route)


def of_actions(logps: Tensor, route: Route) -> Tensor:
    """Those of the route's actions, (M, T, A) -> (M, T)."""
    return logps[:, torch.arange(len(route.actions)), torch.tensor(route.actions)]


@dataclass(frozen=True)
class SFT(Objective):
    """Supervised fine-tuning on the optimal route: ``lit_ift.losses.sft_loss``."""

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        nll = -route_logps(policy, lesson.game.chosen)
        return sft_loss(nll, torch.ones_like(nll, dtype=torch.bool))[0]


@dataclass(frozen=True)
class IFT(Objective):
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
    side: PropagationSide = "left"
    norm: Norm = "l1"
    detach_weights: bool = False

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        nll = -of_actions(policy(self.fused(policy, lesson, step)), lesson.game.chosen)
        options = {name: value for name, value in vars(self).items() if not name.startswith("lam")}
        return ift_loss(nll, torch.ones_like(nll, dtype=torch.bool), **options)[0]

    @torch.no_grad()
    def fused(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        """What the members see on the optimal route, (M, T, F)."""
        cells = torch.tensor(lesson.game.chosen.cells[:-1])
        true = policy.see(cells)
        greedy = policy(true[:, :-1]).argmax(-1)
        expected = torch.from_numpy(lesson.game.lake.aim)[cells[:-1], greedy]
        mask = torch.ones(expected.shape, dtype=torch.bool)
        return temporal_residual(true, policy.features[expected].flatten(0, 1), mask, self._lam(policy, lesson, step))

    def _lam(self, policy: Members, lesson: Lesson, step: int) -> float | Tensor:
        """λ of this update: one for all, or with noise one a fused position, (M·(T-1), 1)."""
        if not self.lam_noise:
            return self.lam
        schedules = [LambdaSchedule(self.lam, noise=self.lam_noise, seed=seed) for seed in policy.seeds]
        drawn = torch.tensor([schedule.at(step, lesson.updates) for schedule in schedules], dtype=torch.float64)
        return drawn.repeat(policy.rates).repeat_interleave(len(lesson.game.chosen.actions) - 1).unsqueeze(-1)


@dataclass(frozen=True)
class PairObjective(Objective):
    """A pair loss of ``lit_ift.losses`` with the optimal route as the chosen answer; its options are the fields."""

    loss: ClassVar[Callable[..., tuple[Tensor, dict[str, Tensor]]]]

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        known = signature(self.loss).parameters
        inputs = {name: value for name, value in lesson.pair(policy).items() if name in known}
        return self.loss(**inputs, **vars(self))[0]


@dataclass(frozen=True)
class DPO(PairObjective):
    """Direct preference optimization on both routes, away from the starting policy: ``lit_ift.losses.dpo_loss``.

    Args:
        beta: β [1/nat].
    """

    loss = staticmethod(dpo_loss)
    beta: Positive = 0.1


@dataclass(frozen=True)
class ORPO(PairObjective):
    """Odds ratio preference optimization on both routes, without a reference: ``lit_ift.losses.orpo_loss``.

    Args:
        beta: β, weight of the odds ratio.
    """

    loss = staticmethod(orpo_loss)
    beta: Positive = 0.25


@dataclass(frozen=True)
class IPO(PairObjective):
    """Identity preference optimization on both routes: ``lit_ift.losses.ipo_loss``.

    Args:
        beta: β [1/nat].
    """

    loss = staticmethod(ipo_loss)
    beta: Positive = 0.1


@dataclass(frozen=True)
class KTO(Objective):
    """Kahneman-Tversky optimization: a thumb up for the optimal route, one down for the other.

    ``kto_loss`` and ``kl_baseline`` of ``lit_ift.losses.kto``, the mean over both routes. The baseline is that of
    answers after prompts of other rows. Here both rows have the same prompt, the start: so each row's mismatched answer
    is the other row's.

    Args:
        beta: β [1/nat].
    """

    beta: Positive = 0.1

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        pair = lesson.pair(policy)
        logps = torch.stack([pair["chosen_logps"], pair["rejected_logps"]], -1)
        reference = torch.stack([pair["reference_chosen_logps"], pair["reference_rejected_logps"]], -1)

        def of_member(logps: Tensor, reference: Tensor) -> Tensor:
            kl = kl_baseline(logps, reference)  # A mean over both rows, whichever is mismatched with which.
            return kto_loss(logps, reference, torch.tensor([True, False]), kl, beta=self.beta)[0].mean()

        # The baseline belongs to a batch, here the two routes of one member.
        losses: Tensor = vmap(of_member)(logps, reference)
        return losses


@dataclass(frozen=True)
class UFT(Objective):
    """Unified fine-tuning: the optimal route has score 1, the other 0, and implicit rewards are fitted to them.

    ``lit_ift.losses.uft.uft_loss``, the mean over both routes.

    Args:
        beta: β of the implicit reward [1/nat]; at the paper's 0.01 six moves hardly move the reward.
    """

    beta: Positive = 0.1

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        pair = lesson.pair(policy)
        losses = []
        for side, score in (("chosen", 1.0), ("rejected", 0.0)):
            reward = self.beta * (pair[f"{side}_logps"] - pair[f"reference_{side}_logps"])
            losses.append(uft_loss(reward, torch.full_like(reward, score))[0])
        return torch.stack(losses).mean(0)
