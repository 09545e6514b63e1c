"""What a model says of each trained token of a row.

Shapes: A answers of T tokens, N trained positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lit_ift.data.batch.collate import collate_feedback
from lit_ift.data.rows import EncodedRow
from lit_ift.generation.opened import OpenedModel
from lit_ift.losses.ift import propagation_weights
from lit_ift.losses.logprobs import TokenScores, placed
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.inputs import TrueTokens
from lit_ift.modules.stepping import Batch
from lit_ift.modules.token_module import TokenModule
from lit_ift.run_report.objective import Objective


@dataclass(frozen=True)
class Reading:
    """What a model says of the answers of a batch. Position t is of token t+1; all is 0 off the mask.

    Attributes:
        logps: log-probability of the token, given the true tokens before it [nats], (A, T-1).
        mask: true where the token is trained on, (A, T-1).
        predictions: the token that is likeliest there, (A, T-1) int64.
        weights: of dynamic relation propagation, of mean 1 in each answer, (A, T-1); None where the objective has none.
    """

    logps: Tensor
    mask: Tensor
    predictions: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class TokenReading:
    """What a model says of one token; see `Reading`."""

    logp: float
    prediction: int
    weight: float | None


Answer = dict[int, TokenReading]
"""The trained tokens of an answer, by their place in it."""


@dataclass(frozen=True)
class ReadRow:
    """A row, and what is said of the answers of its sides, in their order.

    Attributes:
        row: what was read.
        answers: of the model.
        before: of the model that training began from; None where that was not asked.
    """

    row: EncodedRow
    answers: list[Answer]
    before: list[Answer] | None


@torch.no_grad()
def read(module: CausalLMModule, batch: Batch) -> Reading:
    """Read a batch as the module's objective does: through its input, if that looks ahead, and with its weights."""
    token_input = module.token_input if isinstance(module, TokenModule) else TrueTokens()
    prepared = token_input(module, batch)
    own = module.score(prepared.hidden_states(module, batch), batch)
    first = own if prepared.first is None else prepared.first
    best = own.predictions if prepared.best is None else prepared.best
    predictions = placed(first.nll[first.mask], first.mask, best, {"best": best}).statistics["best"]
    return Reading(-first.nll, first.mask, predictions, _weights(module, own))


def _weights(module: CausalLMModule, scores: TokenScores) -> Tensor | None:
    if not isinstance(module, TokenModule) or module.token_loss.name != "propagation":
        return None
    known = signature(propagation_weights).parameters
    options = {name: value for name, value in module.token_loss.values.items() if name in known}
    return propagation_weights(scores.nll, scores.mask, **options)


def answers_of(reading: Reading) -> list[Answer]:
    """The same, answer by answer."""
    found: list[Answer] = [{} for _ in reading.mask]
    for answer, position in reading.mask.nonzero().tolist():
        weight = None if reading.weights is None else float(reading.weights[answer, position])
        prediction = int(reading.predictions[answer, position])
        found[answer][position + 1] = TokenReading(float(reading.logps[answer, position]), prediction, weight)
    return found


def read_rows(
    found: OpenedModel, rows: Sequence[EncodedRow], objective: Objective, *, compares: bool, batch_size: int
) -> list[ReadRow]:
    """Read rows with a model and, to compare, with the one that its training began from.

    Args:
        found: the model.
        rows: any kinds; instruction rows are read as the objective does, others as they are.
        objective: that of the run.
        compares: whether the base model is asked too.
        batch_size: rows read at a time.

    Raises:
        UserError: the base model cannot be obtained.
    """
    answers = list(_all_answers(found, found.model, rows, objective, batch_size, "read rows"))
    before = None
    if compares:
        with found.base() as base:
            before = list(_all_answers(found, base, rows, objective, batch_size, "read rows with the base model"))
    return [ReadRow(row, answers[i], None if before is None else before[i]) for i, row in enumerate(rows)]


def _all_answers(
    found: OpenedModel, model: Any, rows: Sequence[EncodedRow], objective: Objective, batch_size: int, what: str
) -> Iterator[list[Answer]]:
    plain = Objective().around(model)
    as_trained = plain if objective.kind is CausalLMModule else objective.around(model)
    pad = found.tokenizer.pad_token_id
    with tqdm(total=len(rows), desc=what, unit="row", leave=False) as progress:
        for is_instruction, run in groupby(rows, lambda row: row.kind == "instruction"):
            alike = list(run)
            for start in range(0, len(alike), batch_size):
                some = alike[start : start + batch_size]
                batch: Any = collate_feedback(some, pad_token_id=0 if pad is None else pad)
                on_device = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                answers = iter(answers_of(read(as_trained if is_instruction else plain, on_device)))
                yield from ([next(answers) for _ in row.sides] for row in some)
                progress.update(len(some))
