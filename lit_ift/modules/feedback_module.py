"""What the objectives on pairs, thumbs and scores share: scores of whole answers, and the reference policy.

Shapes: R rows with A answers, D hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_ift.data.rows import ROW_KINDS
from lit_ift.errors import UserError
from lit_ift.losses.logprobs import Statistic, TokenScores, target_mask
from lit_ift.losses.masking import target_counts
from lit_ift.modules.feedback_rows import FeedbackRows
from lit_ift.modules.one_sweep import Portion, judged
from lit_ift.modules.packed import unpacked
from lit_ift.modules.reference_module import ReferenceModule
from lit_ift.modules.stepping import Batch, ExampleLosses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class RunningMean:
    """Mean of one number a step, each of the same weight; 0 before the first.

    Attributes:
        mean: of the steps so far.
        steps: their number.
    """

    mean: float = 0.0
    steps: int = 0

    def add(self, value: float) -> None:
        """Take one more step's number in."""
        self.steps += 1
        self.mean += (value - self.mean) / self.steps


@dataclass(frozen=True)
class AnswerScores:
    """What the policy says of each answer of a batch.

    Attributes:
        tokens: scores of the trained tokens, one row an answer.
        logps: log-probability of the trained tokens, summed, (A,), with gradient.
        lengths: trained tokens, (A,), of the dtype of ``logps``.
        rows: which answer belongs to which row.
    """

    tokens: TokenScores
    logps: Tensor
    lengths: Tensor
    rows: FeedbackRows

    @classmethod
    def of(cls, tokens: TokenScores, rows: FeedbackRows) -> "AnswerScores":
        """Of tokens, one row an answer, and the rows that the answers belong to."""
        logps = -tokens.nll.sum(-1)
        return cls(tokens, logps, target_counts(tokens.mask).to(logps.dtype), rows)


JudgeAnswers = Callable[[AnswerScores, Portion], ExampleLosses]
"""Gives losses and metrics of some rows from the scores of their answers."""


class FeedbackModule(ReferenceModule):
    """An objective on the log-probabilities of whole answers, all of which share one forward pass.

    A subclass overrides ``example_losses``, which returns one loss a row. One that says ``needs_log_ratio_mean``
    reports the metric ``log_ratio``, log π - log π_ref [nats], whose mean over the steps so far it finds in
    ``self.log_ratios``.

    Args:
        model: see ``CausalLMModule``.
        **kwargs: see ``ReferenceModule``.

    Raises:
        ValueError: an option has an unknown value, or none is made use of.
    """

    lora_rate = 2e-5

    def __init__(
        self,
        model: "str | PreTrainedModel",
        **kwargs: Any,
    ) -> None:
        if kwargs.get("reduction", "sequence") != "sequence":
            raise ValueError(
                f"reduction={kwargs['reduction']!r} has no meaning for {type(self).__name__}, whose rows count once "
                "each. Leave it out."
            )
        super().__init__(model, **kwargs)
        self.log_ratios = RunningMean()

    @property
    def can_share_prompts(self) -> bool:
        return True

    @property
    def needs_log_ratio_mean(self) -> bool:
        """Whether it asks for the mean log-ratio of the steps before."""
        return False

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.needs_log_ratio_mean:
            if "log_ratios" not in checkpoint:
                raise UserError(
                    "The checkpoint has no running mean of log-ratios, which this objective goes on with: it is of "
                    "another one. Begin a new run from its weights instead of resuming."
                )
            self.log_ratios = RunningMean(**checkpoint["log_ratios"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.needs_log_ratio_mean:
            checkpoint["log_ratios"] = asdict(self.log_ratios)

    def on_step_means(self, means: Mapping[str, float]) -> None:
        if self.needs_log_ratio_mean:
            self.log_ratios.add(means["log_ratio"])

    def example_weights(self, batch: Batch) -> Tensor:
        """1 for each row whose answers all have trained tokens, else 0, (R,) float32."""
        counts = target_counts(target_mask(unpacked(batch)["labels"]))
        rows = FeedbackRows.of(batch)
        return torch.ones(len(rows), device=counts.device).scatter_reduce(0, rows.rows, (counts > 0).float(), "amin")

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        rows = FeedbackRows.of(batch)
        wrong = [kind for kind in ROW_KINDS if kind not in self.kinds and bool(rows.kind(kind).any())]
        if wrong:
            raise UserError(
                f"The batch has {' and '.join(wrong)} rows, but {type(self).__name__} learns from "
                f"{' and '.join(sorted(self.kinds))} rows. Give it such rows by data.class_path=FeedbackDataModule."
            )
        judged = rows.kind("unpaired", "scored")
        unfit = judged & ~((rows.scores >= 0) & (rows.scores <= 1))
        if bool(unfit.any()):
            raise UserError(
                f"The batch has an unpaired or scored row whose score is {float(rows.scores[unfit][0]):g}. Such rows "
                "need scores in [0, 1]; thumbs are 0 or 1."
            )

    def judged_answers(
        self,
        hidden: Tensor,
        batch: Batch,
        judge: JudgeAnswers,
        statistics: Mapping[str, Statistic] | None = None,
    ) -> ExampleLosses:
        """Losses and metrics of the batch's rows; see ``lit_ift.modules.one_sweep.judged``.

        Args:
            hidden: of the batch's rows, (B, T, D).
            batch: its labels are scored.
            judge: called once with all rows, or several times with some, where the objective is ``row_wise``.
            statistics: see ``score_tokens``.
        """
        rows = FeedbackRows.of(batch)

        def judge_rows(tokens: TokenScores, some: Portion) -> ExampleLosses:
            return judge(AnswerScores.of(tokens, rows.portion(some)), some)

        losses, metrics, _ = judged(self, hidden, batch, judge_rows, select=None, statistics=statistics, rows=rows.rows)
        return losses, metrics
