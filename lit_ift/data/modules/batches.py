"""How the encoded rows of a split become batches: what a row counts for, and what is put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch.utils.data import DataLoader

from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.data.batch.dataset import EncodedDataset
from lit_ift.data.rows import EncodedRow


@dataclass(frozen=True)
class BatchOptions:
    """How large a batch is, and how its rows lie in it.

    Args:
        batch_size: rows a process and batch; None if tokens are counted.
        tokens_per_batch: input tokens a process and batch at most; None if rows are counted.
        packing: put examples one after the other into few rows.
        one_row: pack them into one row.
        pad_to_multiple_of: length of padded rows.
        pad_token_id: fills rows up.
    """

    batch_size: int | None
    tokens_per_batch: int | None
    packing: bool
    one_row: bool
    pad_to_multiple_of: int | None
    pad_token_id: int


class SplitBatches:
    """Batches of the first answer of each row; a subclass makes others.

    Args:
        dataset: the rows.
        options: see `BatchOptions`.
    """

    def __init__(self, dataset: EncodedDataset, options: BatchOptions) -> None:
        self.dataset = dataset
        self.options = options

    @cached_property
    def lengths(self) -> Sequence[int]:
        """What each row counts for in a batch [tokens], padding aside."""
        return self.dataset.lengths

    @cached_property
    def tokens_per_batch(self) -> int | None:
        """Tokens that the rows of a batch may have; None if rows are counted."""
        return self.options.tokens_per_batch

    def sampler_options(self) -> dict[str, Any]:
        """What a sampler must know of the batches."""
        return {
            "batch_size": self.options.batch_size,
            "tokens_per_batch": self.tokens_per_batch,
            "packing": self.options.packing,
            "pad_to_multiple_of": self.options.pad_to_multiple_of,
        }

    def loader(self, **options: Any) -> DataLoader[Any]:
        """A loader that takes the indices of each batch from the sampler among `options`."""
        return DataLoader(self.dataset, batch_size=None, collate_fn=partial(_collated, options=self.options), **options)


def _collated(rows: list[EncodedRow], *, options: BatchOptions) -> Any:
    """The batch of the rows' first answers, which are those of instruction rows and the prompts of all others."""
    examples = [next(iter(row.sides.values())) for row in rows]
    padding: dict[str, Any] = {"pad_token_id": options.pad_token_id, "pad_to_multiple_of": options.pad_to_multiple_of}
    if options.packing:
        return collate_packed(examples, **padding, one_row=options.one_row)
    return collate(examples, **padding)
