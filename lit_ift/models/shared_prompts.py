"""Sequences that begin with the same prompt, which the model reads once.

Two passes: the prompts, whose keys and values are kept with their gradient; then what follows them, called answers
here, which attend to the kept keys of their own prompt and to their own tokens. An answer may be read several times.
The slow twin reads every sequence whole; ``lit_ift.models.shared_prompts_check`` proves that a model agrees with it.

Shapes: P rows of W positions hold prompts, A rows of L positions hold answers, the prompts of one of those rows have K
tokens at most; D hidden size, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lit_ift.models.head import base_model, decoder

_KINDS: Final = {"full_attention", "sliding_attention"}
IMPLEMENTATIONS: Final = ("sdpa", "eager")
"""Implementations of attention that take a mask of any form."""


@dataclass(frozen=True)
class Rows:
    """Sequences one after the other in rows.

    Attributes:
        sequences: number of the sequence that a position belongs to, -1 on padding, (R, L) int64.
        positions: place of a token in its sequence, prompt included, 0 on padding, (R, L) int64.
    """

    sequences: Tensor
    positions: Tensor


@dataclass(frozen=True)
class PromptTokens:
    """The prompt tokens that the answers of each row attend to.

    Attributes:
        places: where they stand in the rows of prompts, counted row by row, (A, K) int64.
        prompts: the prompt that each belongs to, -2 on padding, (A, K) int64.
        positions: as in `Rows`, (A, K) int64.
    """

    places: Tensor
    prompts: Tensor
    positions: Tensor


class KeptPrompts:
    """A cache, as attention layers use it, that takes the keys and values of prompts.

    Attributes:
        layers: keys and values of each layer, (P, H, W, ·) each, with gradient where the pass had it.
    """

    def __init__(self) -> None:  # Not a dataclass: FSDP2 copies those that it finds among the arguments of a layer.
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by a layer with its keys and values; returns those to attend to."""
        self.layers[layer_idx] = (keys, values)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in columns before those of the pass: none, for positions and masks are given."""
        return 0

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns of a mask, and the first one's number."""
        return query_length, 0


class _ReadPrompts(KeptPrompts):
    """Puts the kept keys and values before those of the answers."""

    def __init__(self, kept: KeptPrompts, places: Tensor) -> None:
        super().__init__()
        self.layers = kept.layers
        self._places = places

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        kept_keys, kept_values = (_taken(kept, self._places) for kept in self.layers[layer_idx])
        return torch.cat([kept_keys, keys], dim=-2), torch.cat([kept_values, values], dim=-2)


def _taken(kept: Tensor, places: Tensor) -> Tensor:
    """Keys or values at some places, (P, H, W, d) -> (A, H, K, d)."""
    by_token = kept.transpose(1, 2).flatten(0, 1)
    return by_token.index_select(0, places.flatten()).view(*places.shape, *by_token.shape[1:]).transpose(1, 2)


def read_prompts(model: Any, embeddings: Tensor, rows: Rows, *, one_a_row: bool = False) -> tuple[Tensor, KeptPrompts]:
    """Read prompts.

    Args:
        model: a causal language model.
        embeddings: of the rows, (P, W, D).
        rows: whose sequences are the prompts.
        one_a_row: whether no row has more than one prompt, for which attention is faster.

    Returns:
        Hidden states, (P, W, D), and what `read_answers` needs.
    """

    def mask(window: int | None) -> Tensor:
        return _sees(rows.sequences, rows.positions, rows.sequences, rows.positions, window)

    kept = KeptPrompts()
    # Of a single sequence it is the usual mask, and padding at the end is seen by nothing else.
    attention_mask = None if one_a_row else _masks(model, mask, embeddings.dtype)
    return _hidden(model, embeddings, rows.positions, attention_mask, kept), kept


def read_answers(
    model: Any, embeddings: Tensor, rows: Rows, prompts: Tensor, kept: KeptPrompts, attended: PromptTokens
) -> Tensor:
    """Read what follows the prompts.

    Args:
        model: the one that has read the prompts.
        embeddings: of the rows, (A, L, D).
        rows: whose sequences are the answers.
        prompts: the prompt of each position's answer, -1 on padding, (A, L) int64.
        kept: of the prompts.
        attended: the prompt tokens of each row.

    Returns:
        Hidden states, (A, L, D). Gradient flows to ``embeddings`` and to the pass over the prompts.
    """

    def mask(window: int | None) -> Tensor:
        before = _sees(prompts, rows.positions, attended.prompts, attended.positions, window)
        return torch.cat([before, _sees(rows.sequences, rows.positions, rows.sequences, rows.positions, window)], -1)

    attention_mask = _masks(model, mask, embeddings.dtype)
    return _hidden(model, embeddings, rows.positions, attention_mask, _ReadPrompts(kept, attended.places))


def _sees(own: Tensor, at: Tensor, others: Tensor, others_at: Tensor, window: int | None) -> Tensor:
    """Whether a position attends to another: both of one sequence, the other not after it, nor before its window.

    Padding attends to padding, since attention to nothing has no value.
    """
    distance = at[:, :, None] - others_at[:, None, :]
    sees = (own[:, :, None] == others[:, None, :]) & (distance >= 0)
    return sees if window is None else sees & (distance < window)


def _masks(model: Any, mask: Callable[[int | None], Tensor], dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The mask in the form that the model's layers take, (R, 1, L, keys): of each kind of layer if there are two."""
    config = base_model(model).config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), attention_kinds(config)

    def made(width: int | None) -> Tensor:
        sees = mask(width)[:, None]
        if config._attn_implementation != "eager":
            return sees
        return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)

    if "sliding_attention" in kinds:
        return {"full_attention": made(None), "sliding_attention": made(window)}
    return made(None if kinds else window)


def attention_kinds(config: Any) -> set[str]:
    """Kinds of the layers, where the architecture has several."""
    return set(getattr(config, "layer_types", None) or ())


def unknown_kinds(config: Any) -> set[str]:
    """Kinds of layers that share no prompts."""
    return attention_kinds(config) - _KINDS


def _hidden(
    model: Any, embeddings: Tensor, positions: Tensor, mask: Tensor | dict[str, Tensor] | None, cache: KeptPrompts
) -> Tensor:
    output = decoder(model)(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden
