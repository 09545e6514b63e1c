"""Training and evaluation on one exact mean of example losses, whatever the split into batches and ranks.

Shapes: B examples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_ift.errors import NonFiniteLossError, UserError
from lit_ift.lightning_private import forget_logged
from lit_ift.modules.bad_steps import BadSteps, SkippedStep, of_all_ranks
from lit_ift.modules.optim import configured_options, keep_configuration
from lit_ift.modules.precision import float32_by_default
from lit_ift.modules.start_line import announce_start
from lit_ift.modules.tuning import accumulated_steps, check_callbacks, is_trial, searches_learning_rate
from lit_ift.modules.window import AccumulationWindow, Weighted
from lit_ift.options import CheckedOptions

T = TypeVar("T")

Batch = dict[str, Any]
Metrics = Mapping[str, Tensor | Weighted]
"""Detached metrics of shape (B,); `Weighted` ones where not every row has them."""

ExampleLosses = tuple[Tensor, Metrics]
"""Losses of shape (B,) with gradient, and detached metrics."""


def row_ids_of(batch: Batch, batch_idx: int, num_rows: int) -> list[str]:
    """The batch's own row ids, or a name for each row of a batch that has none."""
    return batch.get("row_ids") or [f"batch {batch_idx}, row {i}" for i in range(num_rows)]


class ExampleMeanModule(CheckedOptions, L.LightningModule):
    """Minimises the weighted mean of example losses over everything that an optimizer step sees.

    The gradient of an optimizer step is that of ``sum_b weight_b * loss_b / sum_b weight_b`` over all examples of all
    its micro-batches on all ranks, however they were split and however short the last window is. To that end
    ``training_step`` returns a loss with the gradient of the sum, and ``optimizer_step`` divides the gradients once,
    before clipping and before ``on_before_optimizer_step``. The value of that loss is the micro-batch's mean, which is
    what callbacks find in ``outputs["loss"]``. The mean of the step is logged as ``train/loss``. Ranks must report the
    same metrics.

    Logged every optimizer step: ``train/loss`` and the metrics, ``train/lr``, ``train/grad_norm`` (before clipping),
    ``train/tokens_per_s`` (input tokens of all ranks, padding apart). Validation and test log the same means under
    ``val/`` and ``test/``.

    A step whose loss or gradient is not finite stops the run. With ``max_bad_steps`` so many are skipped before: the
    optimizer is not asked, so that neither weights nor its state change, the gradients are dropped, and the step counts
    as one for the schedule and the run's length. Then ``train/bad_steps`` is their number so far.
    """

    max_bad_steps: int = 0
    bad_step_norm: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self._bad_steps: BadSteps | None = None
        self._window = AccumulationWindow()
        self._evaluation = AccumulationWindow()
        self._batch_checked = False
        self._configured_options: list[dict[str, Any]] = []
        self.latest_losses: tuple[list[str], Tensor] = ([], torch.empty(0))
        """Row ids and detached losses (B,) of the latest batch, trained on or evaluated; for callbacks."""

    # What a subclass says ----------------------------------------------------------------------------------------

    def example_losses(self, batch: Batch) -> ExampleLosses:
        """Loss of each example of a batch, with every forward pass that it takes.

        Returns:
            Losses of shape (B,) with gradient, and detached metrics of shape (B,).
        """
        raise TypeError(f"{type(self).__name__} must override example_losses")

    def all_losses(self, batch: Batch) -> ExampleLosses:
        """What is trained on: ``example_losses``, and what the model itself adds to them."""
        return self.example_losses(batch)

    def example_weights(self, batch: Batch) -> Tensor:
        """Weight of each example in the mean, (B,) float; 0 for one that counts for nothing."""
        raise TypeError(f"{type(self).__name__} must override example_weights")

    def num_tokens(self, batch: Batch) -> Tensor:
        """Input tokens of a batch, padding apart; a scalar, for the throughput."""
        masks = [value for name, value in batch.items() if name.endswith("attention_mask")]
        masks += [value >= 0 for name, value in batch.items() if name.endswith("sequence_ids")]
        ids = [value for name, value in batch.items() if name.endswith("input_ids")]
        counts = [mask.sum() for mask in masks] if masks else [torch.tensor(i.numel(), device=self.device) for i in ids]
        return torch.stack(counts).sum() if counts else torch.zeros((), device=self.device)

    def row_ids(self, batch: Batch, batch_idx: int, num_rows: int) -> list[str]:
        """A name for each example of a batch, for messages: its own ``row_ids``, or else its place."""
        return row_ids_of(batch, batch_idx, num_rows)

    def in_forward(self, compute: Callable[[], T]) -> T:
        """Call a function that uses the model's weights, where they can be used; all ranks call it alike."""
        return compute()

    def on_step_means(self, means: Mapping[str, float]) -> None:
        """Called before each optimizer step with the means that it logs, which are the same on all ranks.

        Args:
            means: ``loss`` and the metrics over all rows of the step, by name.
        """

    def on_step_skipped(self) -> None:
        """Called instead of ``on_step_means`` for a bad step that is skipped; what was kept for it is to be dropped."""

    def start_note(self) -> str:
        """What a run's first line says of this module, one sentence; nothing by default."""
        return ""

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that would be scored wrongly; asked of the first batch of a run, epoch and evaluation.

        Raises:
            UserError: says what the batch lacks.
        """

    def _weighted_losses(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor, Metrics]:
        if batch_idx == 0 or not self._batch_checked:
            if not isinstance(batch, Mapping):
                raise UserError(
                    f"The batch is a {type(batch).__name__}; {type(self).__name__} needs a dictionary of tensors by "
                    "name. Let the data set, or the loader's collate_fn, give dictionaries."
                )
            self.check_batch(batch)
            self._batch_checked = True
        with float32_by_default():
            losses, metrics = self.in_forward(lambda: self.all_losses(batch))
            weights = self.example_weights(batch)
        plain = {name: m.values if isinstance(m, Weighted) else m for name, m in metrics.items()}
        for name, values in {"losses": losses, **plain}.items():
            # Broadcasting would quietly turn anything else into another mean.
            if values.shape != weights.shape:
                raise ValueError(
                    f"{type(self).__name__} returned {name} of shape {tuple(values.shape)} for a batch of "
                    f"{len(weights)} examples: one value per example is needed, shape ({len(weights)},)"
                )
        return losses, weights, metrics

    # Training ----------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[L.Callback]:
        """Keep random numbers and bad steps in checkpoints, unless the Trainer has callbacks for that already."""
        from lit_ift.checkpoints.random_state import RandomState  # Its package imports the modules.

        check_callbacks(self.trainer)
        if self.trainer.state.fn != "fit":
            return []
        present: dict[type, L.Callback] = {type(callback): callback for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        wanted = [RandomState, BadSteps] if self.max_bad_steps else [RandomState]
        made: dict[type, L.Callback] = {kind: kind() for kind in wanted if kind not in present}
        bad_steps = {**present, **made}.get(BadSteps)
        self._bad_steps = bad_steps if self.max_bad_steps and isinstance(bad_steps, BadSteps) else None
        return list(made.values())

    def on_train_start(self) -> None:
        self._window.clear()
        self._window.restart_clock()
        if is_trial(self.trainer):
            return
        if self._configured_options:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            optimizer = self.trainer.optimizers[0]
            for line in keep_configuration(optimizer, schedulers, self._configured_options):
                self.print(f"The configuration wins over the checkpoint: {line}")
        announce_start(self.trainer, self.start_note())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return a loss with the gradient of the weighted sum of the example losses; ``optimizer_step`` divides."""
        losses, weights, metrics = self._weighted_losses(batch, batch_idx)
        row_ids = self.row_ids(batch, batch_idx, len(losses))
        self._window.add(losses, weights, metrics, self.num_tokens(batch), row_ids)
        self.latest_losses = row_ids, losses.detach()
        # Lightning divides by the nominal length of the window; undo that, `_close_window` divides by the true weight.
        total = (losses * weights).sum()
        mean = total.detach() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        return (mean + (total - total.detach())) * self.trainer.accumulate_grad_batches

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        def closure() -> Any:
            loss = optimizer_closure() if optimizer_closure is not None else None
            if self._window.empty:  # A subclass whose own training_step leaves normalisation to Lightning.
                return loss
            return self._close_window(optimizer)

        try:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
        except SkippedStep:
            optimizer.zero_grad()

    def _close_window(self, optimizer: Any) -> Tensor:
        """Normalise the gradients of the optimizer step, refuse what is not finite, log; return the mean loss."""
        totals = self._window.close(self._add_over_ranks)
        if totals.weight <= 0:
            raise UserError(
                f"Step {self.trainer.global_step}: no trained token in any row on any rank, on this one "
                f"{self._window.row_ids()}. Leave such rows out of the data."
            )
        mean_loss = totals.means["loss"]
        if not math.isfinite(mean_loss):
            return self._refuse_step(optimizer, f"the loss ({mean_loss}) became NaN or infinite", {})
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # Data-parallel strategies average gradients over ranks; what is wanted is their sum over the total weight.
        scale = self.trainer.world_size / totals.weight
        for gradient in gradients:
            gradient.mul_(scale)
        # Else a metric would be logged once more for a step without rows that have it, as rejected ones do.
        forget_logged(self)
        grad_norm = self._gradient_norm(gradients)
        if fault := self._gradient_fault(grad_norm):
            return self._refuse_step(optimizer, fault, {"train/loss": mean_loss, "train/grad_norm": float(grad_norm)})
        if torch.isfinite(grad_norm):
            self.log("train/grad_norm", grad_norm)
        # Otherwise float16 overflowed: the scaler skips this step and lowers its scale.
        self.on_step_means(totals.means)
        self.log("train/loss", mean_loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in totals.means.items() if name != "loss"})
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        self.log("train/tokens_per_s", totals.tokens_per_s)
        if self._bad_steps is not None:
            self.log("train/bad_steps", float(self._bad_steps.count))
        self._window.clear()
        return torch.tensor(mean_loss, device=self.device)

    def _gradient_fault(self, grad_norm: Tensor) -> str:
        """What is wrong with a step's gradient, alike on all ranks; nothing for one that is to be followed."""
        skips = self._bad_steps is not None and not is_trial(self.trainer)
        if skips:  # Ranks that read one norm with different last digits would part ways at the bound.
            grad_norm = self._add_over_ranks(grad_norm.clone()) / self.trainer.world_size  # It adds in place.
        if not torch.isfinite(grad_norm):
            return "" if self._gradient_scaler() is not None else "the gradient became NaN or infinite"
        if not skips or self.bad_step_norm is None:
            return ""
        assert self._bad_steps is not None
        norm = float(grad_norm)
        fault = self._bad_steps.spike(norm, self.bad_step_norm)
        if not fault:
            self._bad_steps.keep(norm)
        return fault

    def _refuse_step(self, optimizer: Any, fault: str, seen: Mapping[str, float]) -> Tensor:
        """End a search for a learning rate; else skip the step and log what was seen, or stop the run.

        Raises:
            SkippedStep: leads out of the optimizer.
            NonFiniteLossError: no more steps may be skipped.
        """
        if searches_learning_rate(self.trainer):
            return self._end_trial(optimizer)
        bad_steps = self._bad_steps
        if bad_steps is None or is_trial(self.trainer) or bad_steps.count >= self.max_bad_steps:
            raise NonFiniteLossError(self._stop_message(fault))
        bad_steps.count += 1
        rows = of_all_ranks(self._window.rows_with_bad_loss(), self._window.row_ids())
        rank_zero_warn(
            f"Step {self.trainer.global_step}: {fault}, and the step was skipped ({bad_steps.count} of at most "
            f"{self.max_bad_steps}). {rows}."
        )
        forget_logged(self)
        for name, value in seen.items():
            if math.isfinite(value):
                self.log(name, value, prog_bar=name == "train/loss")
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        self.log("train/bad_steps", float(bad_steps.count))
        self.on_step_skipped()
        self._window.clear()
        raise SkippedStep

    def _end_trial(self, optimizer: Any) -> Tensor:
        """End a search for a learning rate, which goes up until training diverges, without a step."""
        self.trainer.should_stop = True
        optimizer.zero_grad()
        self._window.clear()
        return torch.tensor(math.nan, device=self.device)

    def _add_over_ranks(self, sums: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(sums, reduce_op="sum")

    def _gradient_scaler(self) -> Any:
        """The scaler of float16 mixed precision, else None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """2-norm of all gradients, before clipping; a scalar tensor."""
        scaler = self._gradient_scaler()
        norm = torch.nn.utils.get_total_norm(gradients) / (1.0 if scaler is None else scaler.get_scale())
        return norm.full_tensor() if isinstance(norm, DTensor) else norm  # Of shards, added up over ranks here.

    def _stop_message(self, fault: str) -> str:
        checkpoint = self.trainer.checkpoint_callback
        saved = ""
        if checkpoint is not None:
            saved = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        bad = self._window.rows_with_bad_loss()
        culprits = f"with a bad loss: {bad}" if bad else f"in this step: {self._window.row_ids()}"
        skipped = "" if self._bad_steps is None else f" Steps skipped before: {self._bad_steps.count}."
        return (
            f"Step {self.trainer.global_step}: {fault}, and the step was not taken.{skipped} "
            f"Rows on rank {self.trainer.global_rank} {culprits}. "
            f"Last good checkpoint: {saved or 'none was written yet'}. "
            "Look at those rows, lower the learning rate, or clip gradients (trainer.gradient_clip_val)."
        )

    def total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            UserError: the run has no end.
        """
        total = accumulated_steps(self.trainer)
        if not math.isfinite(total):
            raise UserError(
                "The length of the run is not known, but a schedule needs it. "
                "Set trainer.max_steps or trainer.max_epochs, or give the schedule its steps."
            )
        return int(total)

    def remember_configuration(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the optimizer's options as configured, so that a checkpoint does not overrule them on resuming."""
        self._configured_options = configured_options(optimizer)

    def restart_clock(self) -> None:
        """Keep time that went into something else than training out of ``train/tokens_per_s``."""
        self._window.restart_clock()

    # Evaluation --------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch, batch_idx: int) -> None:
        losses, weights, metrics = self._weighted_losses(batch, batch_idx)
        row_ids = self.row_ids(batch, batch_idx, len(losses))
        self._evaluation.add(losses, weights, metrics, self.num_tokens(batch), row_ids)
        self.latest_losses = row_ids, losses.detach()

    def _log_evaluation(self, stage: str) -> None:
        # Sums and weights are added over ranks before they are divided; self.log would average the ranks' means.
        if not self._evaluation.empty:
            means = self._evaluation.close(self._add_over_ranks).means
            for name, mean in means.items():
                self.log(f"{stage}/{name}", mean, prog_bar=name == "loss", sync_dist=True)
        self._evaluation.clear()
        self._window.restart_clock()

    def on_validation_epoch_start(self) -> None:
        self._evaluation.clear()  # A validation that broke off has left its sums.

    def on_test_epoch_start(self) -> None:
        self._evaluation.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")
