"""Whether a module's head, loss and gradients are made in one sweep over the logits, and how its losses are made then.

Shapes: B examples, T tokens, D hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from lit_ift.losses.linear_head import HeadScores
from lit_ift.losses.logprobs import Select, Statistic, TokenScores, chunk_size_for, placed, target_mask
from lit_ift.losses.one_sweep import swept_losses
from lit_ift.losses.packing import example_order
from lit_ift.modules.packed import is_packed, unpacked
from lit_ift.modules.stepping import Batch, ExampleLosses
from lit_ift.modules.window import Weighted

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule

WEIGHED_HERE: Final = ("training_step", "all_losses", "example_losses", "per_example_loss", "head", "score")
"""Methods that must be this package's: others might weight the losses, or make logits, in another way."""


@dataclass(frozen=True)
class Portion:
    """Consecutive rows of a batch.

    Attributes:
        rows: which.
        examples: the examples of these rows; a row of feedback has several.
    """

    rows: slice
    examples: slice


WHOLE: Final = Portion(slice(None), slice(None))


JudgeRows = Callable[[TokenScores, Portion], ExampleLosses]
"""Gives losses and metrics of some rows of a batch from the scores of their examples."""


def hindrance(module: "CausalLMModule") -> str | None:
    """Why the module's objective cannot have one sweep of the head; None if it has one in training."""
    head = module.linear_head()
    if head is None:
        return "the output head is no plain linear layer"
    if not head.trained:
        return None  # The gradient of each position is made in the forward pass, whatever the objective.
    if module.one_sweep is False:
        return "one_sweep is off"
    if not module.row_wise:
        return "the loss needs more than the log-probabilities of one row's tokens"
    trainer = module._trainer
    for judged in (module, *(() if trainer is None else (trainer.lightning_module,))):
        for name in WEIGHED_HERE:
            if not getattr(type(judged), name).__module__.startswith("lit_ift."):
                return f"{type(judged).__name__} overrides {name}"
    if trainer is not None and str(trainer.precision).startswith("16"):
        return "float16 would round its gradients to 0 before they are scaled"
    return None


def judged(
    module: "CausalLMModule",
    hidden: Tensor,
    batch: Batch,
    judge: JudgeRows,
    *,
    select: Select | None,
    statistics: Mapping[str, Statistic] | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Mapping[str, Any], TokenScores]:
    """Losses and metrics of a batch's rows, and the scores that they were made from.

    Args:
        module: whose head scores; ``module.one_sweep`` says whether one sweep may do.
        hidden: of the batch's rows, (B, T, D).
        batch: its ``labels`` are scored.
        judge: called once with all rows, or several times with some.
        select: see ``lit_ift.losses.score_tokens``.
        statistics: see ``lit_ift.losses.score_tokens``.
        rows: which row each example belongs to, ascending, (B,); each is a row of its own by default.
    """
    head = module.linear_head()
    trains = torch.is_grad_enabled() and hidden.requires_grad and (module.one_sweep or _in_training(module))
    if head is None or not head.trained or not trains or hindrance(module) is not None:
        scores = module.score(hidden, batch, select=select, statistics=statistics)
        losses, metrics = judge(scores, WHOLE)
        return losses, metrics, scores
    in_batch = target_mask(batch["labels"])
    states, targets = hidden[:, :-1][in_batch], batch["labels"][:, 1:][in_batch]
    mask = target_mask(unpacked(batch)["labels"])
    if is_packed(batch):
        order = example_order(in_batch, batch["sequence_ids"])
        states, targets = states[order], targets[order]
    ends, lengths = _rows(mask, rows)
    statistics = statistics or {}
    found: list[tuple[Mapping[str, Any], TokenScores]] = []

    def judge_some(groups: range, scores: HeadScores, nll: Tensor) -> Tensor:
        some = Portion(slice(groups.start, groups.stop), slice(ends[groups.start], ends[groups.stop]))
        of_rows = dict(zip(statistics, scores.statistics, strict=True))
        tokens = placed(nll, mask[some.examples], scores.selected, of_rows)
        losses, metrics = judge(tokens, some)
        found.append((metrics, tokens))
        return losses

    losses = swept_losses(
        states,
        targets,
        head,
        judge_some,
        lengths=lengths,
        weights=module.example_weights(batch),
        chunk_size=chunk_size_for(head.weight.shape[0]),
        select=select,
        statistics=[*statistics.values()],
    )
    return losses, _together([metrics for metrics, _ in found]), _joined([scores for _, scores in found])


def _in_training(module: "CausalLMModule") -> bool:
    """Whether a Trainer trains, whose steps weight the losses by ``example_weights``."""
    return module._trainer is not None and bool(module.trainer.training)


def _rows(mask: Tensor, rows: Tensor | None) -> tuple[list[int], list[int]]:
    """The first example of each row and the number of examples, and the trained tokens of each row; one transfer."""
    counts = mask.sum(-1)
    if rows is None:
        lengths: list[int] = counts.tolist()
        return list(range(len(lengths) + 1)), lengths
    own, of_examples = torch.stack([rows, counts]).tolist()
    starts = [i for i in range(len(own)) if i == 0 or own[i] != own[i - 1]]
    ends = [*starts, len(own)]
    return ends, [sum(of_examples[a:b]) for a, b in pairwise(ends)]


def _together(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of all rows from those of some."""
    return {
        name: Weighted(torch.cat([m[name].values for m in parts]), torch.cat([m[name].weights for m in parts]))
        if isinstance(value, Weighted)
        else torch.cat([metrics[name] for metrics in parts])
        for name, value in parts[0].items()
    }


def _joined(parts: list[TokenScores]) -> TokenScores:
    """Scores of all examples from those of some, without gradient."""
    return TokenScores(
        nll=torch.cat([scores.nll.detach() for scores in parts]),
        mask=torch.cat([scores.mask for scores in parts]),
        predictions=torch.cat([scores.predictions for scores in parts]),
        statistics={name: torch.cat([s.statistics[name] for s in parts]) for name in parts[0].statistics},
    )
