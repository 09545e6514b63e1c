"""The callback by which a run of a study measures itself and leaves its result."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_ift.callbacks.samples import Samples
from lit_ift.errors import NonFiniteLossError, UserError
from lit_ift.imports import imported
from lit_ift.losses.logprobs import target_mask
from lit_ift.modules.base import CausalLMModule
from lit_ift.study.held_out import Scores, score_rows
from lit_ift.study.memory import PeakMemory
from lit_ift.study.record import RunRecord, write_record

PACKAGES: Final = ("lit-ift", "torch", "transformers", "lightning")


class RunResult(Callback):
    """Writes a `RunRecord` when ``fit`` ends, or when training has diverged.

    It scores held-out rows (see ``lit_ift.study.held_out``), takes over the answers that `Samples` has checked,
    and calls further evaluations. What it has counted goes on where a run is resumed.

    Args:
        path: file to write.
        key: see `RunRecord`, as for those that follow.
        variant: name.
        rate: learning rate.
        seed: of the run.
        evaluations: import paths of functions ``(module, datamodule) -> {measure: {item: value}}``.
    """

    def __init__(
        self, path: str, key: str, variant: str, rate: float, seed: int, evaluations: Sequence[str] = ()
    ) -> None:
        self.path = Path(path)
        self.start = RunRecord(key, variant, rate, seed, "done")
        self.evaluations = list(evaluations)
        self.rows = self.tokens = self.targets = self.norms = 0
        self.seconds = self.sum_of_norms = self.peak = 0.0
        self.order = ""
        self._memory: PeakMemory | None = None
        self._began = 0.0

    def state_dict(self) -> dict[str, Any]:
        names = ("rows", "tokens", "targets", "norms", "seconds", "sum_of_norms", "peak", "order")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._memory = PeakMemory(trainer.strategy.root_device)  # Before the model is loaded.

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: "CausalLMModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds += time.perf_counter() - self._began
        names, _ = pl_module.latest_losses
        self.rows += len(names)
        self.tokens += int(pl_module.num_tokens(batch))
        self.targets += _targets(batch)
        for name in names:
            self.order = hashlib.sha256(f"{self.order}\0{name}".encode()).hexdigest()[:16]
        norm = trainer.callback_metrics.get("train/grad_norm")
        if norm is not None and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.norms += 1
            self.sum_of_norms += float(norm)
        self.peak = max(self.peak, (self._memory.read() if self._memory else None) or 0.0)

    def on_fit_end(self, trainer: L.Trainer, pl_module: "CausalLMModule") -> None:  # type: ignore[override]
        if trainer.interrupted or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        record = self._record(trainer)
        self._stop()
        scores: Scores = {}
        for split in ("val", "test"):
            found = score_rows(trainer, pl_module, split)
            scores |= {f"{split}/{measure}": values for measure, values in found.items()}
        scores |= _answers(trainer)
        for path in self.evaluations:
            scores |= _checked(path, imported("evaluations", path)(pl_module, trainer.datamodule))  # type: ignore[attr-defined]
        if not scores:
            raise UserError("Nothing was scored: the data has no validation rows. Set data.val, or name evaluations.")
        spoilt = [name for name, values in scores.items() if not all(map(math.isfinite, values.values()))]
        if spoilt:
            reason = f"After training {', '.join(spoilt)} were NaN or infinite."
            self._write(trainer, replace(record, status="diverged", reason=reason))
        else:
            self._write(trainer, replace(record, scores=scores))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteLossError):  # All ranks see the same mean, so all are here.
            self._write(trainer, replace(self._record(trainer), status="diverged", reason=str(exception)))
        self._stop()

    def _write(self, trainer: L.Trainer, record: RunRecord) -> None:
        if trainer.is_global_zero:
            write_record(self.path, record)

    def _record(self, trainer: L.Trainer) -> RunRecord:
        """What was counted, of all ranks where they are alive."""
        device = trainer.strategy.root_device
        counts = torch.tensor([self.rows, self.tokens, self.targets], dtype=torch.float64, device=device)
        rows, tokens, targets = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        return replace(
            self.start,
            steps=trainer.global_step,
            rows=int(rows),
            tokens=int(tokens),
            targets=int(targets),
            order=self.order,
            seconds=self.seconds,
            peak_memory=self.peak or None,
            memory_of=self._memory.kind if self._memory else "",
            grad_norm=self.sum_of_norms / self.norms if self.norms else None,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            ranks=trainer.world_size,
            versions={name: version(name) for name in PACKAGES},
        )

    def _stop(self) -> None:
        if self._memory is not None:
            self._memory.stop()


def _targets(batch: Any) -> int:
    """Trained tokens of a batch, or of the batches of its parts."""
    if not isinstance(batch, Mapping):
        return 0
    if "labels" in batch:
        return int(target_mask(batch["labels"]).sum())
    return sum(_targets(part) for part in batch.values())


def _answers(trainer: L.Trainer) -> Scores:
    """Whether each answer that was checked after training was right, by task and over all tasks."""
    scores: Scores = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for answer in callback.after if isinstance(callback, Samples) else ():
            if answer.score is None:  # A prompt without a verifier.
                continue
            for measure in (f"tasks/{answer.task}", "tasks/all"):
                scores.setdefault(measure, {})[answer.row_id] = float(answer.right)
    return scores


def _checked(path: str, found: Any) -> Scores:
    """What an evaluation gave.

    Raises:
        UserError: it is no measures of items.
    """
    try:
        if not isinstance(found, Mapping):
            raise TypeError(f"{type(found).__name__}")
        return {str(name): {str(k): float(v) for k, v in values.items()} for name, values in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"evaluations: {path} returned no {{measure: {{item: value}}}}: {error}") from error
