"""What a module sees of a packed batch: the same as of a padded one, one row per example.

Shapes: B examples, L the longest one's length; P packed rows of T positions.
"""

import torch
from torch import Tensor

from lit_ift.constants import IGNORE_INDEX
from lit_ift.errors import UserError
from lit_ift.losses.logprobs import TokenScores, target_mask
from lit_ift.losses.packing import count_examples, packed_order, unpack, unpack_scores
from lit_ift.modules.stepping import Batch


def is_packed(batch: Batch) -> bool:
    """Whether rows hold several examples, told apart by ``sequence_ids``."""
    return "sequence_ids" in batch


def unpacked(batch: Batch) -> Batch:
    """The batch with one row per example: ``input_ids``, ``labels`` and ``attention_mask`` of shape (B, L).

    Input ids are 0 on the padding. A batch that is not packed is returned as it is.
    """
    if not is_packed(batch):
        return batch
    sequence_ids = batch["sequence_ids"]
    num_examples = count_examples(sequence_ids)
    own = {name: value for name, value in batch.items() if name not in ("sequence_ids", "position_ids")}
    if "data_weights" in batch:
        own["data_weights"] = unpack(batch["data_weights"], sequence_ids, num_examples, fill=1)
    return {
        **own,
        "input_ids": unpack(batch["input_ids"], sequence_ids, num_examples),
        "attention_mask": unpack((sequence_ids >= 0).long(), sequence_ids, num_examples),
        "labels": unpack(batch["labels"], sequence_ids, num_examples, fill=IGNORE_INDEX),
    }


def data_weights(batch: Batch) -> Tensor:
    """How much the loss of each token counts in a batch that says so, where its scores are, (B, L-1) float32."""
    weights: Tensor = unpacked(batch)["data_weights"][:, 1:]
    return weights


def owners(batch: Batch) -> Tensor:
    """The example that each position of the batch's own rows belongs to, -1 at padding, (B, T) int64."""
    if is_packed(batch):
        rows: Tensor = batch["sequence_ids"]
        return rows
    mask = (batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(batch["input_ids"])).bool()
    return torch.arange(len(mask), device=mask.device)[:, None].where(mask, -1)


def needed_mask(batch: Batch) -> Tensor | None:
    """The attention mask that the model has to be given, (B, T); None where each row's padding follows its tokens.

    No token attends to what comes after it, so nothing trained sees such padding. Without a mask attention takes its
    causal kernel, which leaves out half of the work.
    """
    mask: Tensor | None = batch.get("attention_mask")
    pads_before = mask is not None and bool((mask[:, 1:] > mask[:, :-1]).any())
    return mask if pads_before else None


def scores_by_example(scores: TokenScores, batch: Batch) -> TokenScores:
    """Scores of the batch's rows as (B, L-1), with the predictions in that order."""
    return unpack_scores(scores, batch["sequence_ids"]) if is_packed(batch) else scores


def in_batch_order(predictions: Tensor, batch: Batch) -> Tensor:
    """From the order of ``scores_by_example`` to the row-major order of the batch's own rows, (N, ...)."""
    if not is_packed(batch):
        return predictions
    return packed_order(predictions, target_mask(batch["labels"]), batch["sequence_ids"])


def check_packed_batch(batch: Batch) -> None:
    """Refuse a packed batch in which examples would see or train each other.

    Raises:
        UserError: says what is wrong with it.
    """
    remedy = "Let lit_ift.data.collate_packed build such batches."
    if "position_ids" not in batch:
        raise UserError(f"The batch has sequence_ids but no position_ids that restart with each example. {remedy}")
    if batch.get("attention_mask") is not None:
        raise UserError(
            f"The batch has sequence_ids and an attention_mask, which would let examples see each other. {remedy}"
        )
    sequence_ids = batch["sequence_ids"]
    if bool((target_mask(batch["labels"]) & (sequence_ids[:, 1:] != sequence_ids[:, :-1])).any()):
        raise UserError(f"The first token of a packed example has a label, but nothing predicts it. {remedy}")
