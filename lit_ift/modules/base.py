"""The LightningModule that every objective derives from.

Shapes: B examples, T tokens, N trained positions, D hidden size.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torchmetrics import MeanMetric

from lit_ift.constants import IGNORE_INDEX
from lit_ift.errors import NonFiniteLossError, UserError
from lit_ift.generate import generate_answers
from lit_ift.losses.logprobs import Select, TokenScores, greedy, score_tokens, target_mask
from lit_ift.losses.sft import per_sequence_mean, target_counts
from lit_ift.models.head import LogitTransform, check_hidden_state_path, decoder, is_tied, logit_postprocess
from lit_ift.models.load import load_model, load_tokenizer
from lit_ift.modules.window import AccumulationWindow
from lit_ift.optim import CosineSchedule, LRSchedulerCallable, OptimizerCallable, WarmupSchedule, parameter_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reduction = Literal["sequence", "token"]
Batch = dict[str, Any]
ExampleLosses = tuple[Tensor, dict[str, Tensor]]
"""Losses of shape (B,) with gradient, and detached metrics of shape (B,)."""


def default_optimizer(params: Any) -> Optimizer:
    """AdamW at 2e-5 without weight decay."""
    return AdamW(params, lr=2e-5, weight_decay=0.0)


def token_accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Share of each example's trained tokens that were predicted; 0 for an example without any.

    Args:
        predictions: predicted ids at the trained positions, row-major, (N,).
        labels: (B, T).

    Returns:
        (B,) float32.
    """
    mask = target_mask(labels)
    right = (predictions == labels[:, 1:][mask]).float()
    return per_sequence_mean(right.new_zeros(mask.shape).masked_scatter(mask, right), mask)


def _split_at_answer(input_ids: Tensor, labels: Tensor) -> tuple[list[int], list[int]]:
    """Token ids before the first trained token, and those of the first trained turn; (T,) and (T,)."""
    trained = (labels != IGNORE_INDEX).tolist()
    if True not in trained:
        return [], []
    start = trained.index(True)
    end = trained.index(False, start) if False in trained[start:] else len(trained)
    return input_ids[:start].tolist(), input_ids[start:end].tolist()


class CausalLMModule(L.LightningModule):
    """A causal language model trained on a loss per example.

    A subclass says what an example's loss is, in ``example_losses`` (from the batch) or, for objectives on the
    token losses of one forward pass, in ``per_example_loss``. Everything else is done here: loading, exact
    normalisation of the loss under gradient accumulation and several ranks, logging, evaluation, generation.

    Normalisation: the gradient of an optimizer step is that of ``sum_b weight_b * loss_b / sum_b weight_b`` over
    all examples of all its micro-batches on all ranks, however they were split and however short the last window
    is. To that end ``training_step`` returns sums, and ``optimizer_step`` divides the gradients once, before
    clipping and before ``on_before_optimizer_step``. The mean is logged as ``train/loss``.

    Logged every optimizer step: ``train/loss`` and the objective's metrics, ``train/lr``, ``train/grad_norm``
    (before clipping), ``train/tokens_per_s`` (input tokens of all ranks, padding apart). Validation and test log
    the same means under ``val/`` and ``test/``.

    Args:
        model: hub id, local folder, GGUF file, or a ready ``PreTrainedModel``.
        tokenizer: hub id or folder; by default that of ``model``.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``float64`` or ``auto``. None keeps a ready model as it is and
            loads others in float32, which is what optimizer updates need; use ``trainer.precision=bf16-mixed`` to
            compute in bfloat16.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, …; by default the model's own choice.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        disable_dropout: switch every dropout off (as in arXiv:2405.11870, Table 4).
        trust_remote_code: run code that comes with the model.
        detach_input_embeddings: keep gradients out of the input embeddings. An untied table is then frozen; a tied
            one still learns through the output head.
        reduction: weight of an example in the mean: ``sequence`` counts each example once, ``token`` counts it by its
            trained tokens.
        optimizer: builds the optimizer from parameter groups; AdamW at 2e-5 by default.
        lr_scheduler: builds the scheduler from the optimizer; warm-up and cosine by default.
        generation: options of ``predict``'s answers, as ``model.generate`` takes them; greedy, at most 128 tokens, by
            default.

    Raises:
        ValueError: an option has an unknown value.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        tokenizer: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        disable_dropout: bool = True,
        trust_remote_code: bool = False,
        detach_input_embeddings: bool = False,
        reduction: Reduction = "sequence",
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable = CosineSchedule,
        generation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("sequence", "token"):
            raise ValueError(f"reduction={reduction!r} is not one of 'sequence', 'token'")
        not_plain = ["optimizer", "lr_scheduler"] + ([] if isinstance(model, str) else ["model"])
        self.save_hyperparameters(ignore=not_plain)
        self.model_spec = model
        self.tokenizer_spec = tokenizer
        self.revision = revision
        self.dtype_name = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.disable_dropout = disable_dropout
        self.trust_remote_code = trust_remote_code
        self.detach_input_embeddings = detach_input_embeddings
        self.reduction = reduction
        self.generation = generation or {}
        self._build_optimizer = optimizer
        self._build_scheduler = lr_scheduler
        self._language_model_ready = False
        self._logit_transform = LogitTransform()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._window = AccumulationWindow()
        self._evaluation: dict[str, MeanMetric] = {}
        if not isinstance(model, str):
            self.configure_model()

    # What an objective overrides ---------------------------------------------------------------------------------

    def example_losses(self, batch: Batch) -> ExampleLosses:
        """Loss of each example of a batch, with every forward pass that it takes.

        By default one forward pass on the true tokens, then ``per_example_loss``.

        Returns:
            Losses of shape (B,) with gradient, and detached metrics of shape (B,).
        """
        scores = self.score(self.hidden_states(self.embed(batch["input_ids"]), batch), batch["labels"])
        losses, metrics = self.per_example_loss(scores.nll, scores.mask)
        return losses, {"token_accuracy": token_accuracy(scores.predictions, batch["labels"]), **metrics}

    def per_example_loss(self, nll: Tensor, mask: Tensor) -> ExampleLosses:
        """Loss of each example from its token losses.

        Args:
            nll: negative log-likelihood of the token after each position [nats], 0 off the mask, (B, T-1).
            mask: true where that token is trained on, (B, T-1).

        Returns:
            Losses of shape (B,) with gradient, and detached metrics of shape (B,).
        """
        raise TypeError(f"{type(self).__name__} must override per_example_loss or example_losses")

    def example_weights(self, batch: Batch) -> Tensor:
        """Weight of each example in the mean, (B,) float32; 0 for one without trained tokens."""
        counts = target_counts(target_mask(batch["labels"]))
        return (counts if self.reduction == "token" else counts > 0).float()

    # The language model ------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the language model into ``self.model``; does nothing the second time.

        Raises:
            UserError: the model cannot be obtained, or its architecture is one that this package would score wrongly.
        """
        if self._language_model_ready:
            return
        model = load_model(
            self.model_spec,
            revision=self.revision,
            dtype=self.dtype_name,
            attn_implementation=self.attn_implementation,
            gradient_checkpointing=self.gradient_checkpointing,
            disable_dropout=self.disable_dropout,
            trust_remote_code=self.trust_remote_code,
        )
        check_hidden_state_path(model)
        self._logit_transform = logit_postprocess(model)
        if self.detach_input_embeddings and not is_tied(model):
            # It would never get a gradient, which DDP and resuming under FSDP2 take for an error.
            model.get_input_embeddings().requires_grad_(False)
        self.model: PreTrainedModel = model
        self._language_model_ready = True

    @property
    def tokenizer_source(self) -> str | None:
        """Hub id, folder or file that the tokenizer is loaded from; None where only a ready model was given."""
        return self.tokenizer_spec or (self.model_spec if isinstance(self.model_spec, str) else None)

    @property
    def knows_tokenizer(self) -> bool:
        """True if ``tokenizer`` has an answer."""
        return self._tokenizer is not None or self.tokenizer_source is not None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer, loaded when first asked for.

        Raises:
            UserError: none was named and the model was given ready-made, or it cannot be loaded.
        """
        if self._tokenizer is None:
            source = self.tokenizer_source
            if source is None:
                raise UserError(
                    "The model was given ready-made, so its tokenizer is not known. "
                    "Pass tokenizer='<hub id or folder>' to the module or to the data module."
                )
            self._tokenizer = load_tokenizer(source, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer

    def forward(self, **inputs: Any) -> Any:
        """Call the language model as transformers does."""
        return self.model(**inputs)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Input embeddings through the model's own embedding module, (…) -> (…, D)."""
        embeddings: Tensor = self.model.get_input_embeddings()(input_ids)
        return embeddings.detach() if self.detach_input_embeddings else embeddings

    def hidden_states(self, inputs_embeds: Tensor, batch: Batch) -> Tensor:
        """Final hidden states, (B, T, D) -> (B, T, D); the output head is not run."""
        positions = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
        output = decoder(self.model)(
            inputs_embeds=inputs_embeds,
            attention_mask=batch.get("attention_mask"),
            use_cache=False,
            **positions,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, the model's scaling and soft-capping included, (n, D) -> (n, V)."""
        return self._logit_transform(self.model.get_output_embeddings()(hidden))

    def score(self, hidden: Tensor, labels: Tensor, *, select: Select | None = greedy) -> TokenScores:
        """Score the trained tokens from the hidden states; see ``lit_ift.losses.score_tokens``."""
        return score_tokens(hidden, labels, self.head, select=select)

    # Training ----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        self._window.clear()
        self._window.restart_clock()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the example losses; ``optimizer_step`` divides."""
        losses, metrics = self.example_losses(batch)
        weights = self.example_weights(batch)
        tokens = (
            batch["attention_mask"].sum()
            if "attention_mask" in batch
            else batch["input_ids"].new_tensor(batch["input_ids"].numel())
        )
        row_ids = batch.get("row_ids") or [f"batch {batch_idx}, row {i}" for i in range(len(losses))]
        self._window.add(losses, weights, metrics, tokens, row_ids)
        # Lightning divides by the nominal length of the window; undo that, `_close_window` divides by the true weight.
        return (losses * weights).sum() * self.trainer.accumulate_grad_batches

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        def closure() -> Any:
            loss = optimizer_closure() if optimizer_closure is not None else None
            if not self._window.empty:
                self._close_window(optimizer)
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def _close_window(self, optimizer: Any) -> None:
        """Normalise the gradients of the optimizer step, refuse what is not finite, log."""
        strategy = self.trainer.strategy
        totals = self._window.close(lambda sums: strategy.reduce(sums, reduce_op="sum"))
        if not all(map(math.isfinite, totals.means.values())):
            raise NonFiniteLossError(self._non_finite_message(f"the means {totals.means}"))
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
        grad_norm = self._gradient_norm(gradients)
        if not torch.isfinite(grad_norm) and self._loss_scale() == 1.0:
            raise NonFiniteLossError(self._non_finite_message("the gradient"))
        self.log("train/loss", totals.means.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in totals.means.items()})
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        self.log("train/grad_norm", grad_norm)
        self.log("train/tokens_per_s", totals.tokens_per_s)
        self._window.clear()

    def _loss_scale(self) -> float:
        """Factor on the gradients under float16 mixed precision, else 1."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def _gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """2-norm of all gradients, before clipping; a scalar tensor."""
        norm = torch.nn.utils.get_total_norm(gradients) / self._loss_scale()
        if isinstance(self.trainer.strategy, FSDPStrategy):  # Each rank holds a part of every gradient.
            norm = self.trainer.strategy.reduce(norm.square(), reduce_op="sum").sqrt()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _non_finite_message(self, what: str) -> str:
        checkpoint = self.trainer.checkpoint_callback
        saved = ""
        if checkpoint is not None:
            saved = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        bad = self._window.rows_with_bad_loss()
        culprits = f"with a bad loss: {bad}" if bad else f"in this step: {self._window.row_ids()}"
        return (
            f"Step {self.trainer.global_step}: {what} became NaN or infinite, and the step was not taken. "
            f"Rows on rank {self.trainer.global_rank} {culprits}. "
            f"Last good checkpoint: {saved or 'none was written yet'}. "
            "Look at those rows, lower the learning rate, or clip gradients (trainer.gradient_clip_val)."
        )

    def total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            UserError: the run has no end.
        """
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise UserError(
                "The length of the run is not known, but a schedule needs it. "
                "Set trainer.max_steps or trainer.max_epochs, or give the schedule its steps."
            )
        return int(total)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._build_optimizer(parameter_groups(self))
        scheduler = self._build_scheduler(optimizer)
        if isinstance(scheduler, WarmupSchedule) and scheduler.needs_total_steps:
            scheduler.bind(self.total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Evaluation --------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch) -> None:
        losses, metrics = self.example_losses(batch)
        weights = self.example_weights(batch)
        for name, values in {"loss": losses, **metrics}.items():
            if name not in self._evaluation:
                self._evaluation[name] = MeanMetric(nan_strategy="disable").to(self.device)
            self._evaluation[name].update(values.float(), weights)

    def _log_evaluation(self, stage: str) -> None:
        # MeanMetric adds sums and weights over ranks before it divides; self.log would average the ranks' means.
        for name, metric in self._evaluation.items():
            self.log(f"{stage}/{name}", metric.compute(), prog_bar=name == "loss", sync_dist=True)
        self._evaluation.clear()
        self._window.restart_clock()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Answer each row's prompt, which is what stands before its first trained token.

        Returns:
            For each row ``row_id``, ``prompt``, ``answer``, and ``expected``, the first trained turn.
        """
        rows = [_split_at_answer(ids, labels) for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
        # Padding rows that only keep ranks in step have no trained token, hence no prompt.
        real = [i for i, (_, expected) in enumerate(rows) if expected]
        prompts = [rows[i][0] for i in real]
        answers = dict(generate_answers(self.model, self.tokenizer, prompts, **self.generation))
        row_ids = batch.get("row_ids") or [f"batch {batch_idx}, row {i}" for i in range(len(rows))]
        decode = self.tokenizer.decode
        return [
            {
                "row_id": row_ids[i],
                "prompt": decode(rows[i][0]),
                "answer": answers[position],
                "expected": decode(rows[i][1], skip_special_tokens=True),
            }
            for position, i in enumerate(real)
        ]

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")
