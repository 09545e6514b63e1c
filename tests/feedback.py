"""Batches of feedback made by hand, and what a model says of each answer by its whole logits."""

from typing import Any

import torch
from tiny import VOCABULARY_SIZE
from torch import Tensor

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.data.rows import ANSWER_SIDES, ROW_KINDS, EncodedRow


def encoded_row(
    kind: str, *sides: str, score: float | None = None, seed: int = 0, prompt: int = 4, longest: int = 6
) -> EncodedRow:
    """A row of random tokens whose sides share a prompt."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(1, VOCABULARY_SIZE, (n,), generator=generator).tolist()

    start = draw(prompt)
    answers = {side: draw(1 + int(torch.randint(longest, (1,), generator=generator))) for side in sides}
    examples = {
        side: Example(start + answer, [IGNORE_INDEX] * prompt + answer, f"row {seed}")
        for side, answer in answers.items()
    }
    return EncodedRow(kind, f"row {seed}", examples, score)  # type: ignore[arg-type]


def pairs(count: int, *, gold: bool = False, first_seed: int = 0) -> list[EncodedRow]:
    sides = ("chosen", "rejected", *(["gold"] if gold else []))
    return [encoded_row("preference", *sides, seed=first_seed + i) for i in range(count)]


def dummy(row: EncodedRow) -> EncodedRow:
    return EncodedRow(row.kind, "", {name: side.as_dummy() for name, side in row.sides.items()}, row.score)


def feedback_batch(
    rows: list[EncodedRow], *, packed: bool = False, reference: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """The batch of some rows; ``reference`` gives log-probabilities of all answers, made up where it is None."""
    answers = [(i, name, side) for i, row in enumerate(rows) for name, side in row.sides.items()]
    collator: Any = collate_packed if packed else collate
    batch: dict[str, Any] = dict(collator([side for _, _, side in answers], pad_token_id=0))
    generator = torch.Generator().manual_seed(len(answers))
    made_up = -3 * torch.rand(len(answers), generator=generator, dtype=torch.float64) - 10
    return {
        **batch,
        "row_ids": [row.row_id for row in rows],
        "row_kinds": torch.tensor([ROW_KINDS.index(row.kind) for row in rows]),
        "scores": torch.tensor([torch.nan if row.score is None else row.score for row in rows]),
        "answer_rows": torch.tensor([i for i, _, _ in answers]),
        "answer_sides": torch.tensor([ANSWER_SIDES.index(name) for _, name, _ in answers]),
        "reference_logps": (made_up if reference is None else reference).to(dtype),
    }


def answer_logps(model: Any, rows: list[EncodedRow]) -> list[dict[str, Tensor]]:
    """The slow twin: each answer alone through the whole model, its trained tokens' log-probabilities summed."""

    def logp(side: Example) -> Tensor:
        ids, labels = torch.tensor([side.input_ids]), torch.tensor([side.labels])
        logps = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        chosen = logps.gather(-1, ids[:, 1:, None])[..., 0]
        return (chosen * (labels[:, 1:] != IGNORE_INDEX)).sum()

    return [{name: logp(side) for name, side in row.sides.items()} for row in rows]


def scaled_difference(
    chosen_logps: Tensor, rejected_logps: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """A user's own pair loss."""
    return scale * (rejected_logps - chosen_logps), {}
