"""What one optimizer step has seen: the sums over its micro-batches, added over ranks once, divided last."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowTotals:
    """One optimizer step, over all its micro-batches and all ranks.

    Attributes:
        weight: sum of the example weights, the denominator of the loss.
        means: weighted mean of the loss (key ``loss``) and of every metric.
        tokens_per_s: input tokens, padding apart, per second of wall time.
    """

    weight: float
    means: dict[str, float]
    tokens_per_s: float


class AccumulationWindow:
    """Collects the micro-batches between two optimizer steps.

    A mean of micro-batch means depends on how the batch was split. So losses are summed here, and the one division,
    by the weight of everything that the optimizer step has seen on every rank, happens when the window closes.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight: Tensor | None = None
        self._tokens: Tensor | None = None
        self._examples: list[tuple[Sequence[str], Tensor]] = []
        self._opened = time.perf_counter()

    def restart_clock(self) -> None:
        """Do not count the time since the last optimizer step, which went into something else."""
        self._opened = time.perf_counter()

    def clear(self) -> None:
        """Forget everything collected so far."""
        self._sums, self._weight, self._tokens, self._examples = {}, None, None, []

    @property
    def empty(self) -> bool:
        """True if nothing was collected since the last optimizer step."""
        return self._weight is None

    def add(
        self,
        losses: Tensor,
        weights: Tensor,
        metrics: dict[str, Tensor],
        tokens: Tensor,
        row_ids: Sequence[str],
    ) -> None:
        """Collect one micro-batch: losses, weights and each metric of shape (B,), a token count, B row ids."""
        precise = torch.float32 if losses.device.type == "mps" else torch.float64  # MPS has no float64
        with torch.no_grad():
            for name, values in {"loss": losses, **metrics}.items():
                # A row of weight 0 counts for nothing, even if its value is not finite.
                total = torch.where(weights > 0, values * weights, 0).sum(dtype=precise)
                self._sums[name] = self._sums.get(name, 0) + total
            self._weight = weights.sum(dtype=precise) + (0 if self._weight is None else self._weight)
            self._tokens = tokens.to(precise) + (0 if self._tokens is None else self._tokens)
            self._examples.append((row_ids, losses.detach()))

    def close(self, add_over_ranks: Callable[[Tensor], Tensor]) -> WindowTotals:
        """Add up over all ranks in one message and start the next window's clock.

        Raises:
            ValueError: no example on any rank had a trained token.
        """
        assert self._weight is not None
        assert self._tokens is not None
        names = list(self._sums)
        packed = torch.stack([self._weight, self._tokens, *(self._sums[name] for name in names)])
        weight, tokens, *sums = add_over_ranks(packed).tolist()
        if weight <= 0:
            raise ValueError("this optimizer step saw no trained token on any rank; drop such rows from the data")
        now = time.perf_counter()
        elapsed, self._opened = now - self._opened, now
        means = {name: total / weight for name, total in zip(names, sums, strict=True)}
        return WindowTotals(weight=weight, means=means, tokens_per_s=tokens / max(elapsed, 1e-9))

    def rows_with_bad_loss(self) -> list[str]:
        """Row ids of this rank's examples whose loss is NaN or infinite."""
        return [
            row_id
            for row_ids, losses in self._examples
            for row_id, finite in zip(row_ids, losses.isfinite().tolist(), strict=True)
            if not finite
        ]

    def row_ids(self) -> list[str]:
        """Row ids of all this rank's examples."""
        return [row_id for row_ids, _ in self._examples for row_id in row_ids]
