"""How far inputs are moved towards the model's own predictions: λ over the steps of a run."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lit_ift.options import CheckedOptions, NonNegative, UnitInterval

LambdaShape = Literal["constant", "linear"]


@dataclass(frozen=True)
class LambdaSchedule(CheckedOptions):
    """λ of IFT as a pure function of the optimizer step (arXiv:2405.11870, section 4 and Table 7).

    Args:
        value: λ, or where the linear schedule ends, in [0, 1].
        schedule: ``constant``, or ``linear`` from ``start`` to ``value`` over the warm-up.
        start: where the linear schedule begins, in [0, 1].
        warmup: a share of all steps if below 1, else a number of steps; linear schedule only.
        noise: standard deviation of the disturbance, relative to λ: λ·(1 + noise·N(0,1)), clamped to [0, 1].
        seed: of the disturbance. The draw depends on (seed, step) alone, so all micro-batches and ranks of a step
            share it and a resumed run repeats it.

    Raises:
        ValueError: an option is out of range, or set although the schedule does not use it.
    """

    option_prefix: ClassVar[str] = "lam_"

    value: UnitInterval = 0.2
    schedule: LambdaShape = "constant"
    start: UnitInterval | None = None
    warmup: NonNegative | None = None
    noise: NonNegative = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule == "constant" and (self.start is not None or self.warmup is not None):
            raise ValueError("lam_start and lam_warmup need lam_schedule='linear'")

    @property
    def needs_total_steps(self) -> bool:
        """True if λ depends on the length of the run."""
        return self.schedule == "linear" and (self.warmup is None or self.warmup < 1)

    def at(self, step: int, total_steps: int) -> float:
        """λ at optimizer step ``step`` of ``total_steps``, in [0, 1]."""
        lam = self.value
        if self.schedule == "linear":
            start = 0.0 if self.start is None else self.start
            warmup = 0.1 if self.warmup is None else self.warmup
            steps = warmup if warmup >= 1 else warmup * total_steps
            lam = start + (self.value - start) * min(1.0, step / steps if steps else 1.0)
        if self.noise:
            # A multiplicative hash spreads neighbouring steps over the generator's seeds.
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step * 2_654_435_761) % 2**63)
            lam *= 1.0 + self.noise * float(torch.randn((), generator=generator))
        return min(1.0, max(0.0, lam))
