"""Which one of several objectives an optimizer step trains: ALRIGHT and MAXRIGHT (arXiv:2410.15483)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np

from lit_ift.errors import UserError
from lit_ift.options import CheckedOptions, NonNegativeInt, PositiveInt

KEY: Final = "part_losses"
"""Where a checkpoint has the losses that MAXRIGHT goes by."""

EVALUATE_EVERY: Final = 10
"""Optimizer steps, as in the authors' scripts."""


@dataclass(frozen=True)
class PartSchedule(CheckedOptions):
    """How `MixedModule` chooses the one part that an optimizer step trains.

    Args:
        kind: ``alright`` draws part i with probability ``w_i / sum_j w_j``. ``maxright`` takes the part with the
            largest ``w_i (f_i - f*_i)``, the first of equal ones: ``w_i`` is the part's ``weight``, ``f*_i`` its
            ``optimum``, ``f_i`` its mean loss in the latest step that trained or evaluated it.
        seed: of ``alright``, 0 by default. The draw depends on (seed, step) alone.
        evaluate_every: of ``maxright``: every so many optimizer steps (10 by default, and in the first one) the parts
            that are not trained are evaluated too, without gradient, on the rows of the step.

    Raises:
        ValueError: an option is out of range, or belongs to the other kind.
    """

    option_prefix: ClassVar[str] = "schedule."

    kind: Literal["alright", "maxright"]
    seed: NonNegativeInt | None = None
    evaluate_every: PositiveInt | None = None

    def __post_init__(self) -> None:
        other = {"alright": "evaluate_every", "maxright": "seed"}[self.kind]
        if getattr(self, other) is not None:
            raise ValueError(f"schedule.{other} has no effect with schedule.kind={self.kind}. Leave it out.")


class PartChoice:
    """Chooses the part of each optimizer step, alike on all ranks and in a resumed run.

    Args:
        schedule: how.
        weights: of the parts, in their order.
        optima: smallest loss that each part can reach.
    """

    def __init__(self, schedule: PartSchedule, weights: Mapping[str, float], optima: Mapping[str, float]) -> None:
        self.schedule = schedule
        self.weights = weights
        self.optima = optima
        self.losses: dict[str, float] = {}

    def at(self, step: int) -> str:
        """The part that optimizer step ``step`` trains; the same until `update`."""
        if self.schedule.kind == "alright":
            # Counter-based, so that no state is needed: the draw is a function of key and counter.
            draw = np.random.Generator(np.random.Philox(key=self.schedule.seed or 0, counter=step)).random()
            bounds = np.cumsum(list(self.weights.values()))
            return list(self.weights)[int(np.searchsorted(bounds / bounds[-1], draw, side="right"))]
        # A part of unknown loss comes first; so does one of NaN, which training then refuses.
        losses = {name: self.losses.get(name, math.inf) for name in self.weights}
        losses = {name: math.inf if math.isnan(loss) else loss for name, loss in losses.items()}
        return max(losses, key=lambda name: self.weights[name] * (losses[name] - self.optima[name]))

    def evaluates(self, step: int) -> bool:
        """Whether the parts that step ``step`` does not train are evaluated in it."""
        return self.schedule.kind == "maxright" and step % (self.schedule.evaluate_every or EVALUATE_EVERY) == 0

    def update(self, means: Mapping[str, float]) -> None:
        """Take in what a step logs, ``<part>/loss`` among it."""
        self.losses |= {name: means[f"{name}/loss"] for name in self.weights if f"{name}/loss" in means}

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put what a resumed run needs into a checkpoint."""
        if self.schedule.kind == "maxright":
            checkpoint[KEY] = dict(self.losses)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up what `save` has put there.

        Raises:
            UserError: it is of a run that did not choose by loss.
        """
        if self.schedule.kind != "maxright":
            return
        if set(checkpoint.get(KEY, {"": 0})) - set(self.weights):
            raise UserError(
                "The checkpoint does not have the parts' losses, by which schedule.kind=maxright chooses: it is of "
                "another schedule or other parts. Resume with those of its run, or begin a new run from its weights."
            )
        self.losses = dict(checkpoint[KEY])
