"""What the policy reads where it is scored: the true tokens, or something near to them.

Shapes: B rows of T tokens as the batch has them, N trained positions, D hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_ift.errors import UserError, did_you_mean
from lit_ift.imports import imported
from lit_ift.losses.ift import temporal_residual
from lit_ift.losses.logprobs import Select, TokenScores, greedy, target_mask
from lit_ift.modules.lambda_schedule import LambdaSchedule, LambdaShape
from lit_ift.modules.packed import in_batch_order, is_packed
from lit_ift.modules.predict import Prediction, prediction_rule
from lit_ift.modules.reuse import Reuse, ReusedPredictions
from lit_ift.modules.shared_prompts import SharedPrompts
from lit_ift.modules.stepping import Batch
from lit_ift.options import CheckedOptions, NonNegative, Positive, PositiveInt, Share, UnitInterval

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule


@dataclass(frozen=True)
class Prepared:
    """An input, and what was learnt on the way to it.

    Attributes:
        embeddings: what the policy reads, (B, T, D).
        first: scores of the true tokens from the true tokens, without gradient; None where there was no such pass.
        best: the greedy prediction at each trained position of that pass, by example, (N,).
        metrics: numbers to log, one for the whole batch each.
        reuses: whether kept predictions took the place of that pass.
        predict: what the pass on `embeddings` is to choose from its logits; None for nothing.
        keep: told of what it chose, by example, (N,); None where nobody asks.
        prompts: those of the batch, where they have been read for both passes.
    """

    embeddings: Tensor
    first: TokenScores | None = None
    best: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reuses: bool = False
    predict: Select | None = None
    keep: Callable[[Tensor], None] | None = None
    prompts: SharedPrompts | None = None

    def hidden_states(self, module: "CausalLMModule", batch: Batch) -> Tensor:
        """Final hidden states of the pass on the input, (B, T, D)."""
        if self.prompts is None:
            return module.hidden_states(self.embeddings, batch)
        return self.prompts.hidden_states(self.embeddings)


class TrueTokens(CheckedOptions):
    """The true tokens, as usual."""

    looks_ahead = False
    """Whether the true tokens are scored first, to see what the policy predicts."""

    keeps_prompts = True
    """Whether tokens that are not trained are read as they are."""

    reused: ReusedPredictions | None = None
    """Gives predictions that were made before."""

    schedule: LambdaSchedule | None = None
    """The share of predictions in it; None where it has none."""

    @property
    def reads_twice(self) -> bool:
        """Whether any step of a run looks ahead."""
        has_share = self.schedule is not None and self.schedule.value != 0
        return has_share and (self.reused is None or self.reused.keeps)

    def prepare(self, module: "CausalLMModule") -> None:
        """Make ready for a run, and check the options against the model, once it is loaded."""
        if self.reused is not None:
            self.reused.prepare(module)

    def __call__(self, module: "CausalLMModule", batch: Batch) -> Prepared:
        """The input of a batch."""
        return Prepared(module.embed(batch["input_ids"]))


class TemporalResidual(TrueTokens):
    """Each trained token's embedding is moved towards that of the policy's own prediction (arXiv:2405.11870, eq. 17).

    ``(1 - λ) E(token) + λ E(prediction)``, the prediction being the policy's from the true tokens before. With λ = 0 it
    is the true tokens. Validation uses λ without its disturbance.

    Args:
        lam: λ, the share of the prediction, in [0, 1].
        lam_schedule: ``constant``, or ``linear`` from ``lam_start`` to ``lam`` over ``lam_warmup``.
        lam_start: where the linear schedule begins; 0 if not given.
        lam_warmup: a share of all steps if below 1, else a number of steps; 0.1 if not given.
        lam_noise: standard deviation of λ's disturbance, relative to λ.
        lam_seed: seed of the disturbance.
        prediction: ``greedy``, ``top-k`` (the k-th best token) or ``sampled``.
        top_k: the rank that ``top-k`` takes; 2 if not given.
        temperature: of ``sampled``; 0.7 if not given.
        top_p: nucleus of ``sampled``; 1 if not given.
        reuse_predictions: take predictions that were made before instead of a first pass in every step: ``initial``,
            those of the policy that training begins from; ``epoch``, those of the epoch before.

    Raises:
        ValueError: ``reuse_predictions`` has no effect, or predictions are drawn anew at each step.
    """

    looks_ahead = True

    def __init__(
        self,
        *,
        lam: UnitInterval = 0.2,
        lam_schedule: LambdaShape = "constant",
        lam_start: UnitInterval | None = None,
        lam_warmup: NonNegative | None = None,
        lam_noise: NonNegative = 0.0,
        lam_seed: int = 0,
        prediction: Prediction = "greedy",
        top_k: PositiveInt | None = None,
        temperature: Positive | None = None,
        top_p: Share | None = None,
        reuse_predictions: Reuse | None = None,
    ) -> None:
        self.schedule: LambdaSchedule = LambdaSchedule(lam, lam_schedule, lam_start, lam_warmup, lam_noise, lam_seed)
        if reuse_predictions is not None and prediction == "sampled":
            raise ValueError("reuse_predictions keeps predictions, but prediction='sampled' draws them at each step")
        self.predict_tokens = prediction_rule(prediction, top_k=top_k, temperature=temperature, top_p=top_p)
        self.top_k = top_k
        self.reused = _reused(reuse_predictions, self.schedule, self.predict_tokens, f"{prediction} {top_k}")

    def prepare(self, module: "CausalLMModule") -> None:
        vocabulary_size = module.model.get_output_embeddings().weight.shape[0]
        if self.top_k is not None and self.top_k > vocabulary_size:
            raise UserError(f"top_k={self.top_k} is more than the model's {vocabulary_size} tokens.")
        super().prepare(module)

    def __call__(self, module: "CausalLMModule", batch: Batch) -> Prepared:
        lam = current_lam(self.schedule, module)
        embeddings = module.embed(batch["input_ids"])
        if lam == 0.0:  # The prediction has no share in the input: the first pass would be the second.
            return Prepared(embeddings, metrics={"lam": lam})
        if (kept := _kept(self.reused, module, batch)) is not None:
            fused = self._fused(module, batch, embeddings, kept, lam)
            return _from_kept(self.reused, module, batch, fused, lam)
        first, prompts = _look_ahead(module, embeddings, batch, self._choose)
        best, mixed_in = first.predictions.unbind(-1)
        if self.reused is not None:
            self.reused.keep(module, batch, mixed_in)
        fused = self._fused(module, batch, embeddings, mixed_in, lam)
        return Prepared(fused, first, best, {"lam": lam}, prompts=prompts)

    def _fused(
        self, module: "CausalLMModule", batch: Batch, embeddings: Tensor, mixed_in: Tensor, lam: float
    ) -> Tensor:
        predicted = module.embed(in_batch_order(mixed_in, batch))
        return temporal_residual(embeddings, predicted, target_mask(batch["labels"]), lam)

    def _choose(self, logits: Tensor) -> Tensor:
        """Greedy token, for the accuracy, and the token to mix in: (n, V) -> (n, 2)."""
        best = greedy(logits)
        return torch.stack([best, best if self.predict_tokens is greedy else self.predict_tokens(logits)], dim=-1)


class OwnTokens(TrueTokens):
    """With probability λ a trained token is read as the policy's own greedy prediction of it.

    Scheduled sampling with one pass for all predictions, from the true tokens before: the discrete relative of the
    temporal residual. BASH (arXiv:2410.14655) is an offline relative. In training only. The draws are those of torch's
    generator, as for dropout.

    Args:
        lam: λ, in [0, 1].
        lam_schedule: ``constant``, or ``linear`` from ``lam_start`` to ``lam`` over ``lam_warmup``.
        lam_start: where the linear schedule begins; 0 if not given.
        lam_warmup: a share of all steps if below 1, else a number of steps; 0.1 if not given.
        reuse_predictions: see `TemporalResidual`.
    """

    looks_ahead = True

    def __init__(
        self,
        *,
        lam: UnitInterval = 0.2,
        lam_schedule: LambdaShape = "constant",
        lam_start: UnitInterval | None = None,
        lam_warmup: NonNegative | None = None,
        reuse_predictions: Reuse | None = None,
    ) -> None:
        self.schedule: LambdaSchedule = LambdaSchedule(lam, lam_schedule, lam_start, lam_warmup)
        self.reused = _reused(reuse_predictions, self.schedule, greedy, "greedy None")

    def __call__(self, module: "CausalLMModule", batch: Batch) -> Prepared:
        lam = current_lam(self.schedule, module) if module.training else 0.0
        ids = batch["input_ids"]
        embeddings = module.embed(ids)
        if lam == 0.0:
            return Prepared(embeddings, metrics={"lam": lam})
        if (kept := _kept(self.reused, module, batch)) is not None:
            return _from_kept(self.reused, module, batch, self._replaced(module, batch, kept, lam), lam)
        first, prompts = _look_ahead(module, embeddings, batch, greedy)
        if self.reused is not None:
            self.reused.keep(module, batch, first.predictions)
        read = self._replaced(module, batch, first.predictions, lam)
        return Prepared(read, first, first.predictions, {"lam": lam}, prompts=prompts)

    def _replaced(self, module: "CausalLMModule", batch: Batch, predictions: Tensor, lam: float) -> Tensor:
        ids = batch["input_ids"]
        drawn = torch.rand(predictions.shape, device=ids.device) < lam
        own = in_batch_order(torch.where(drawn, predictions, -1), batch)
        trained = pad(target_mask(batch["labels"]), (1, 0))
        return module.embed(ids.masked_scatter(trained, torch.where(own < 0, ids[trained], own)))


class NEFTune(TrueTokens):
    """Uniform noise on the embeddings of all tokens, prompts included, in training (arXiv:2310.05914).

    ``E + U(-1, 1) α / √(L D)``. The noise is of torch's generator, as that of dropout. Padding gets none.

    Args:
        alpha: α, above 0.
        length: what L is: ``row``, the row's own tokens, as in the authors' code; or ``padded``, the width of the
            batch, as in Hugging Face's trainers, with which a row's noise depends on the rows beside it.
    """

    keeps_prompts = False

    def __init__(self, *, alpha: Positive = 5.0, length: Literal["row", "padded"] = "row") -> None:
        self.alpha, self.length = alpha, length

    def __call__(self, module: "CausalLMModule", batch: Batch) -> Prepared:
        embeddings = module.embed(batch["input_ids"])
        if not module.training:
            return Prepared(embeddings)
        lengths = _lengths(batch)
        counted = torch.full_like(lengths, embeddings.shape[1]) if self.length == "padded" else lengths.clamp(min=1)
        scale = self.alpha * (counted * embeddings.shape[-1]).to(embeddings.dtype).rsqrt() * (lengths > 0)
        noise = torch.empty_like(embeddings).uniform_(-1, 1)
        return Prepared(embeddings + scale.unsqueeze(-1).to(embeddings.dtype) * noise)


INPUT_KINDS: Final[dict[str, type[TrueTokens]]] = {
    "true_tokens": TrueTokens,
    "temporal_residual": TemporalResidual,
    "neftune": NEFTune,
    "own_tokens": OwnTokens,
}


def named_input(name: str, options: Mapping[str, Any] | None = None) -> TrueTokens:
    """The input of a name, or of an import path, with its options.

    Raises:
        ValueError: there is no such input, or it has no such option, or the option cannot have that value.
    """
    kind, given = _input_kind(name), dict(options or {})
    known = [] if kind.__init__ is object.__init__ else list(signature(kind).parameters)
    for option in given:
        if option not in known:
            offered = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"The input {name!r} has no option {option!r}; {offered}.{did_you_mean(option, known)}")
    return kind(**given)


def _input_kind(name: str) -> type[TrueTokens]:
    if name in INPUT_KINDS:
        return INPUT_KINDS[name]
    if "." not in name:
        raise ValueError(
            f"input={name!r} must be one of {', '.join(map(repr, INPUT_KINDS))}, or the import path of a subclass of "
            f"lit_ift.modules.inputs.TrueTokens.{did_you_mean(name, INPUT_KINDS)}"
        )
    kind = imported("input", name)
    if not (isinstance(kind, type) and issubclass(kind, TrueTokens)):
        raise ValueError(f"input={name!r} is no subclass of lit_ift.modules.inputs.TrueTokens, which it must be.")
    return kind


def _reused(kind: Reuse | None, schedule: LambdaSchedule, predict: Select, name: str) -> ReusedPredictions | None:
    if kind is not None and schedule.value == 0:
        raise ValueError(f"reuse_predictions={kind!r} has no effect with lam=0, which needs no predictions")
    return None if kind is None else ReusedPredictions(kind, predict, name)


def _kept(reused: ReusedPredictions | None, module: "CausalLMModule", batch: Batch) -> Tensor | None:
    return None if reused is None else reused.of(module, batch)


def _from_kept(
    reused: ReusedPredictions | None, module: "CausalLMModule", batch: Batch, embeddings: Tensor, lam: float
) -> Prepared:
    """An input that took no pass of its own; what the pass on it predicts may be kept for the next epoch."""
    assert reused is not None
    keep = partial(reused.keep, module, batch) if reused.keeps else None
    predict = reused.predict if reused.keeps else None
    return Prepared(embeddings, metrics={"lam": lam}, reuses=True, predict=predict, keep=keep)


def current_lam(schedule: LambdaSchedule, module: "CausalLMModule") -> float:
    """λ of this optimizer step; outside training the schedule's last value, undisturbed."""
    if module._trainer is None or not module.trainer.training:
        return schedule.value
    total = module.total_steps() if schedule.needs_total_steps else 1
    return schedule.at(module.trainer.global_step, total)


def _look_ahead(
    module: "CausalLMModule", embeddings: Tensor, batch: Batch, select: Callable[[Tensor], Tensor]
) -> tuple[TokenScores, SharedPrompts | None]:
    """Scores and predictions of the true tokens, without gradient; and the prompts, if they are shared, with it."""
    if module.share_prompts:
        prompts = SharedPrompts(module, embeddings, batch)
        with torch.no_grad():
            return module.score(prompts.hidden_states(embeddings), batch, select=select), prompts
    with torch.no_grad():
        first = module.score(module.hidden_states(embeddings, batch), batch, select=select)
    # Autocast keeps the casts that it made of the weights. In a torch without pytorch#165068 those of the first pass
    # carry no gradient, and the second pass would silently train nothing.
    torch.clear_autocast_cache()
    return first, None


def _lengths(batch: Batch) -> Tensor:
    """Tokens of the row that each position belongs to, 0 at padding, (B, T)."""
    ids = batch["input_ids"]
    if is_packed(batch):
        owners = batch["sequence_ids"]
        counts = torch.bincount(owners[owners >= 0])
        return torch.where(owners >= 0, counts[owners.clamp(min=0)], 0)
    mask = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(ids)
    return mask.sum(-1, keepdim=True) * mask
