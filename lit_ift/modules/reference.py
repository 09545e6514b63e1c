"""The frozen policy that objectives compare with: the one that training began from.

Shapes: A answers, B rows of T tokens as the batch has them, D hidden size, V vocabulary size.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_ift.distributed import sharding_of
from lit_ift.distributed.shard import copy_sharded, is_sharded
from lit_ift.errors import UserError
from lit_ift.losses.logprobs import TokenScores, chunk_size_for, target_mask
from lit_ift.losses.masking import target_counts
from lit_ift.losses.token_kl import token_kl
from lit_ift.models.lora import adapters_off, adds_nothing, is_adapted
from lit_ift.models.quantized import compute_dtype_of, compute_in
from lit_ift.models.shared_prompts_check import check_shared_prompts
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.packed import scores_by_example, unpacked
from lit_ift.modules.precision import convert_weights
from lit_ift.modules.reference_cache import CachedReference
from lit_ift.modules.stepping import Batch
from lit_ift.options import CheckedOptions

if TYPE_CHECKING:
    from lit_ift.losses.logprobs import Head

ReferenceKind = Literal["auto", "cached", "adapter", "model"]


class ReferencePolicy(CheckedOptions):
    """Says how likely the initial policy found the answers of a batch.

    ``cached`` computes the log-probability of every answer once, before training, and keeps it on disk: no second
    model is held, but only sums over answers are known. ``adapter`` switches the LoRA adapter off, which leaves the
    base model. ``model`` holds a second, frozen model. ``auto`` is ``adapter`` where the policy has an adapter, else
    ``cached``, or ``model`` where that does not suffice.

    The initial policy is the module's when `prepare` was first called. A run that continues from a checkpoint
    restores it after that, and so compares with the same policy as before.

    Args:
        kind: how the reference is had.
        cache_dir: where ``cached`` keeps its numbers; the folder ``reference`` in that of tokenized data by default.
        model: hub id or folder of the model for ``model``; the policy's own by default. Given with ``auto``, it
            means ``model``.
        needs_tokens: whether more than sums over answers will be asked for.

    Raises:
        ValueError: an option is unknown, or of no effect beside the others.
    """

    def __init__(
        self,
        kind: ReferenceKind = "auto",
        *,
        cache_dir: str | None = None,
        model: str | None = None,
        needs_tokens: bool = False,
    ) -> None:
        if kind == "cached" and needs_tokens:
            raise ValueError(
                "reference='cached' holds sums over answers, but this objective needs the reference for each token; "
                "use 'adapter' or 'model'"
            )
        if model is not None and kind not in ("auto", "model"):
            raise ValueError(f"the reference model {model!r} has no effect with reference={kind!r}; use 'model'")
        if cache_dir is not None and (kind in ("adapter", "model") or model is not None or needs_tokens):
            why = f"reference={kind!r}" if kind != "auto" else "a reference model" if model else "a reference by tokens"
            raise ValueError(f"the reference's cache_dir {cache_dir!r} has no effect with {why}; leave it out")
        self.kind: ReferenceKind = kind
        self.model = model
        self.needs_tokens = needs_tokens
        self.cache_dir = cache_dir
        self.weights_restored = False
        """Set where a checkpoint's weights are loaded outside of a run: they, then, are the initial policy."""
        self._cached = CachedReference(cache_dir)
        self._second: CausalLMModule | None = None  # No part of the policy: neither saved nor optimized with it.

    def prepare(self, module: CausalLMModule) -> None:
        """Get ready for a run; called at the end of the module's ``configure_model``.

        The weights must still be those to compare with. What a call for an earlier run has made is kept.

        Raises:
            UserError: the reference cannot be obtained this way.
        """
        self.kind = self._resolved(module)
        if self.kind == "adapter":
            self._check_adapter(module)
        elif self.kind == "model":
            self._load_second(module)
        elif module._trainer is not None:  # Without one, a checkpoint is being loaded: there is no data yet.
            if self.weights_restored:
                rank_zero_warn(
                    "The module was loaded from a checkpoint, and reference=cached compares with the policy as it "
                    "was loaded. If the checkpoint is one of this objective, to resume or evaluate its run, make the "
                    "module anew and give the Trainer ckpt_path instead."
                )
            self._cached.prepare(module)

    @torch.no_grad()
    def logps(self, module: CausalLMModule, batch: Batch) -> Tensor:
        """Log-probability of each answer's trained tokens, summed [nats], (A,) float32 or better, no gradient.

        Raises:
            UserError: it is to be read from the batch, which lacks it.
        """
        if self.kind == "cached":
            return _read(batch)
        return -self.scores(module, batch).nll.sum(-1)

    @torch.no_grad()
    def scores(self, module: CausalLMModule, batch: Batch) -> TokenScores:
        """What the reference says of the trained tokens of each answer, no gradient.

        Raises:
            UserError: the reference is not known by tokens.
        """
        with self._scorer(module) as scorer:
            scores = scorer.in_forward(
                lambda: scorer.score(scorer.hidden_states(scorer.embed(batch["input_ids"]), batch), batch, select=None)
            )
        # Autocast keeps the casts that it made of the weights; those made here carry no gradient.
        torch.clear_autocast_cache()
        return scores

    @contextmanager
    def hidden_and_head(self, module: CausalLMModule, batch: Batch) -> "Iterator[tuple[Tensor, Head]]":
        """The reference's hidden states of the batch's rows, (B, T, D), and its output head, neither with gradient.

        Inside the context the policy is itself: only the head given here speaks for the reference.

        Raises:
            UserError: the reference is not known by tokens.
        """
        with self._scorer(module) as scorer, torch.no_grad():
            hidden = scorer.in_forward(lambda: scorer.hidden_states(scorer.embed(batch["input_ids"]), batch))
        torch.clear_autocast_cache()
        # Most adapters leave the head alone; then there is nothing to switch for every chunk of positions.
        shared_head = self.kind == "adapter" and not is_adapted(module.model.get_output_embeddings())

        @torch.no_grad()
        def head(states: Tensor) -> Tensor:
            with nullcontext(module) if shared_head else self._scorer(module) as scorer:
                return scorer.head(states)

        yield hidden, head
        torch.clear_autocast_cache()

    def token_kl(self, module: CausalLMModule, hidden: Tensor, batch: Batch, *, reverse: bool = False) -> Tensor:
        """KL(reference || policy) of the next token at each trained position [nats], (A, T-1), 0 elsewhere.

        Args:
            module: the policy.
            hidden: its hidden states of the batch's rows, (B, T, D); gradient flows to them and to the policy's head.
            batch: what the reference reads.
            reverse: take KL(policy || reference).

        Raises:
            UserError: the reference is not known by tokens.
        """
        labels = batch["labels"]
        chunk_size = chunk_size_for(module.model.get_output_embeddings().weight.shape[0])
        with self.hidden_and_head(module, batch) as (reference_hidden, reference_head):
            kl = token_kl(
                hidden, reference_hidden, labels, module.head, reference_head, reverse=reverse, chunk_size=chunk_size
            )
        nothing = torch.empty(0, dtype=torch.long, device=kl.device)
        return scores_by_example(TokenScores(kl, target_mask(labels), nothing), batch).nll

    @contextmanager
    def _scorer(self, module: CausalLMModule) -> Iterator[CausalLMModule]:
        """A module whose model is the reference."""
        if self.kind == "adapter":
            with adapters_off(module.model):
                yield module
        elif self.kind == "model":
            assert self._second is not None, "prepare() was not called"
            second = self._second
            yield second if is_sharded(second.model) else second.to(module.model.get_input_embeddings().weight.device)
        else:
            raise UserError(
                "The reference is known for whole answers only, not for their tokens: "
                f"reference={self.kind!r}. Set reference=adapter (with LoRA) or reference=model."
            )

    def _resolved(self, module: CausalLMModule) -> ReferenceKind:
        if self.kind != "auto":
            return self.kind
        if self.model is not None:
            return "model"
        goes_on = "from" in (module.lora or {})  # Then the adapter is a part of the initial policy.
        if is_adapted(module.model) and not goes_on:
            if self.cache_dir is not None:
                raise UserError(
                    f"The reference's cache_dir {self.cache_dir!r} has no effect: the policy has an adapter, which is "
                    "switched off for the reference. Leave it out, or set reference=cached."
                )
            return "adapter"
        if self.needs_tokens and not goes_on:
            rank_zero_info(
                "The objective needs the reference policy for each token: a second, frozen model is held in memory. "
                "With LoRA (model.lora) there would be no need for one."
            )
        return "model" if self.needs_tokens else "cached"

    def _check_adapter(self, module: CausalLMModule) -> None:
        with adapters_off(module.model):
            still = [name for name, parameter in module.model.named_parameters() if parameter.requires_grad]
        if still:
            raise UserError(
                "reference=adapter takes the base model for the reference, but training changes it: "
                f"{', '.join(still)}. Train the adapter only, or set reference=cached or reference=model."
            )
        if module._trainer is not None and not adds_nothing(module.model):
            rank_zero_warn(
                "The adapter does not start at zero: reference=adapter compares with the base model without it, not "
                "with the policy that training begins from. For that, set reference=cached or reference=model."
            )

    def _load_second(self, module: CausalLMModule) -> None:
        if self._second is not None:
            return
        trainer = module._trainer
        spec: Any = self.model or module.model_spec
        own = self.model is None and isinstance(spec, str)
        if not isinstance(spec, str):
            spec = copy_sharded(module.model) if is_sharded(module.model) else copy.deepcopy(module.model)
        second = CausalLMModule(
            spec,
            # Of another model, its own tokenizer says which tokens it lacks.
            tokenizer=module.tokenizer_spec if own else None,
            added_tokens=module.added_tokens if isinstance(spec, str) else None,
            revision=module.revision if own else None,
            dtype=module.dtype_name if isinstance(spec, str) else None,
            attn_implementation=module.attn_implementation,
            disable_dropout=False,  # It never trains.
            trust_remote_code=module.trust_remote_code,
            lora=module.lora if own and "from" in (module.lora or {}) else None,
        )
        if own:
            second.model_source = module.model_source  # Looked up once.
        second.quantization = module.quantization if isinstance(spec, str) else None  # The policy began from it, too.
        second._load(in_parts=sharding_of(trainer) is not None)
        convert_weights(trainer, second)
        if (compute_dtype := compute_dtype_of(module.model)) is not None:
            compute_in(second.model, compute_dtype)
        second.requires_grad_(False)
        second.eval()
        # Its head is called outside of its forward pass, also by backward passes that recompute.
        second.shard(sharding_of(trainer), keep_root=True)
        _check_same_vocabulary(module, second)
        second.share_prompts = module.share_prompts
        if second.share_prompts:
            second.prove(check_shared_prompts)
        self._second = second


def _check_same_vocabulary(module: CausalLMModule, second: CausalLMModule) -> None:
    sizes = [m.model.get_output_embeddings().weight.shape[0] for m in (module, second)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"The reference model has {sizes[1]} tokens, the policy {sizes[0]}: they must share a tokenizer. "
            "Name another reference model, or none, for the initial policy."
        )


def _read(batch: Batch) -> Tensor:
    """The numbers that come with the batch; those of answers that train nothing are 0 where they are not known."""
    remedy = (
        "Train on a FeedbackDataModule, whose answers are scored before training, "
        "or set reference=adapter (with LoRA) or reference=model."
    )
    if "reference_logps" not in batch:
        raise UserError(f"The batch has no reference_logps, which reference=cached reads. {remedy}")
    logps: Tensor = batch["reference_logps"]
    unknown = ~logps.isfinite()
    if bool(unknown.any()):
        counts = target_counts(target_mask(unpacked(batch)["labels"]))
        if bool((unknown & (counts > 0)).any()):
            raise UserError(
                f"An answer of the batch was not scored before training (its reference_logps is NaN). {remedy}"
            )
        logps = logps.masked_fill(unknown, 0.0)
    return logps.detach()
