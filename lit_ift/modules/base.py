"""The LightningModule that every objective derives from.

Shapes: B examples, T tokens, N trained positions, D hidden size.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ift.checkpoints.writing import raise_together
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.rows import RowKind
from lit_ift.distributed import check_strategy, sharding_of
from lit_ift.distributed.load import WeightFiles, load_skeleton, materialise, stand_ins
from lit_ift.distributed.shard import Sharding, in_root, is_sharded, same_on_all_ranks, shard_model
from lit_ift.errors import UserError
from lit_ift.imports import check_makes
from lit_ift.losses.linear_head import LinearHead
from lit_ift.losses.logprobs import Select, Statistic, TokenScores, chunk_size_for, greedy, score_tokens, target_mask
from lit_ift.losses.masking import per_sequence_mean, target_counts
from lit_ift.models.added_tokens import ZEPHYR, add_tokens, check_added_tokens, give_rows
from lit_ift.models.balancing import Balancing, balancing_of
from lit_ift.models.dropout import check_dropout_is_off
from lit_ift.models.head import (
    LogitTransform,
    check_hidden_state_path,
    decoder,
    is_plain_linear,
    is_tied,
    logit_postprocess,
)
from lit_ift.models.limits import damage_of
from lit_ift.models.load import load_model, load_tokenizer
from lit_ift.models.lora import add_lora, check_lora, is_adapted
from lit_ift.models.obtain import obtain_model
from lit_ift.models.packing_check import check_packing
from lit_ift.models.quantized import (
    COMPUTE_DTYPES,
    Quantization,
    check_quantization,
    compute_in,
    is_quantized,
    save_what_trains,
)
from lit_ift.models.shared_prompts_check import check_shared_prompts
from lit_ift.models.source import ModelSource
from lit_ift.models.weight_names import in_words, weight_faults
from lit_ift.modules.batch_answers import answers_to
from lit_ift.modules.feedback_rows import is_feedback
from lit_ift.modules.fit_check import check_batch_fits, check_data_fits
from lit_ift.modules.generate import MAX_NEW_TOKENS, check_generation
from lit_ift.modules.one_sweep import hindrance
from lit_ift.modules.optim import (
    CosineSchedule,
    LRSchedulerCallable,
    OptimizerCallable,
    WarmupSchedule,
    check_eps,
    lost_updates,
    parameter_groups,
    use_fused_kernels,
    vector_names,
)
from lit_ift.modules.packed import check_packed_batch, is_packed, scores_by_example, unpacked
from lit_ift.modules.precision import convert_weights, float32_by_default, keep_batches_exact, uncached_casts
from lit_ift.modules.shared_prompts import SharedPrompts
from lit_ift.modules.stepping import Batch, ExampleLosses, ExampleMeanModule
from lit_ift.modules.tuning import set_learning_rate
from lit_ift.options import NonNegativeInt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
Reduction = Literal["sequence", "token"]

LOST_UPDATES: Final = 0.1
"""Share of weights that half precision may keep from learning without a warning."""


def default_optimizer(params: Any) -> Optimizer:
    """AdamW at 2e-5 without weight decay."""
    return AdamW(params, lr=2e-5, weight_decay=0.0)


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


def _not_sharded(quantization: str) -> UserError:
    return UserError(
        f"Quantized weights ({quantization}) cannot be sharded by FSDP2. Use trainer.strategy=ddp, or leave model."
        "quantization out and name a model that is stored in full precision."
    )


class CausalLMModule(ExampleMeanModule):
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
            ``all-linear`` if not given. Needs ``pip install 'lit-ift[lora]'``.
        added_tokens: special tokens that the chat template needs and the tokenizer lacks, such as
            ``["<|im_start|>", "<|im_end|>"]`` for ChatML on a base model. Their rows in embedding and output head begin
            as the mean of the others, are trained with all weights, and are exported. Not with ``lora``.
        quantization: hold the frozen weights under ``lora`` in ``nf4``, ``fp4`` or ``int8``: those of all linear
            layers but the output head. Checkpoints then hold the adapter alone. Needs
            ``pip install 'lit-ift[quantization]'``.
        share_prompts: read a prompt once where two passes read it (IFT, inputs that look ahead) or several answers have
            it (pairs), to save time. Losses and gradients are the same. Not with ``gradient_checkpointing``, nor with
            attention other than ``sdpa`` and ``eager``.
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

    lora_rate: float = 2e-4
    """Learning rate that suits an adapter; one for all weights is about a tenth of it."""

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
        quantization: Quantization | None = None,
        share_prompts: bool = False,
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
        self._new_token_ids: list[int] = []
        self.quantization = quantization
        self.share_prompts = share_prompts
        self.reduction = reduction
        self.generation = generation or {}
        check_generation(self.generation)
        self._lr: float | None = None
        self._build_optimizer = optimizer
        self._build_scheduler = lr_scheduler
        self._language_model_ready = False
        self._froze_embeddings = False
        self.others_train_embeddings = False
        self._proven: set[Callable[[Any], None]] = set()
        self._vector_names: frozenset[str] = frozenset()
        self._logit_transform = LogitTransform()
        self._balancing: Balancing | None = None
        self._balancing_losses: list[Tensor] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._files: WeightFiles | None = None
        if not isinstance(model, str):
            self._load()

    def __getattr__(self, name: str) -> Tensor | torch.nn.Module:
        if name == "model" and "model" not in self.__dict__.get("_modules", {}):
            raise AttributeError(
                f"The language model of {type(self).__name__} is not there yet: model is loaded by configure_model(), "
                "which the Trainer calls. Without a Trainer, call it first."
            )
        return super().__getattr__(name)

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

    # The language model ------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the language model into ``self.model`` unless it is there, and make it ready for this run.

        Under FSDP2 it is sharded here, once.

        Raises:
            UserError: the model cannot be obtained, its architecture is one that this package would score wrongly, or
                the strategy is one under which it would not train rightly.
        """
        check_strategy(self._trainer)
        sharding = sharding_of(self._trainer)
        if sharding is not None and self.quantization is not None:
            raise _not_sharded(self.quantization)
        with float32_by_default():  # An adapter's first weights are the same under every precision.
            self._load(in_parts=sharding is not None)
        convert_weights(self._trainer, self.model)
        keep_batches_exact(self._trainer)
        if self._trainer is not None and str(self.trainer.precision) in COMPUTE_DTYPES:
            compute_in(self.model, COMPUTE_DTYPES[str(self.trainer.precision)])
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        if fits and is_quantized(self.model) and not is_adapted(self.model):
            raise UserError(
                "The weights are stored in quantized form, in which they cannot be trained. Train an adapter on them "
                "(model.lora), or name a model that is stored in full precision."
            )
        embedding = self.model.get_input_embeddings()
        if self.detach_input_embeddings and not is_tied(self.model):
            if fits and self._new_token_ids:
                raise UserError(
                    "model.added_tokens has no use with model.detach_input_embeddings on a model whose embedding and "
                    f"output head are not tied: the new rows of the embedding would not be trained. Use {ZEPHYR}, or "
                    "set model.detach_input_embeddings=false."
                )
            # It would never get a gradient, which DDP and resuming under FSDP2 take for an error.
            self._froze_embeddings |= embedding.weight.requires_grad
            embedding.requires_grad_(False)
        elif not embedding.weight.requires_grad and not is_adapted(self.model):  # LoRA freezes the model on purpose.
            rank_zero_warn("The input embeddings do not require gradients and will not be trained.")
        self._vector_names = vector_names(self)
        self.shard(sharding)
        if self._trainer is not None:
            check_data_fits(self.model, self.trainer, new_tokens=self.generation.get("max_new_tokens", MAX_NEW_TOKENS))
        self.prepare()

    def prepare(self) -> None:
        """Make ready what the objective needs besides the model; called once the model is loaded, before training."""

    def teardown(self, stage: str) -> None:
        # The model may be the caller's, who trains the embeddings with another objective next.
        if self._froze_embeddings:
            self.model.get_input_embeddings().requires_grad_(True)
            self._froze_embeddings = False

    def _load(self, *, in_parts: bool = False) -> None:
        if self._language_model_ready:
            return
        place = self.model_source or self.model_spec
        options: dict[str, Any] = {
            "revision": None if isinstance(place, ModelSource) else self.revision,
            "dtype": self.dtype_name,
            "attn_implementation": self.attn_implementation,
            "gradient_checkpointing": self.gradient_checkpointing,
            "disable_dropout": self.disable_dropout,
            "trust_remote_code": self.trust_remote_code,
        }
        found = None
        # Embeddings that grow do not fit the files.
        if in_parts and self.quantization is None and not self.added_tokens:
            found = load_skeleton(place, lora=self.lora, **options)
        model: Any
        if found is None:
            model = load_model(place, quantization=self.quantization, **options)
            if self.added_tokens:
                self._tokenizer = self.tokenizer  # It knows which of them are new once it is loaded.
                give_rows(model, self._new_token_ids)
            model = model if self.lora is None else add_lora(model, self.lora)
            check_hidden_state_path(model)
        else:  # It is checked once `shard` has read its weights.
            model, self._files = found
            if self.lora is not None:
                with stand_ins(model):
                    model = add_lora(model, self.lora)
        self._logit_transform = logit_postprocess(model)
        self._balancing = balancing_of(model)
        self.model: PreTrainedModel = model
        self._language_model_ready = True
        if is_quantized(model):
            save_what_trains(self)

    def shard(self, sharding: Sharding | None, *, keep_root: bool = False) -> None:
        """Shard the loaded model over ranks; for None, or if it is sharded already, do nothing.

        Args:
            sharding: how.
            keep_root: see ``shard_model``.

        Raises:
            UserError: quantized weights cannot be sharded, or the model does not name its layers.
        """
        if sharding is None or is_sharded(self.model):
            return
        if is_quantized(self.model):
            raise _not_sharded("stored in the model's folder")
        # Else all ranks read the same file.
        if self.lora is not None or self.added_tokens or not isinstance(self.model_spec, str):
            same_on_all_ranks(self.model, sharding.device, all_of_it=not isinstance(self.model_spec, str))
        shard_model(self.model, sharding, keep_root=keep_root)
        if self._files is not None:
            materialise(self.model, torch.device("cpu") if sharding.offload else sharding.device)
            self._files.read_into(self.model)
            self._files = None
            raise_together(damage_of(self.model, str(self.model_spec)))
            with torch.no_grad():
                if self.disable_dropout and self.lora is None:
                    self.in_forward(lambda: check_dropout_is_off(self.model))
                self.in_forward(lambda: check_hidden_state_path(self.model))

    def in_forward(self, compute: Callable[[], T]) -> T:
        """Call a function that uses parts of ``self.model``; see ``lit_ift.distributed.shard.in_root``."""
        return in_root(self.model, compute)

    def share_model(self, owner: "CausalLMModule") -> None:
        """Use the language model, tokenizer and trainer of another module, which owns them."""
        self.model = owner.model
        self._logit_transform = owner._logit_transform
        self._balancing = owner._balancing
        self._tokenizer = owner._tokenizer
        self._language_model_ready = True
        self._trainer = owner._trainer
        self._device = owner._device

    @cached_property
    def model_source(self) -> ModelSource | None:
        """Where the model is loaded from; None if it was given ready-made.

        Raises:
            UserError: there is no such model.
        """
        return obtain_model(self.model_spec, revision=self.revision) if isinstance(self.model_spec, str) else None

    @cached_property
    def tokenizer_source(self) -> ModelSource | None:
        """Where the tokenizer is loaded from; None where only a ready model was given.

        Raises:
            UserError: there is no such tokenizer.
        """
        if self.tokenizer_spec in (None, self.model_spec):
            return self.model_source
        return obtain_model(self.tokenizer_spec)  # The model's revision says nothing of it.

    @property
    def knows_tokenizer(self) -> bool:
        """True if ``tokenizer`` has an answer."""
        return self._tokenizer is not None or self.tokenizer_spec is not None or isinstance(self.model_spec, str)

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
            self._tokenizer = load_tokenizer(source, trust_remote_code=self.trust_remote_code)
            self._new_token_ids = add_tokens(self._tokenizer, self.added_tokens)
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
        if not self.detach_input_embeddings:
            return embeddings
        # DDP, and resuming under FSDP2, want a gradient in every step for a table that other steps train.
        return embeddings.detach() + 0 * embeddings if self.others_train_embeddings else embeddings.detach()

    def hidden_states(self, inputs_embeds: Tensor, batch: Batch) -> Tensor:
        """Final hidden states of the batch's rows, (B, T, D) -> (B, T, D); the output head is not run."""
        if self.share_prompts and is_feedback(batch):
            return SharedPrompts(self, inputs_embeds, batch).hidden_states(inputs_embeds)
        positions = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
        balancing = self._balancing if torch.is_grad_enabled() else None
        asked = {} if balancing is None else {"output_router_logits": True}
        output = decoder(self.model)(
            inputs_embeds=inputs_embeds,
            attention_mask=batch.get("attention_mask"),
            use_cache=False,
            **positions,
            **asked,
        )
        if balancing is not None:
            real = batch["sequence_ids"] >= 0 if is_packed(batch) else batch.get("attention_mask")
            self._balancing_losses.append(balancing.loss(output.router_logits, real))
        hidden: Tensor = output.last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, the model's scaling and soft-capping included, (n, D) -> (n, V)."""
        with uncached_casts(hidden.device.type):
            return self._logit_transform(self.model.get_output_embeddings()(hidden))

    def linear_head(self) -> LinearHead | None:
        """The output head taken apart; None if it is more than a linear layer, or ``head`` is overridden."""
        layer = self.model.get_output_embeddings()
        if type(self).head is not CausalLMModule.head or not is_plain_linear(layer):
            return None
        return LinearHead(layer.weight, layer.bias, self._logit_transform.scale, self._logit_transform.softcap)

    def score(
        self,
        hidden: Tensor,
        batch: Batch,
        *,
        select: Select | None = greedy,
        statistics: Mapping[str, Statistic] | None = None,
    ) -> TokenScores:
        """Score the trained tokens from the hidden states, with one row per example.

        Args:
            hidden: of the batch's rows, (B, T, D); packed rows hold several examples each.
            batch: its ``labels`` are scored.
            select: see ``lit_ift.losses.score_tokens``.
            statistics: see ``lit_ift.losses.score_tokens``.
        """
        vocabulary_size = self.model.get_output_embeddings().weight.shape[0]
        chunk_size = chunk_size_for(vocabulary_size)
        scores = score_tokens(
            hidden,
            batch["labels"],
            self.head,
            select=select,
            statistics=statistics,
            chunk_size=chunk_size,
            linear=self.linear_head(),
        )
        return scores_by_example(scores, batch)

    # Optimization ------------------------------------------------------------------------------------------------

    @property
    def lr(self) -> float | None:
        """Peak learning rate instead of the optimizer's own; None leaves that. ``Tuner.lr_find`` sets it."""
        return self._lr

    @lr.setter
    def lr(self, rate: float | None) -> None:
        self._lr = rate
        if rate is not None and self._trainer is not None and self.trainer.optimizers:
            set_learning_rate(self.trainer, rate)
            self.remember_configuration(self.trainer.optimizers[0])

    def on_train_start(self) -> None:
        # A tuner may have changed the size of batches, or the learning rate, since the schedule was made.
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupSchedule) and config.scheduler.is_bound:
                config.scheduler.bind(self.total_steps())
        super().on_train_start()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = self._build_optimizer(parameter_groups(self, self._vector_names))
        except ValueError as error:  # As torch's have it for a learning rate below 0.
            raise UserError(f"The optimizer refuses its options: {error}") from error
        check_eps(optimizer)
        use_fused_kernels(optimizer)
        for group in optimizer.param_groups if self._lr is not None else ():
            group["lr"] = self._lr
        scheduler = self._build_scheduler(optimizer)
        for option, made, kind in (("optimizer", optimizer, Optimizer), ("lr_scheduler", scheduler, LRScheduler)):
            if not isinstance(made, kind):
                raise UserError(f"{option} returned {type(made).__name__} {made!r}, where {kind.__name__} is needed.")
        if isinstance(scheduler, WarmupSchedule) and scheduler.needs_total_steps:
            scheduler.bind(self.total_steps())
        self.remember_configuration(optimizer)
        share, rate = lost_updates(optimizer)
        if share > LOST_UPDATES:
            rank_zero_warn(
                f"{share:.0%} of the trained weights would not move: they are kept in half precision, in which a step "
                f"of the learning rate's size ({rate:g}) is rounded away. Set trainer.precision=bf16-mixed and leave "
                "model.dtype at float32, which computes in bfloat16 and keeps the weights in float32."
            )
        if is_adapted(self.model) and rate < self.lora_rate / 4:
            rank_zero_warn(
                f"The learning rate {rate:g} is one for training all weights. An adapter learns little with it: set "
                f"model.optimizer's lr to about {self.lora_rate:g}, as configs/lora/lora.yaml does for SFT and IFT."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Say in short, by names and shapes, that a checkpoint is of another model.

        Raises:
            UserError: it is.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            stored = {name: getattr(value, "shape", None) for name, value in state_dict.items()}
            raise UserError(
                "The checkpoint is of another model: "
                f"{in_words(weight_faults(self.state_dict(), stored)) or 'its weights cannot be copied'}. Give the "
                "model and its adapter (model.init_args.model, lora) as in the run that wrote it."
            ) from error

    # Answers -----------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Answer each row's prompt; see ``lit_ift.modules.batch_answers.answers_to``."""
        return answers_to(self, batch, batch_idx)
