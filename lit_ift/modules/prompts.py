"""An embedding of each prompt, for objectives that compare prompts (arXiv:2402.10958).

Shapes: A answers, B rows of T positions, D hidden size, E the size of an embedding.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_ift.constants import IGNORE_INDEX
from lit_ift.errors import UserError
from lit_ift.modules.packed import is_packed, owners, unpacked
from lit_ift.modules.stepping import Batch

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule


def _prompt_lengths(batch: Batch) -> Tensor:
    """Tokens before the first trained one of each answer, (A,)."""
    trained = unpacked(batch)["labels"] != IGNORE_INDEX
    return torch.where(trained.any(-1), trained.int().argmax(-1), trained.shape[-1])


def pooled_prompts(hidden: Tensor, batch: Batch) -> Tensor:
    """Mean hidden state over the prompt of each answer, which is what stands before its first trained token.

    Args:
        hidden: of the batch's rows, padded or packed, (B, T, D).
        batch: with A answers.

    Returns:
        (A, D); zeros for an answer without prompt.
    """
    lengths = _prompt_lengths(batch)
    of_position = owners(batch)
    positions = batch["position_ids"] if is_packed(batch) else torch.arange(hidden.shape[1], device=hidden.device)
    in_prompt = (of_position >= 0) & (positions < lengths[of_position.clamp(min=0)])
    owner = of_position[in_prompt]
    sums = hidden.new_zeros(len(lengths), hidden.shape[-1]).index_add(0, owner, hidden[in_prompt])
    return sums / torch.bincount(owner, minlength=len(lengths)).clamp(min=1)[:, None]


class PromptEmbedder:
    """A sentence-embedding model: the mean of an encoder's last hidden states over a text's tokens.

    Args:
        model: hub id or folder of an encoder that ``AutoModel`` loads, with its tokenizer. It is frozen, and takes no
            part in checkpoints.
    """

    def __init__(self, model: str) -> None:
        self.source = model
        self._loaded: tuple[Any, Any] | None = None

    def prepare(self) -> None:
        """Load encoder and tokenizer, unless they are there.

        Raises:
            UserError: they cannot be loaded.
        """
        from transformers import AutoModel, AutoTokenizer

        if self._loaded is not None:
            return
        try:
            encoder = AutoModel.from_pretrained(self.source).eval().requires_grad_(False)
            tokenizer = AutoTokenizer.from_pretrained(self.source)
        except (OSError, ValueError) as error:
            raise UserError(
                f"prompt_embedder={self.source!r} cannot be loaded: {error} Give the hub id or folder of an encoder "
                "with its tokenizer, or leave it out to compare prompts by the policy's own hidden states."
            ) from error
        self._loaded = tokenizer, encoder

    def __call__(self, module: "CausalLMModule", batch: Batch) -> Tensor:
        """Embeddings of the prompts' text, special tokens left out, (A, E)."""
        assert self._loaded is not None, "prepare() was not called"
        tokenizer, encoder = self._loaded
        device = batch["input_ids"].device
        encoder.to(device)
        lengths = _prompt_lengths(batch).tolist()
        ids = [row[:length].tolist() for row, length in zip(unpacked(batch)["input_ids"], lengths, strict=True)]
        texts = [module.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.no_grad():
            states = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        pooled: Tensor = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return pooled
