"""Intuitive Fine-Tuning."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_ift.errors import UserError
from lit_ift.losses.ift import Norm, Side, Source, ift_loss, temporal_residual
from lit_ift.losses.logprobs import greedy, target_mask
from lit_ift.losses.masking import per_sequence_mean
from lit_ift.modules.base import CausalLMModule, token_accuracy
from lit_ift.modules.lambda_schedule import LambdaSchedule, LambdaShape
from lit_ift.modules.packed import in_batch_order, unpacked
from lit_ift.modules.predict import Prediction, Share, prediction_rule
from lit_ift.modules.stepping import Batch, ExampleLosses
from lit_ift.options import NonNegative, Positive, PositiveInt, UnitInterval

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class IFTModule(CausalLMModule):
    """Intuitive Fine-Tuning (arXiv:2405.11870): alignment from instruction data, one policy, no reference.

    A step (Algorithm 1): score the true tokens without gradient and take the model's predictions; mix their
    embeddings into the inputs by λ (eq. 17); score the true tokens from the mixed inputs with gradient; weight the
    token losses by dynamic relation propagation (eq. 21). ``lam=0, gamma=0`` is SFT.

    Logged besides the loss: ``sft_loss`` (nll of the first pass), ``fused_loss`` (unweighted nll of the second),
    ``lam``, ``token_accuracy`` of the first pass. Validation uses λ without its disturbance.

    Args:
        model: see ``CausalLMModule``, as for every argument not listed here.
        lam: λ, the share of the prediction in the input, in [0, 1].
        lam_schedule: ``constant``, or ``linear`` from ``lam_start`` to ``lam`` over ``lam_warmup``.
        lam_start: where the linear schedule begins; 0 if not given.
        lam_warmup: a share of all steps if below 1, else a number of steps; 0.1 if not given.
        lam_noise: standard deviation of λ's disturbance, relative to λ ("noisy λ", Table 7).
        lam_seed: seed of the disturbance.
        prediction: ``greedy``, ``top-k`` (the k-th best token) or ``sampled``.
        top_k: the rank that ``top-k`` takes; 2 if not given.
        temperature: of ``sampled``; 0.7 if not given.
        top_p: nucleus of ``sampled``; 1 if not given.
        gamma: decay of the propagation, in [0, 1]; tuned by the authors at a length of 1024 tokens.
        source: what is propagated: ``loss``, ``logps`` or ``mask``.
        side: ``left`` lets early tokens hear about later ones, ``right`` the reverse.
        norm: ``l1``, ``l2``, ``softmax`` or ``log``.
        detach_weights: keep the gradient out of the propagation weights (the authors leave it in).
        detach_input_embeddings: on by default, as in the authors' code; see ``CausalLMModule``.

    Raises:
        ValueError: an option is out of range or has no effect beside the others.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
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
        gamma: UnitInterval = 0.95,
        source: Source = "loss",
        side: Side = "left",
        norm: Norm = "l1",
        detach_weights: bool = False,
        detach_input_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        schedule = LambdaSchedule(lam, lam_schedule, lam_start, lam_warmup, lam_noise, lam_seed)
        rule = prediction_rule(prediction, top_k=top_k, temperature=temperature, top_p=top_p)
        super().__init__(model, detach_input_embeddings=detach_input_embeddings, **kwargs)
        self.lam_schedule = schedule
        self.predict_tokens = rule
        self.top_k = top_k
        self.gamma = gamma
        self.source = source
        self.side = side
        self.norm = norm
        self.detach_weights = detach_weights

    def prepare(self) -> None:
        super().prepare()
        vocabulary_size = self.model.get_output_embeddings().weight.shape[0]
        if self.top_k is not None and self.top_k > vocabulary_size:
            raise UserError(f"top_k={self.top_k} is more than the model's {vocabulary_size} tokens.")

    def current_lam(self) -> float:
        """λ of this optimizer step; outside training the schedule's last value, undisturbed."""
        if self._trainer is None or not self.trainer.training:
            return self.lam_schedule.value
        total = self.total_steps() if self.lam_schedule.needs_total_steps else 1
        return self.lam_schedule.at(self.trainer.global_step, total)

    def _choose(self, logits: Tensor) -> Tensor:
        """Greedy token, for the accuracy, and the token to mix in: (n, V) -> (n, 2)."""
        best = greedy(logits)
        return torch.stack([best, best if self.predict_tokens is greedy else self.predict_tokens(logits)], dim=-1)

    def example_losses(self, batch: Batch) -> ExampleLosses:
        lam = self.current_lam()
        embeddings = self.embed(batch["input_ids"])
        if lam == 0.0:
            # The prediction has no share in the input: the first pass would be the second.
            scores = first = self.score(self.hidden_states(embeddings, batch), batch)
            best = first.predictions
        else:
            with torch.no_grad():
                hidden = self.hidden_states(embeddings, batch)
                first = self.score(hidden, batch, select=self._choose)
            # Autocast keeps the casts that it made of the weights. In a torch without pytorch#165068 those of the
            # first pass carry no gradient, and the second pass would silently train nothing.
            torch.clear_autocast_cache()
            best, mixed_in = first.predictions.unbind(-1)
            predicted = self.embed(in_batch_order(mixed_in, batch))
            fused = temporal_residual(embeddings, predicted, target_mask(batch["labels"]), lam)
            scores = self.score(self.hidden_states(fused, batch), batch, select=None)
        losses, metrics = self.per_example_loss(scores.nll, scores.mask)
        return losses, {
            "sft_loss": per_sequence_mean(first.nll, first.mask).detach(),
            "lam": torch.full_like(losses, lam).detach(),
            "token_accuracy": token_accuracy(best, unpacked(batch)["labels"]),
            **metrics,
        }

    def per_example_loss(self, nll: Tensor, mask: Tensor) -> ExampleLosses:
        return ift_loss(
            nll,
            mask,
            gamma=self.gamma,
            source=self.source,
            side=self.side,
            norm=self.norm,
            detach_weights=self.detach_weights,
        )
