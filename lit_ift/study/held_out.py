"""What a trained model says of held-out rows, measured in the same way whatever the objective was.

Shapes: B answers, T tokens.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import lightning as L
import torch

from lit_ift.chat.example import Example
from lit_ift.data import ConversationDataModule
from lit_ift.data.batch.collate import collate
from lit_ift.data.modules.conversation import DEFAULT_BATCH_SIZE, Split
from lit_ift.data.rows import EncodedRow
from lit_ift.losses.masking import per_sequence_mean
from lit_ift.models.eval_mode import evaluating
from lit_ift.modules.base import CausalLMModule, token_accuracy
from lit_ift.modules.precision import float32_by_default
from lit_ift.ranks import of_every_rank

Scores = dict[str, dict[str, float]]
"""Measure -> item -> value."""

LESS_IS_BETTER: Final = frozenset({"nll"})
"""Measures in which a lower value is better, by the last part of their names."""


def score_rows(trainer: L.Trainer, module: CausalLMModule, split: Split) -> Scores:
    """Score the rows of a split by a plain pass on their true tokens; all ranks get the scores of all rows.

    An objective's own ``val/loss`` is another number for each objective. This is the same for all: ``nll``, the mean
    negative log-likelihood of the trained tokens [nats], and ``token_accuracy``, the share of them that the model
    predicts, both of the (chosen) answer; and for pairs ``pair_accuracy``, whether the chosen answer as a whole is
    likelier than the rejected one, and ``margin``, by how much [nats].

    Args:
        trainer: of the run.
        module: whose model is scored.
        split: rows of a data module of this package; nothing is scored if it has none.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, ConversationDataModule) or not data.has_split(split):
        return {}
    if split not in data.datasets:
        data.setup("test" if split == "test" else "validate")
    rows = data.datasets[split].rows
    order = sorted(range(len(rows)), key=lambda index: rows[index].num_tokens)
    size = data.eval_batch_size or data.batch_size or DEFAULT_BATCH_SIZE
    scores: Scores = defaultdict(dict)
    with evaluating(module), torch.no_grad(), trainer.precision_plugin.val_step_context(), float32_by_default():
        for indices in _batches(order, size, trainer.global_rank, trainer.world_size):
            batch = {index: rows[index] for index in indices}
            for measure, values in module.in_forward(partial(_scores, trainer, module, batch)).items():
                scores[measure] |= values
    of_ranks = of_every_rank(dict(scores))
    scores = {name: {k: v for part in of_ranks for k, v in part[name].items()} for name in of_ranks[0]}
    return {measure: dict(sorted(values.items())) for measure, values in scores.items()}


def _batches(order: Sequence[int], size: int, rank: int, ranks: int) -> Iterator[Sequence[int]]:
    """The batches of a rank; ranks that share a model run equally many passes, so the last row fills them up."""
    mine = list(order[rank::ranks])
    mine += list(order[-1:]) * (math.ceil(len(order) / ranks) - len(mine))
    for start in range(0, len(mine), size):
        yield mine[start : start + size]


def _scores(trainer: L.Trainer, module: CausalLMModule, rows: dict[int, EncodedRow]) -> Scores:
    # The first side of a row is its answer or its chosen one.
    first = [next(iter(row.sides.values())) for row in rows.values()]
    names = [f"{index:06d} {row.row_id}" for index, row in rows.items()]
    logps, means, right = _pass(trainer, module, first)
    scores: Scores = {
        "nll": dict(zip(names, means, strict=True)),
        "token_accuracy": dict(zip(names, right, strict=True)),
    }
    pairs = [(i, row.sides["rejected"]) for i, row in enumerate(rows.values()) if "rejected" in row.sides]
    if pairs:
        rejected, _, _ = _pass(trainer, module, [example for _, example in pairs])
        margins = {names[i]: logps[i] - logp for (i, _), logp in zip(pairs, rejected, strict=True)}
        scores["margin"] = margins
        scores["pair_accuracy"] = {name: float(margin > 0) for name, margin in margins.items()}
    return scores


def _pass(
    trainer: L.Trainer, module: CausalLMModule, examples: Sequence[Example]
) -> tuple[list[float], list[float], list[float]]:
    """Log-probability of each answer as a whole, its mean nll a token, and the share of tokens predicted, (B,) each."""
    batch = trainer.strategy.batch_to_device(dict(collate(examples, pad_token_id=0)))
    scores = module.score(module.hidden_states(module.embed(batch["input_ids"]), batch), batch)
    right = token_accuracy(scores.predictions, batch["labels"])
    return (-scores.nll.sum(-1)).tolist(), per_sequence_mean(scores.nll, scores.mask).tolist(), right.tolist()
