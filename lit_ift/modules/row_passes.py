"""Passes without gradient over the answers of a split, before training, shared out over ranks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from tqdm import tqdm

from lit_ift.chat.example import Example
from lit_ift.data.batch.collate import collate
from lit_ift.distributed.shard import is_sharded
from lit_ift.models.eval_mode import evaluating
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.precision import float32_by_default

BATCH_TOKENS: Final = 8192
"""Tokens of a batch, padding included, unless one answer has more."""


def pass_over_answers(
    module: CausalLMModule,
    dataset: Any,
    answers: Sequence[int],
    compute: Callable[[dict[str, Any]], torch.Tensor],
    take: Callable[[Sequence[int], torch.Tensor], None],
    *,
    progress: str,
) -> None:
    """Score answers in eval mode, each rank its share of the batches.

    Args:
        module: whose weights are used; it has a Trainer.
        dataset: an `EncodedDataset`.
        answers: numbers of those to score.
        compute: from a batch, whose examples are answers, to what is wanted of it.
        take: told of this rank's batches: the numbers of their answers, and what `compute` gave.
        progress: text of the progress bar.
    """
    trainer = module.trainer
    strategy = trainer.strategy
    rows = np.searchsorted(dataset.answer_offsets, np.asarray(answers, dtype=np.int64), side="right") - 1
    row_of = dict(zip(answers, rows.tolist(), strict=True))
    everything = _batches(answers, _lengths(dataset, row_of))
    batches = everything[trainer.global_rank :: trainer.world_size]
    # Ranks that share a sharded model compute together: one with a batch less goes through another's once more.
    idle = -(-len(everything) // trainer.world_size) - len(batches) if is_sharded(module.model) else 0
    is_silent = not trainer.is_global_zero or trainer.progress_bar_callback is None
    with _ready(module), torch.no_grad(), trainer.precision_plugin.forward_context(), float32_by_default():
        with tqdm(total=sum(map(len, batches)), desc=progress, unit=" answers", disable=is_silent) as bar:
            for step, numbers in enumerate(batches + everything[-1:] * idle):
                examples = [_answer(dataset, row_of[number], number) for number in numbers]
                batch: dict[str, Any] = dict(collate(examples, pad_token_id=0))
                batch = strategy.batch_to_device(batch, strategy.root_device)
                result = module.in_forward(lambda batch=batch: compute(batch))  # type: ignore[misc]
                if step < len(batches):
                    take(numbers, result)
                    bar.update(len(numbers))
        torch.clear_autocast_cache()


@contextlib.contextmanager
def _ready(module: CausalLMModule) -> Iterator[None]:
    """The module in eval mode, on the device that it will train on."""
    if not is_sharded(module.model):
        module.to(module.trainer.strategy.root_device)
    with evaluating(module):
        yield


def _lengths(dataset: Any, row_of: Mapping[int, int]) -> list[int]:
    """Tokens of answers, given the row of each; one row is in memory at a time."""
    return [len(_answer(dataset, row, answer).input_ids) for answer, row in row_of.items()]


def _answer(dataset: Any, row: int, index: int) -> Example:
    sides = list(dataset[[row]][0].sides.values())
    example: Example = sides[index - int(dataset.answer_offsets[row])]
    return example


def _batches(answers: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Answers of like length together, the longest first, so that too little memory shows at once."""
    batches: list[list[int]] = []
    longest = 0
    for length, answer in sorted(zip(lengths, answers, strict=True), key=lambda pair: -pair[0]):
        if not batches or (len(batches[-1]) + 1) * longest > BATCH_TOKENS:
            batches.append([])
            longest = max(1, length)
        batches[-1].append(answer)
    return batches
