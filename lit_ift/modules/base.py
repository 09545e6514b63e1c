"""The LightningModule that every objective derives from.

Shapes: B examples, T tokens, N trained positions, D hidden size.
"""

import inspect
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import RowKind
from lit_ift.errors import UserError
from lit_ift.imports import check_makes
from lit_ift.losses.logprobs import target_mask
from lit_ift.losses.masking import per_sequence_mean, target_counts
from lit_ift.models.added_tokens import ZEPHYR, check_added_tokens
from lit_ift.models.lora import check_lora
from lit_ift.models.packing_check import check_packing
from lit_ift.models.quantized import (
    Quantization,
    check_quantization,
)
from lit_ift.models.shared_prompts_check import check_shared_prompts
from lit_ift.modules.batch_answers import answers_to
from lit_ift.modules.fit_check import check_batch_fits
from lit_ift.modules.generate import check_generation
from lit_ift.modules.language_model import LanguageModelModule
from lit_ift.modules.one_sweep import hindrance
from lit_ift.modules.optim import (
    CosineSchedule,
    LRSchedulerCallable,
    OptimizerCallable,
)
from lit_ift.modules.optimized import default_optimizer
from lit_ift.modules.packed import check_packed_batch, is_packed, unpacked
from lit_ift.modules.stepping import Batch, ExampleLosses
from lit_ift.options import NonNegativeInt, Positive, Range

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Reduction = Literal["sequence", "token"]


def token_accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Share of each example's trained tokens that were predicted; 0 for an example without any.

    Args:
        predictions: predicted ids at the trained positions, row-major, (N,).
        labels: one row per example, (B, T).

    Returns:
        (B,) float32.
    """
    mask = target_mask(labels)
    right = (predictions == labels[:, 1:][mask]).float()
    return per_sequence_mean(right.new_zeros(mask.shape).masked_scatter(mask, right), mask)


class CausalLMModule(LanguageModelModule):
    """A causal language model trained on a loss per example.

    A subclass says what an example's loss is, in ``example_losses`` (from the batch) or, for objectives on the
    token losses of one forward pass, in ``per_example_loss``. Everything else is done here: loading, exact
    normalisation of the loss under gradient accumulation and several ranks, logging, evaluation, generation.

    A packed batch holds several examples in a row, told apart by ``sequence_ids``. ``score`` and ``unpacked`` give
    one row per example whether the batch is packed or not, so that objectives need not know.

    An optimizer step follows the exact mean over all its examples on all ranks, and logs it: see
    ``ExampleMeanModule``.

    Args:
        model: hub id, local folder, GGUF file, or a ready ``PreTrainedModel``.
        tokenizer: hub id or folder; by default that of ``model``.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``float64`` or ``auto``. None keeps a ready model as it is and
            loads others in float32, which is what optimizer updates need; use ``trainer.precision=bf16-mixed`` to
            compute in bfloat16.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, …; by default the model's own choice.
        gradient_checkpointing: recompute activations in the backward pass to save memory; a number n does so in every
            n-th layer only.
        disable_dropout: switch every dropout of the model off (as in arXiv:2405.11870, Table 4); ``lora_dropout`` is
            kept where it is asked for.
        trust_remote_code: run code that comes with the model.
        detach_input_embeddings: keep gradients out of the input embeddings. An untied table is then frozen; a tied
            one still learns through the output head.
        lora: train a LoRA adapter on the frozen model: options of ``peft.LoraConfig`` (``r``, ``lora_alpha``,
            ``lora_dropout``, ``target_modules``, ``use_dora``, …), empty for its defaults. ``target_modules`` is
            ``all-linear`` if not given. ``{from: FOLDER}`` goes on with the adapter that another run exported, so that
            DPO after SFT needs no merge. Needs ``pip install 'lit-ift[lora]'``.
        added_tokens: special tokens that the chat template needs and the tokenizer lacks, such as
            ``["<|im_start|>", "<|im_end|>"]`` for ChatML on a base model. Their rows in embedding and output head begin
            as the mean of the others, are trained with all weights, and are exported. Not with ``lora``.
        freeze: patterns of names of parameters that are not trained, such as ``["model.embed_tokens.*"]``.
        train_only: patterns of the only ones that are, of those that would be trained otherwise.
        lr_factors: what the learning rate is multiplied by for parameters whose names match, such as
            ``{"*embed_tokens*": 0.1}``; the first pattern that matches counts.
        quantization: hold the frozen weights under ``lora`` in ``nf4``, ``fp4`` or ``int8``: those of all linear
            layers but the output head. Checkpoints then hold the adapter alone. Needs
            ``pip install 'lit-ift[quantization]'``.
        share_prompts: read a prompt once where two passes read it (IFT, inputs that look ahead) or several answers have
            it (pairs), to save time. Losses and gradients are the same. Not with ``gradient_checkpointing``, nor with
            attention other than ``sdpa`` and ``eager``.
        max_bad_steps: optimizer steps of a run that may be skipped because their loss or gradient is not finite, before
            the next one stops the run, as the first one does by default.
        bad_step_norm: skip steps too whose gradient norm, before clipping, is more than so many times the median of the
            last 100 steps; from the 21st step on. None, the default, skips none for that.
        reduction: weight of an example in the mean: ``sequence`` counts each example once, ``token`` counts it by its
            trained tokens.
        optimizer: builds the optimizer from parameter groups; AdamW at 2e-5 by default. torch's Adam and AdamW run
            fused unless they are told not to (``fused: false``).
        lr_scheduler: builds the scheduler from the optimizer; warm-up and cosine by default.
        generation: options of ``predict``'s answers, as ``model.generate`` takes them; greedy, at most 128 tokens, by
            default, whatever the model's generation config says; with ``do_sample`` that fills in what is left out.
            ``prior`` is text that every answer begins with (PreTTY, arXiv:2404.16766).

    Raises:
        ValueError: an option has an unknown value.
        UserError: ``lora`` has an unknown option, or a package is missing.
    """

    kinds: frozenset[RowKind] = frozenset({"instruction"})
    """Rows that the objective learns from."""

    needs_gold: bool = False
    """Whether its pairs must have a third answer."""

    uses_soft_labels: bool = False
    """Whether it asks pairs how likely their chosen answer is the better one."""

    not_saved: tuple[str, ...] = ("optimizer", "lr_scheduler")
    """Arguments that are objects, and so no hyperparameters: a checkpoint is loaded with plain values only.

    A subclass with more of them names them beside these.
    """

    one_sweep: bool | None = None
    """Whether head, loss and their gradients may be made together, which takes losses to be weighted by
    ``example_weights``: None where a Trainer trains, True always, False never. See ``lit_ift.losses.one_sweep``."""

    needs_mismatched: bool = False
    """Whether its thumbs and pairs must come with the answer to another prompt."""

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        tokenizer: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        gradient_checkpointing: bool | NonNegativeInt = False,
        disable_dropout: bool = True,
        trust_remote_code: bool = False,
        detach_input_embeddings: bool = False,
        lora: dict[str, Any] | None = None,
        added_tokens: list[str] | None = None,
        freeze: list[str] | None = None,
        train_only: list[str] | None = None,
        lr_factors: dict[str, Positive] | None = None,
        quantization: Quantization | None = None,
        share_prompts: bool = False,
        max_bad_steps: NonNegativeInt = 0,
        bad_step_norm: Annotated[float, Range(gt=1)] | None = None,
        reduction: Reduction = "sequence",
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable = CosineSchedule,
        generation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_makes("optimizer", optimizer, Optimizer, by_path=False)
        check_makes("lr_scheduler", lr_scheduler, LRScheduler, by_path=False)
        if quantization is not None:
            if lora is None:
                raise ValueError(f"quantization={quantization!r} leaves nothing to train without an adapter: set lora")
            if not isinstance(model, str):
                raise ValueError(f"quantization={quantization!r} has no meaning for a model that is already loaded")
            check_quantization(quantization, dtype)
        if lora is not None:
            check_lora(lora)
        if share_prompts and not self.can_share_prompts:
            raise ValueError(
                "share_prompts has no use: each prompt is read once, or each time with other noise. Leave it out."
            )
        if bad_step_norm is not None and not max_bad_steps:
            raise ValueError(
                f"bad_step_norm={bad_step_norm} skips nothing with max_bad_steps=0. Set max_bad_steps too."
            )
        check_added_tokens(added_tokens)
        if added_tokens and lora is not None:
            raise UserError(
                f"model.added_tokens has no use with model.lora, which freezes the rows that they would learn. Use "
                f"{ZEPHYR}, or train all weights without lora."
            )
        if added_tokens and tokenizer is None and not isinstance(model, str):
            raise UserError("model.added_tokens needs the tokenizer of the ready model: set model.tokenizer.")
        # Not as a part of this module, which would save a ready model twice.
        object.__setattr__(self, "model_spec", model)
        self.save_hyperparameters()
        self.tokenizer_spec = tokenizer
        self.revision = revision
        self.dtype_name = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.disable_dropout = disable_dropout
        self.trust_remote_code = trust_remote_code
        self.detach_input_embeddings = detach_input_embeddings
        self.lora = lora
        self.added_tokens = list(added_tokens or ())
        self.freeze_patterns = list(freeze or ())
        self.train_only = None if train_only is None else list(train_only)
        self.lr_factors = dict(lr_factors or {})
        self.quantization = quantization
        self.share_prompts = share_prompts
        self.max_bad_steps = max_bad_steps
        self.bad_step_norm = bad_step_norm
        self.reduction = reduction
        self.generation = generation or {}
        check_generation(self.generation)
        self._build_optimizer = optimizer
        self._build_scheduler = lr_scheduler
        self._proven: set[Callable[[Any], None]] = set()
        if not isinstance(model, str):
            self._load()

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """As Lightning's, without what ``not_saved`` names and a ready model, also where a subclass calls it."""
        objects = {*self.not_saved, *(() if isinstance(self.model_spec, str) else ("model",))}
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        here = inspect.currentframe()
        # Lightning reads the arguments of the `__init__` that called.
        frame = frame or (None if here is None else here.f_back)
        super().save_hyperparameters(*args, ignore=sorted(ignored | objects), frame=frame, logger=logger)

    # What an objective overrides ---------------------------------------------------------------------------------

    @property
    def can_share_prompts(self) -> bool:
        """Whether it reads a prompt as it is, in several passes or for several answers."""
        return False

    def example_losses(self, batch: Batch) -> ExampleLosses:
        """Loss of each example of a batch, with every forward pass that it takes.

        By default one forward pass on the true tokens, then ``per_example_loss``.

        Returns:
            Losses of shape (B,) with gradient, and detached metrics of shape (B,).
        """
        scores = self.score(self.hidden_states(self.embed(batch["input_ids"]), batch), batch)
        losses, metrics = self.per_example_loss(scores.nll, scores.mask)
        return losses, {"token_accuracy": token_accuracy(scores.predictions, unpacked(batch)["labels"]), **metrics}

    def per_example_loss(self, nll: Tensor, mask: Tensor) -> ExampleLosses:
        """Loss of each example from its token losses.

        Args:
            nll: negative log-likelihood of the token after each position [nats], 0 off the mask, (B, T-1).
            mask: true where that token is trained on, (B, T-1).

        Returns:
            Losses of shape (B,) with gradient, and detached metrics of shape (B,).
        """
        raise TypeError(f"{type(self).__name__} must override per_example_loss or example_losses")

    def all_losses(self, batch: Batch) -> ExampleLosses:
        """``example_losses``, and the balancing loss of the passes with gradient, if the model is one of experts.

        It is that of the micro-batch, and added to the loss of each of its examples, so that their mean is what
        transformers gives for the same batch. Logged as ``balancing_loss``, without its coefficient.
        """
        self._balancing_losses.clear()
        losses, metrics = self.example_losses(batch)
        if self._balancing is None or not self._balancing_losses:
            return losses, metrics
        balancing = torch.stack(self._balancing_losses).sum()
        self._balancing_losses.clear()
        losses = losses + self._balancing.coefficient * balancing.to(losses.dtype)
        return losses, {**metrics, "balancing_loss": balancing.detach().to(losses.dtype).expand(losses.shape)}

    @property
    def row_wise(self) -> bool:
        """Whether the loss of a row is a function of the log-probabilities of its own tokens, and of data."""
        return False

    def example_weights(self, batch: Batch) -> Tensor:
        """Weight of each example in the mean, (B,) float32; 0 for one without trained tokens."""
        counts = target_counts(target_mask(unpacked(batch)["labels"]))
        return (counts if self.reduction == "token" else counts > 0).float()

    def start_note(self) -> str:
        reason = hindrance(self)
        return "The output head takes one sweep." if reason is None else f"The output head takes two sweeps: {reason}."

    def check_batch(self, batch: Batch) -> None:
        missing = [name for name in ("input_ids", "labels") if name not in batch]
        if missing:
            raise UserError(
                f"The batch has no {' and no '.join(missing)}; it has {', '.join(batch)}. {type(self).__name__} needs "
                f"input_ids and labels of shape (B, T), labels being {IGNORE_INDEX} where not trained on."
            )
        check_batch_fits(self.model, batch["input_ids"], packed=is_packed(batch))
        mask = batch.get("attention_mask")
        if mask is not None and "position_ids" not in batch and bool((mask[:, 0] == 0).any()):
            raise UserError(
                "Rows are padded on the left, which shifts the positions of models with position embeddings. "
                "Pad on the right, or put position_ids into the batch."
            )
        if is_packed(batch):
            check_packed_batch(batch)
            self.prove(check_packing)
        if self.share_prompts:
            self.prove(check_shared_prompts)

    def prove(self, check: Callable[[Any], None]) -> None:
        """Let a check of the language model raise, once."""
        if check not in self._proven:
            with torch.no_grad():
                self.in_forward(lambda: check(self.model))
            self._proven.add(check)

    # Answers -----------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Answer each row's prompt; see ``lit_ift.modules.batch_answers.answers_to``."""
        return answers_to(self, batch, batch_idx)
