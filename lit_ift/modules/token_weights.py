"""Weights of tokens from a contrastive pair of models (TIS-DPO, arXiv:2410.04350)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_ift.data.rows import ANSWER_SIDES
from lit_ift.losses.pair.by_token import check_weight_options, importance_weights
from lit_ift.modules.reference import ReferencePolicy
from lit_ift.modules.stepping import Batch

if TYPE_CHECKING:
    from lit_ift.modules.feedback_module import AnswerScores, FeedbackModule


class ContrastiveWeights:
    """``w_t = k exp(μ clamp(± log π⁺/π⁻, L, U))`` at each token, + for chosen and - for rejected answers.

    Args:
        positive: hub id or folder of the model π⁺ that favours good tokens, such as one trained on chosen answers.
        negative: the same of π⁻, trained on rejected answers.
        k: weight of a token that both models find equally likely.
        mu: how strongly the weights follow the ratio.
        low: L, lower bound of the log ratio [nats].
        high: U, upper bound of the log ratio [nats].

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, positive: str, negative: str, *, k: float = 1.0, mu: float = 1.0, low: float = -0.5, high: float = 1.5
    ) -> None:
        check_weight_options(k, mu, low, high)
        self.k, self.mu, self.low, self.high = k, mu, low, high
        self.positive = ReferencePolicy("model", model=positive, needs_tokens=True)
        self.negative = ReferencePolicy("model", model=negative, needs_tokens=True)

    def prepare(self, module: "FeedbackModule") -> None:
        """Load both models."""
        self.positive.prepare(module)
        self.negative.prepare(module)

    def __call__(self, module: "FeedbackModule", answers: "AnswerScores", batch: Batch) -> Tensor:
        """Weights of all trained tokens, 0 elsewhere, one row an answer, (A, T), without gradient."""
        ratio = self.negative.scores(module, batch).nll - self.positive.scores(module, batch).nll
        sign = torch.where(answers.rows.sides == ANSWER_SIDES.index("rejected"), -1.0, 1.0)
        return importance_weights(
            ratio * sign[:, None], answers.tokens.mask, k=self.k, mu=self.mu, low=self.low, high=self.high
        )
