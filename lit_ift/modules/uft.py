"""Unified fine-tuning on instruction, preference, binary and scored rows alike.

Shapes: R rows with A answers.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_ift.data.rows import ROW_KINDS
from lit_ift.losses.uft import Discrepancy, uft_loss, uft_pair_loss
from lit_ift.modules.feedback_module import AnswerScores, FeedbackModule
from lit_ift.modules.stepping import Batch, ExampleLosses, Metrics
from lit_ift.modules.window import Weighted
from lit_ift.options import Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UFTModule(FeedbackModule):
    """One implicit reward for all kinds of rows (UFT, arXiv:2410.21438; UNA, arXiv:2408.15339).

    ``r = β (log π - log π_ref)``, summed over an answer (Eq. 5). Each row's loss is on its own feedback (Eq. 6 and 7):
    rows with a score s pull σ(r) to s, where instruction rows have s = 1, thumbs s in {0, 1}, scored rows s in [0, 1];
    pairs have ``-log σ(r_chosen - r_rejected)``, with both ways weighted where a row says how likely the chosen answer
    is the better one. Every row counts once.

    Logged besides the loss: ``loss/<kind>`` of each kind of rows that there are, ``rewards/mean`` and ``score_error``
    = |σ(r) - s| of rows with a score, ``rewards/chosen|rejected|margins|accuracies`` of pairs, and ``kl`` as for
    ``PreferenceModule``.

    Use:
        Where feedback is of several kinds (instructions, pairs, thumbs, scores) and one loss shall serve all, in one
        stage. The paper reports that less is lost of what instructions teach than in two stages.

    Args:
        model: see ``CausalLMModule``.
        beta: β, scale of the reward [1/nat].
        discrepancy: between σ(r) and s: ``mse``, or ``bce``, binary cross-entropy.
        **kwargs: see ``FeedbackModule``.

    Raises:
        ValueError: an option is out of range.
    """

    kinds = frozenset(ROW_KINDS)

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        beta: Positive = 0.01,
        discrepancy: Discrepancy = "mse",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.beta = beta
        self.discrepancy = discrepancy

    row_wise = True

    def example_losses(self, batch: Batch) -> ExampleLosses:
        hidden = self.hidden_states(self.embed(batch["input_ids"]), batch)
        reference = self.reference.logps(self, batch)
        return self.judged_answers(hidden, batch, lambda answers, some: self._judge(answers, reference[some.examples]))

    def _judge(self, answers: AnswerScores, reference: Tensor) -> ExampleLosses:
        """Of rows whose answers have log-probabilities under the policy and the reference, (A,) each."""
        rows = answers.rows
        ratios = answers.logps - reference.to(answers.logps.dtype)
        rewards = self.beta * ratios
        # One reward a row and side; a row has either an answer or a pair.
        single = _by_row(rewards, rows.answers("answer"), rows.rows, len(rows))
        chosen = _by_row(rewards, rows.answers("chosen"), rows.rows, len(rows))
        rejected = _by_row(rewards, rows.answers("rejected"), rows.rows, len(rows))
        is_pair = rows.kind("preference")
        # Instruction rows have no score, which is to have the best one; a pair without one is simply chosen.
        scores = rows.scores.nan_to_num(1.0).to(rewards.dtype)
        of_pairs, pair_metrics = uft_pair_loss(chosen, rejected, scores)
        of_singles, single_metrics = uft_loss(single, scores, discrepancy=self.discrepancy)
        losses = torch.where(is_pair, of_pairs, of_singles)
        pairs, singles = is_pair.float(), (~is_pair).float()
        metrics = {name: Weighted(values, pairs) for name, values in pair_metrics.items()}
        metrics["rewards/mean"] = Weighted(single_metrics["rewards"], singles)
        metrics["score_error"] = Weighted(single_metrics["score_error"], singles)
        kl = _mean_of_answers(-ratios.detach(), rows.rows, len(rows))
        return losses, {**metrics, "kl": kl, **self._losses_by_kind(losses.detach(), rows.kinds)}

    def _losses_by_kind(self, losses: Tensor, kinds: Tensor) -> Metrics:
        return {f"loss/{kind}": Weighted(losses, (kinds == i).float()) for i, kind in enumerate(ROW_KINDS)}


def _by_row(values: Tensor, answers: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Values of some answers at their rows, and 0 at the others, (A,) -> (R,)."""
    return values.new_zeros(num_rows).index_put((rows[answers],), values[answers])


def _mean_of_answers(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Mean over the answers of each row, (A,) -> (R,)."""
    sums = values.new_zeros(num_rows).index_add(0, rows, values)
    return sums / torch.bincount(rows, minlength=num_rows).clamp(min=1)
