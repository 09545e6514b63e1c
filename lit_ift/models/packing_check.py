"""Whether a model keeps apart the examples that share a row.

Examples are told apart by positions that restart at 0, which transformers turns into a block-diagonal mask or, for
attention kernels of variable length, into sequence lengths. ``check_packing`` proves it for the model at hand.
"""

from typing import Any, Final

import torch
from torch import Tensor

from lit_ift.errors import UserError
from lit_ift.models.eval_mode import evaluating
from lit_ift.models.head import base_model, decoder

_LENGTHS: Final = (5, 1, 9, 4)
"""Tokens of the examples that the check packs."""
_TAIL: Final = 3
"""Padding after them."""


def packs_into_one_row(model: Any) -> bool:
    """Whether the model's attention takes examples of any length one after the other, and only in a single row.

    That is so for the flash attention kernels; the others compute on every pair of positions of a row.
    """
    implementation = getattr(getattr(base_model(model), "config", None), "_attn_implementation", None)
    return "flash" in str(implementation)


def check_packing(model: Any) -> None:
    """Check on a few tokens that packed examples have the hidden states that they have alone.

    Also that changing one example leaves the others as they were, which rounding cannot hide. It runs under the
    caller's autocast. Training mode of every module and all random states are as before.

    Args:
        model: with materialised weights; an adapter model is looked into.

    Raises:
        UserError: examples influence each other, or their positions are not their own.
    """
    inner = base_model(model)
    with evaluating(inner), torch.no_grad():
        _check(inner)


def _check(inner: Any) -> None:
    embedding = inner.get_input_embeddings()
    device = embedding.weight.device
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(embedding.weight.shape[0], (1, n), generator=generator).to(device) for n in (*_LENGTHS, _TAIL)]
    changed = [(row + 1) % embedding.weight.shape[0] if k % 2 else row for k, row in enumerate(ids)]
    alone = [hidden_of(inner, row) for row in ids[: len(_LENGTHS)]]
    # One row of everything; and rows of different layout, unless the kernel takes one row only.
    layouts = [[[0, 1, 2, 3, 4]]]
    if not packs_into_one_row(inner):
        layouts.append([[2, 1, 0, 3, 4], [3, 0, 2, 1, 4]])
    for layout in layouts:
        packed = _packed(inner, ids, layout)
        disturbed = _packed(inner, changed, layout)
        for k, expected in enumerate(alone):
            for ours, others in zip(packed[k], disturbed[k], strict=True):
                # Bits agree, but for mixtures of experts, which compute on tokens of all examples together.
                same = k % 2 == 1 or is_close(others, ours, factor=1)
                if not (same and is_close(ours, expected, factor=8)):
                    raise UserError(
                        f"{type(inner).__name__} with attn_implementation="
                        f"'{getattr(inner.config, '_attn_implementation', None)}' does not keep packed examples "
                        "apart: their hidden states are not those that they have alone. Set data.packing=false, or "
                        "model.attn_implementation to sdpa or eager."
                    )


def _packed(inner: Any, ids: list[Tensor], layout: list[list[int]]) -> dict[int, list[Tensor]]:
    """Hidden states of each example, one for each row that it stands in."""
    rows = torch.cat([torch.cat([ids[k] for k in row], dim=1) for row in layout])
    positions = [torch.cat([torch.arange(ids[k].shape[1], device=rows.device) for k in row]) for row in layout]
    hidden = hidden_of(inner, rows, position_ids=torch.stack(positions))
    found: dict[int, list[Tensor]] = {k: [] for k in range(len(ids))}
    for states, row in zip(hidden, layout, strict=True):
        for k, part in zip(row, states.split([ids[k].shape[1] for k in row]), strict=True):
            found[k].append(part[None])
    return found


def hidden_of(inner: Any, ids: Tensor, **positions: Tensor) -> Tensor:
    """Final hidden states of rows of token ids, (R, T) -> (R, T, D)."""
    output = decoder(inner)(inputs_embeds=inner.get_input_embeddings()(ids), use_cache=False, **positions)
    hidden: Tensor = output.last_hidden_state
    return hidden


def is_close(actual: Tensor, expected: Tensor, *, factor: int) -> bool:
    """Whether they agree within ``factor`` rounding errors of the least precise dtype that is computed with."""
    kind = actual.device.type
    autocast = torch.is_autocast_enabled(kind)
    eps = torch.finfo(torch.get_autocast_dtype(kind) if autocast else actual.dtype).eps
    tolerance = factor * max(eps, 1e-5) * max(1.0, expected.abs().max().item())
    # Not finite is not close.
    return (actual.double() - expected.double()).abs().max().item() <= tolerance
