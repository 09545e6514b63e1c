"""Kahneman-Tversky optimization on judged answers. Shapes: R rows with A answers, N of them judged, M mismatched."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_ift.errors import UserError
from lit_ift.losses.kto import Variant, kl_baseline, kto_loss
from lit_ift.modules.feedback_module import AnswerScores, FeedbackModule
from lit_ift.modules.feedback_rows import FeedbackRows
from lit_ift.modules.stepping import Batch, ExampleLosses
from lit_ift.modules.window import Weighted
from lit_ift.options import NonNegative, Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KTOModule(FeedbackModule):
    """Learns from single answers, each with a thumb up or down (KTO, arXiv:2402.01306).

    A pair is taken apart, as in the paper: its chosen answer is a thumb up, its rejected one a thumb down. Its loss is
    the mean of both, and it counts twice, so that every answer counts once. How much better the chosen answer is, and
    a third answer, make no difference.

    The KL baseline is the mean reward of answers to other rows' prompts, which the data module puts beside each row;
    the mean is over the micro-batch on all ranks, so unlike everything else here the loss depends on how a batch is
    split. Take micro-batches of several rows. The baseline of ``bco`` is the mean reward of the judged answers
    themselves in the steps before, on all ranks; checkpoints hold it.

    Logged besides the loss: ``rewards/chosen`` and ``logps/chosen`` [nats] of thumbs up, ``rewards/rejected`` and
    ``logps/rejected`` of thumbs down, ``rewards/margins`` and ``rewards/accuracies`` of pairs, and ``kl``, the
    baseline [nats]; with ``bco`` instead ``log_ratio``, the mean of log π - log π_ref over judged answers [nats].

    Use:
        Where answers have thumbs and no partner. The paper reports that it keeps up with losses on pairs, also where it
        learns from the same pairs taken apart. ``apo_zero`` and ``bco`` need no answers to other prompts, and so less
        computing.

    Args:
        model: see ``CausalLMModule``.
        beta: β, scale of the reward [1/nat].
        desirable_weight: λ_D, weight of thumbs up.
        undesirable_weight: λ_U, weight of thumbs down.
        variant: ``kto``; ``apo_zero``, which has no baseline (arXiv:2408.06266); or ``bco``, a classifier of good and
            bad answers by their reward above its running mean (arXiv:2404.04656).
        **kwargs: see ``FeedbackModule``.

    Raises:
        ValueError: an option is out of range.
    """

    kinds = frozenset({"unpaired", "preference"})

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        beta: Positive = 0.1,
        desirable_weight: NonNegative = 1.0,
        undesirable_weight: NonNegative = 1.0,
        variant: Variant = "kto",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.needs_mismatched = variant == "kto"
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self.variant: Variant = variant

    @property
    def needs_log_ratio_mean(self) -> bool:
        return self.variant == "bco"

    def example_weights(self, batch: Batch) -> Tensor:
        """The number of judged answers of each row whose answers all have trained tokens, else 0, (R,) float32."""
        weights = super().example_weights(batch)
        return weights * (1 + FeedbackRows.of(batch).kind("preference").float())

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        rows = FeedbackRows.of(batch)
        if self.needs_mismatched and not len(rows.answers("mismatched")):
            raise UserError(
                "The batch has no mismatched answers, which the KL baseline is estimated from. Use "
                "data.class_path=FeedbackDataModule, which adds them, or variant='apo_zero' or 'bco', which need none."
            )

    @property
    def row_wise(self) -> bool:
        return not self.needs_mismatched  # The baseline is the same for all rows of a batch, and made of them.

    def example_losses(self, batch: Batch) -> ExampleLosses:
        hidden = self.hidden_states(self.embed(batch["input_ids"]), batch)
        reference = self.reference.logps(self, batch)
        return self.judged_answers(hidden, batch, lambda answers, some: self._judge(answers, reference[some.examples]))

    def _judge(self, answers: AnswerScores, reference: Tensor) -> ExampleLosses:
        """Of rows whose answers have log-probabilities under the policy and the reference, (A,) each."""
        reference, rows = reference.to(answers.logps.dtype), answers.rows
        chosen, rejected, single = (rows.answers(side) for side in ("chosen", "rejected", "answer"))
        is_up = rows.scores[rows.rows[single]] > 0.5
        up, down = torch.cat([chosen, single[is_up]]), torch.cat([rejected, single[~is_up]])
        judged = torch.cat([up, down])
        kl = self._baseline(answers, reference)
        values, metrics = kto_loss(
            answers.logps[judged],
            reference[judged],
            torch.arange(len(judged), device=judged.device) < len(up),
            kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            variant=self.variant,
        )
        losses = rows.mean(values, judged)

        def by_row(of_judged: Tensor, which: Tensor) -> Weighted:
            """Values of some answers, of which a row has one at most."""
            place, found = (values.new_zeros(len(rows)) for _ in range(2))
            return Weighted(place.index_put((rows.rows[which],), of_judged), found.index_fill(0, rows.rows[which], 1.0))

        rewards, logps = metrics["rewards"], answers.logps.detach()
        up_rewards, down_rewards = by_row(rewards[: len(up)], up), by_row(rewards[len(up) :], down)
        margins = up_rewards.values - down_rewards.values
        compared = {"kl": kl.expand(len(losses))}
        if self.needs_log_ratio_mean:
            compared = {"log_ratio": rows.mean(logps[judged] - reference[judged], judged)}
        is_pair = rows.kind("preference").to(margins.dtype)
        return losses, {
            "rewards/chosen": up_rewards,
            "rewards/rejected": down_rewards,
            "rewards/margins": Weighted(margins, is_pair),
            "rewards/accuracies": Weighted((margins > 0).to(margins.dtype), is_pair),
            "logps/chosen": by_row(logps[up], up),
            "logps/rejected": by_row(logps[down], down),
            **compared,
        }

    def _baseline(self, answers: AnswerScores, reference: Tensor) -> Tensor:
        """What log ratios are compared with: their mean in the steps before (``bco``), 0 (``apo_zero``), or z0.

        z0 is the mean log ratio of mismatched answers over all ranks, at least 0.
        """
        if self.needs_log_ratio_mean:
            return answers.logps.new_tensor(self.log_ratios.mean)
        if not self.needs_mismatched:
            return answers.logps.new_zeros(())
        which = answers.rows.answers("mismatched")
        counts = (answers.lengths[which] > 0).to(answers.logps.dtype)
        with torch.no_grad():
            ratios = answers.logps[which] - reference[which]
            sums = torch.stack([(ratios * counts).sum(), counts.sum()])
            total, weight = sums if self._trainer is None else self._add_over_ranks(sums)
        mean = (total / weight.clamp(min=1)).unsqueeze(0)
        return kl_baseline(mean, torch.zeros_like(mean))
