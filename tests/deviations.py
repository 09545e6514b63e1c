"""How far ours is from others' recorded numbers: compared as the test says, and remembered for docs/write_parity.py."""

from typing import Final, Literal

import torch
from torch import Tensor

IFT_AUTHORS: Final = "TsinghuaC3I/Intuitive-Fine-Tuning 03adb93"
TRL: Final = "TRL 1.16.0"

MEASURED: Final[dict[tuple[str, str], dict[str, float]]] = {}
"""By objective (the name of its page, or of a sum or change) and source the largest deviations of this process."""


def assert_same(
    objective: str,
    source: str,
    kind: Literal["value", "gradient"],
    ours: Tensor | float,
    theirs: Tensor | float,
    *,
    rtol: float = 0.0,
    atol: float,
) -> None:
    """Compare losses, or gradients, and remember the largest absolute difference.

    Raises:
        AssertionError: they differ by more than the tolerance.
    """
    pair = [torch.as_tensor(values, dtype=torch.float64).detach() for values in (ours, theirs)]
    torch.testing.assert_close(*pair, rtol=rtol, atol=atol)
    known = MEASURED.setdefault((objective, source), {})
    known[kind] = max(known.get(kind, 0.0), (pair[0] - pair[1]).abs().max().item())
