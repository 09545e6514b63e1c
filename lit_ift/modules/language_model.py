"""A language model inside a LightningModule: loaded, sharded, read through its parts.

Shapes: B examples, T tokens, D hidden size, V vocabulary size.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ift.checkpoints.writing import raise_together
from lit_ift.distributed import check_strategy, sharding_of
from lit_ift.distributed.load import WeightFiles, load_skeleton, materialise, stand_ins
from lit_ift.distributed.shard import Sharding, in_root, is_sharded, same_on_all_ranks, shard_model
from lit_ift.errors import UserError
from lit_ift.losses.linear_head import LinearHead
from lit_ift.losses.logprobs import Select, Statistic, TokenScores, chunk_size_for, greedy, score_tokens
from lit_ift.models.added_tokens import ZEPHYR, add_tokens, give_rows
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
from lit_ift.models.lora import add_lora, is_adapted
from lit_ift.models.obtain import obtain_model
from lit_ift.models.quantized import (
    COMPUTE_DTYPES,
    Quantization,
    compute_in,
    is_quantized,
    save_what_trains,
)
from lit_ift.models.source import ModelSource
from lit_ift.models.weight_names import in_words, weight_faults
from lit_ift.modules.by_name import check_patterns, freeze_by_name
from lit_ift.modules.feedback_rows import is_feedback
from lit_ift.modules.fit_check import check_data_fits
from lit_ift.modules.generate import MAX_NEW_TOKENS
from lit_ift.modules.optim import (
    vector_names,
)
from lit_ift.modules.packed import is_packed, needed_mask, scores_by_example
from lit_ift.modules.precision import convert_weights, float32_by_default, keep_batches_exact, uncached_casts
from lit_ift.modules.shared_prompts import SharedPrompts
from lit_ift.modules.stepping import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_ift.modules.optimized import OptimizedModule

T = TypeVar("T")


def _not_sharded(quantization: str) -> UserError:
    return UserError(
        f"Quantized weights ({quantization}) cannot be sharded by FSDP2. Use trainer.strategy=ddp, or leave model."
        "quantization out and name a model that is stored in full precision."
    )


class LanguageModelModule(OptimizedModule):
    """Holds the language model ``self.model``; `CausalLMModule`, which derives from it, says how it is trained.

    The arguments of `CausalLMModule` are its attributes.
    """

    model_spec: "str | PreTrainedModel"
    tokenizer_spec: str | None
    revision: str | None
    dtype_name: str | None
    attn_implementation: str | None
    gradient_checkpointing: bool | int
    disable_dropout: bool
    trust_remote_code: bool
    detach_input_embeddings: bool
    lora: dict[str, Any] | None
    added_tokens: list[str]
    quantization: Quantization | None
    share_prompts: bool
    generation: dict[str, Any]
    freeze_patterns: list[str]
    train_only: list[str] | None

    def __init__(self) -> None:
        super().__init__()
        self._new_token_ids: list[int] = []
        self._language_model_ready = False
        self._froze_embeddings = False
        self._frozen: list[str] = []
        self.others_train_embeddings = False
        self._logit_transform = LogitTransform()
        self._balancing: Balancing | None = None
        self._balancing_losses: list[Tensor] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._files: WeightFiles | None = None

    def __getattr__(self, name: str) -> Tensor | torch.nn.Module:
        if name == "model" and "model" not in self.__dict__.get("_modules", {}):
            raise AttributeError(
                f"The language model of {type(self).__name__} is not there yet: model is loaded by configure_model(), "
                "which the Trainer calls. Without a Trainer, call it first."
            )
        return super().__getattr__(name)

    def configure_model(self) -> None:
        """Load the language model into ``self.model`` unless it is there, and make it ready for this run.

        Under FSDP2 it is sharded here, once.

        Raises:
            UserError: the model cannot be obtained, its architecture is one that this package would score wrongly, or
                the strategy is one under which it would not train rightly.
        """
        check_strategy(self._trainer)
        sharding = sharding_of(self._trainer)
        self.check_sharded(sharding is not None)
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
        if self.freeze_patterns or self.train_only is not None:
            self._frozen += freeze_by_name(self.model, self.freeze_patterns, self.train_only)
        trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        check_patterns("model.lr_factors", self.lr_factors, trained)
        self._vector_names = vector_names(self)
        self.shard(sharding)
        if self._trainer is not None:
            check_data_fits(self.model, self.trainer, new_tokens=self.generation.get("max_new_tokens", MAX_NEW_TOKENS))
        self.prepare()

    def check_sharded(self, sharded: bool) -> None:
        """Refuse options that do not go together with sharding, before the model is loaded.

        Raises:
            UserError: the weights are quantized, and FSDP2 cannot shard such.
        """
        if sharded and self.quantization is not None:
            raise _not_sharded(self.quantization)

    def prepare(self) -> None:
        """Make ready what the objective needs besides the model; called once the model is loaded, before training."""

    def teardown(self, stage: str) -> None:
        # The model may be the caller's, who trains the embeddings with another objective next.
        if self._froze_embeddings:
            self.model.get_input_embeddings().requires_grad_(True)
            self._froze_embeddings = False
        for name, parameter in self.model.named_parameters() if self._frozen else ():
            if name in self._frozen:
                parameter.requires_grad_(True)
        self._frozen = []

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

    def share_model(self, owner: "LanguageModelModule") -> None:
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
            attention_mask=needed_mask(batch),
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
        if type(self).head is not LanguageModelModule.head or not is_plain_linear(layer):
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
