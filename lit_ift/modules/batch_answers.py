"""A module's answers to the prompts of a batch. Shapes: B rows, T tokens."""

from typing import TYPE_CHECKING

from torch import Tensor

from lit_ift.constants import IGNORE_INDEX
from lit_ift.modules.feedback_rows import first_answers
from lit_ift.modules.generate import generate_answers
from lit_ift.modules.packed import unpacked
from lit_ift.modules.stepping import Batch, row_ids_of

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule


def answers_to(module: "CausalLMModule", batch: Batch, batch_idx: int) -> list[dict[str, str]]:
    """Answer each row's prompt, which is what stands before its first trained token.

    Of a row with several answers, the first one is what is expected. A row with a ``row_id`` but no trained token is
    all prompt.

    Args:
        module: whose model, tokenizer and ``generation`` are used.
        batch: padded or packed; ``input_ids``, ``attention_mask`` and ``labels``, (B, T).
        batch_idx: names rows without a ``row_id``.

    Returns:
        For each row ``row_id``, ``prompt``, ``answer``, and ``expected``, the first trained turn if any.
    """
    batch = first_answers(unpacked(batch))
    rows = [_split_at_answer(ids, labels) for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    for i, row_id in enumerate(batch.get("row_ids") or []):
        if row_id and not rows[i][1]:
            rows[i] = (batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist(), [])
    # Padding rows that only keep ranks in step have neither a trained token nor a row id, hence no prompt.
    real = [i for i, (prompt, expected) in enumerate(rows) if prompt or expected]
    prompts = [rows[i][0] for i in real]
    answers = dict(generate_answers(module.model, module.tokenizer, prompts, **module.generation))
    row_ids = row_ids_of(batch, batch_idx, len(rows))
    decode = module.tokenizer.decode
    return [
        {
            "row_id": row_ids[i],
            "prompt": decode(rows[i][0]),
            "answer": answers[position],
            "expected": decode(rows[i][1], skip_special_tokens=True),
        }
        for position, i in enumerate(real)
    ]


def _split_at_answer(input_ids: Tensor, labels: Tensor) -> tuple[list[int], list[int]]:
    """Token ids before the first trained token, and those of the first trained turn; (T,) and (T,)."""
    trained = (labels != IGNORE_INDEX).tolist()
    if True not in trained:
        return [], []
    start = trained.index(True)
    end = trained.index(False, start) if False in trained[start:] else len(trained)
    return input_ids[:start].tolist(), input_ids[start:end].tolist()
