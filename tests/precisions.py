"""Every objective under every precision that Lightning offers on a CPU, on the rows of the invariance tests."""

import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent / "distributed"))

import invariance
from invariance import SPLITS, Objective, fit
from loss_sums import OPTIONS

from lit_ift.losses import PairLoss, TokenLoss
from lit_ift.modules import PreferenceModule, SFTModule

OBJECTIVES: Final = {
    name: objective for name, objective in invariance.OBJECTIVES.items() if objective.dtype == "float64"
}
"""Each once; the others are the same in other dtypes."""


def of_loss(loss: TokenLoss | PairLoss) -> Objective:
    """A run of one loss, each token loss on true tokens."""
    held = {"reference": "model"} if loss.needs_reference else {}
    options = {"loss": loss.name, "options": loss.options, **held}
    if isinstance(loss, TokenLoss):
        return Objective(SFTModule, options)
    return Objective(PreferenceModule, options, ("gold" if loss.needs_gold else "preference",), lr=0.05)


OF_LOSSES: Final = {
    f"{family} {name}": of_loss(cls(name, OPTIONS.get(name)))
    for family, cls in (("token", TokenLoss), ("pair", PairLoss))
    for name in cls.KNOWN
}
"""Every loss by itself."""

TOLERANCES: Final = {
    "64-true": (1e-6, 1e-4),
    "bf16-mixed": (1e-3, 0.02),
    "16-mixed": (1e-3, 0.02),
    "bf16-true": (1e-3, 0.04),
    "16-true": (1e-4, 0.004),
}
"""How far the loss of the first step, and that of later ones, may be from that under 32-true, as a share of it.

Lightning takes 16-mixed for bf16-mixed on a CPU.
"""

PRECISIONS: Final = ("32-true", *TOLERANCES)


def first_epoch(folder: Path, objective: str, precision: str) -> list[dict[str, float]]:
    """Loss and norm of the gradient of each step of an epoch.

    Args:
        folder: as ``invariance.write_inputs`` leaves it.
        objective: a name in ``OBJECTIVES`` or ``OF_LOSSES``; the model is loaded in float32, whatever that asks for.
        precision: of the Trainer.
    """
    found = (OBJECTIVES | OF_LOSSES)[objective]
    seen: dict[str, Any] = fit(folder, found, SPLITS[0], dtype="float32", epochs=1, precision=precision)
    steps: list[dict[str, float]] = seen["steps"]
    return steps
