"""Verifiable tasks of reasoning-gym: greedy answers, scored by the task's own verifier."""

import sys
from typing import Any

from lit_ift.chat.conversation import Conversation
from lit_ift.data.modules.tasks import TasksDataModule
from lit_ift.evaluation.scored import Scored
from lit_ift.generation.engine import MAX_NEW_TOKENS, GenerationOptions
from lit_ift.generation.opened import OpenedModel, room_for_prompt
from lit_ift.generation.prompts import Prompt, encode_prompts
from lit_ift.generation.transformers_engine import TransformersEngine


def score_gym(
    found: OpenedModel, name: str, spec: dict[str, Any], *, max_rows: int | None, max_new_tokens: int | None, batch: int
) -> list[Scored]:
    """Two metrics: ``exact``, for which an answer counts if its verifier gives the full score of 1, and ``score``.

    Args:
        found: the model, with the chat template of its training.
        name: of the task.
        spec: options of `TasksDataModule`.
        max_rows: the first so many questions of each task; None for all.
        max_new_tokens: longest answer [tokens]; 512 by default.
        batch: questions answered at a time.

    Raises:
        UserError: a prompt cannot be written by the chat template, or leaves no room for an answer.
    """
    from tqdm import tqdm

    data = TasksDataModule(**spec)
    items = data.eval_items(max_rows)
    options = GenerationOptions(max_new_tokens or MAX_NEW_TOKENS, batch_size=batch)
    prompts = [
        Prompt(item.row_id, Conversation(list(item.messages), num_prompt_messages=len(item.messages)), item.answer)
        for item in items
    ]
    room = room_for_prompt(found.model, options.max_new_tokens)
    ids = encode_prompts(prompts, found.tokenizer, max_length=room)
    scores: dict[int, float] = {}
    with tqdm(total=len(items), desc=name, unit="answer", file=sys.stderr) as bar:
        for index, (answer,) in TransformersEngine(found.model, found.tokenizer).generate(ids, options):
            scores[index] = data.score(items[index], answer)
            bar.update()
    parts = {item.row_id: scores[index] for index, item in enumerate(items)}
    exact = {row_id: float(score >= 1) for row_id, score in parts.items()}
    chosen = {"max_new_tokens": options.max_new_tokens}
    return [
        Scored(name, metric, len(items), scores=values, options=chosen)
        for metric, values in (("exact", exact), ("score", parts))
    ]
