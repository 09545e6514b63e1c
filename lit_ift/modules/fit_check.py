"""Whether the data fits the model, told before the first step instead of from inside of it."""

from typing import TYPE_CHECKING, Any, Final

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ift.data.batch.collate import padded_length
from lit_ift.data.batch.dataset import EncodedDataset
from lit_ift.errors import UserError
from lit_ift.models.limits import Limits, limits_of

if TYPE_CHECKING:
    import lightning as L

_STAGES: Final = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


def check_data_fits(model: Any, trainer: "L.Trainer", *, new_tokens: int) -> None:
    """Do nothing if the model knows every token id and position of the data of the coming stage.

    Rows beyond the configured length of a model with rotary positions are a warning only: they can be computed.

    Args:
        model: the language model.
        trainer: whose data module is looked at, where it holds encoded rows.
        new_tokens: most tokens that predict adds to a prompt.

    Raises:
        UserError: an id is beyond the embedding, or a row beyond a table of positions.
    """
    data: Any = getattr(trainer, "datamodule", None)
    datasets = getattr(data, "datasets", None)
    if not isinstance(datasets, dict):
        return
    for split in _STAGES.get(str(getattr(trainer.state.fn, "value", trainer.state.fn)), ()):
        dataset = datasets.get(split)
        if isinstance(dataset, EncodedDataset) and len(dataset):
            check_rows_fit(model, split, dataset, data, new_tokens=new_tokens if split == "predict" else 0)


def check_rows_fit(model: Any, split: str, dataset: EncodedDataset, data: Any, *, new_tokens: int = 0) -> None:
    """The same for the rows of one split of a data module.

    Raises:
        UserError: an id is beyond the embedding, or a row beyond a table of positions.
    """
    limits = limits_of(model)
    _check_ids(split, dataset, data.tokenizer, limits)
    _check_lengths(split, dataset, limits, data.pad_to_multiple_of, new_tokens)


def check_batch_fits(model: Any, input_ids: Tensor, *, packed: bool) -> None:
    """The same for a batch, (B, T), of other data; of packed examples, whose positions restart, for the ids alone.

    Raises:
        UserError: an id is beyond the embedding, or the batch beyond a table of positions.
    """
    limits = limits_of(model)
    largest = int(input_ids.max()) if input_ids.numel() else 0
    if largest >= limits.vocabulary:
        raise UserError(f"The batch has the token id {largest}. {_vocabulary(limits)}")
    length = input_ids.shape[-1]
    if limits.has_table and limits.positions is not None and length > limits.positions and not packed:
        raise UserError(
            f"The batch is {length} tokens long, but the model has positions for {limits.positions} only. Give shorter "
            "rows."
        )


def _check_ids(split: str, dataset: EncodedDataset, tokenizer: Any, limits: Limits) -> None:
    if max(tokenizer.get_vocab().values(), default=0) < limits.vocabulary:
        return  # No token of this tokenizer can be beyond the embedding, so the rows are not read.
    index, largest = dataset.rows.largest_id()
    if largest >= limits.vocabulary:
        raise UserError(
            f"data.{split}: {dataset.rows[index].row_id} has the token {tokenizer.convert_ids_to_tokens(largest)!r} of "
            f"id {largest}. {_vocabulary(limits)}"
        )


def _vocabulary(limits: Limits) -> str:
    return (
        f"The model's embedding has {limits.vocabulary} rows, so it knows ids up to {limits.vocabulary - 1}. Use the "
        "tokenizer that belongs to the model, or name new tokens in model.added_tokens."
    )


def _check_lengths(split: str, dataset: EncodedDataset, limits: Limits, multiple: int | None, added: int) -> None:
    if limits.positions is None:
        return
    row, length = dataset.longest_side()
    # Padding has positions too, which are looked up like any other.
    needed = padded_length(length, multiple) + added
    if needed <= limits.positions:
        return
    row_id = dataset.rows[row].row_id
    what = f"{length} tokens" + (f", and up to {added} are added to them" if added else "")
    what += f", padded to {needed - added}" if needed - added > length else ""
    if limits.has_table:
        raise UserError(
            f"data.{split}: {row_id} has {what}, but the model has positions for {limits.positions} tokens only. Lower "
            f"data.max_length to {max(limits.positions - added, 1)}."
        )
    rank_zero_warn(
        f"data.{split}: {row_id} has {what}, more than the {limits.positions} that the model was made for "
        "(max_position_embeddings). Beyond it answers mostly get worse. Lower data.max_length, or set rope scaling in "
        "the model's config.json."
    )
