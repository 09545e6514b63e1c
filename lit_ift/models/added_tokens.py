"""Special tokens that a chat template needs and a base model's tokenizer lacks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_ift.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ZEPHYR: str = "data.chat_template=zephyr, which ends turns with the tokenizer's own eos_token and needs no new ones"
"""What serves where tokens cannot be added."""


def check_added_tokens(tokens: Sequence[str] | None) -> None:
    """Do nothing if `tokens` are texts that can be tokens.

    Raises:
        UserError: they are no list of different texts without white space.
    """
    if tokens and (len(set(tokens)) < len(tokens) or any(token.split() != [token] for token in tokens)):
        raise UserError(
            f"model.added_tokens={tokens!r} must be a list of different texts without white space, such as "
            '["<|im_start|>", "<|im_end|>"].'
        )


def add_tokens(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> list[int]:
    """Make `tokens` special tokens of a tokenizer, in place.

    Returns:
        The ids of those that it did not have, ascending.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    wanted = [AddedToken(token, special=True, normalized=False) for token in tokens if token not in special]
    if wanted:
        tokenizer.add_tokens(wanted, special_tokens=True)
    return sorted(int(tokenizer.convert_tokens_to_ids(token)) for token in tokens if token not in known)


def give_rows(model: "PreTrainedModel", new: Sequence[int]) -> None:
    """Give new tokens rows in embedding and output head, in place: each is the mean of the rows before all of them.

    The embedding grows where it has no spare rows, and the configuration's vocabulary size with it.

    Args:
        model: with materialised weights.
        new: their ids, ascending; the last ones of the tokenizer.
    """
    import torch

    if not new:
        return
    if new[-1] >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(new[-1] + 1, mean_resizing=False)
    head: Any = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
    with torch.no_grad():
        for table in {id(table): table for table in tables if table is not None}.values():
            exact = torch.float64 if table.dtype == torch.float64 else torch.float32
            table[list(new)] = table[: new[0]].mean(dim=0, dtype=exact).to(table.dtype)
