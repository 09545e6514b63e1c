"""Where the tokens of a batch stand when each prompt is read once.

Shapes: B rows of T tokens as the batch has them, E examples, N = B T places counted row by row; else as in
``lit_ift.models.shared_prompts``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from lit_ift.errors import UserError
from lit_ift.losses.logprobs import target_mask
from lit_ift.losses.packing import count_examples
from lit_ift.models.shared_prompts import PromptTokens, Rows
from lit_ift.modules.feedback_rows import is_feedback
from lit_ift.modules.packed import is_packed, owners
from lit_ift.modules.stepping import Batch

Numbers = NDArray[np.int64]

_TRIED: Final = 96
"""Widths that are tried, from that of the longest part to twice that of the batch, times parts."""
_ROOM: Final = 1.03
"""Positions of rows of equal length for each token."""


@dataclass(frozen=True)
class Layout:
    """The rows that a model reads instead of the batch's.

    Attributes:
        prompt_tokens: places of the prompts' tokens in the batch, (P, W).
        prompts: their rows.
        one_a_row: whether no row has more than one prompt.
        answer_tokens: places of the answers' tokens in the batch, (A, L).
        answers: their rows.
        answer_prompts: the prompt of each position's answer, -1 on padding, (A, L).
        attended: the prompts that the answers attend to.
        places: where the hidden state of each token of the batch stands among those of prompts, then answers, then one
            for tokens that were not read, (B, T).
    """

    prompt_tokens: Tensor
    prompts: Rows
    one_a_row: bool
    answer_tokens: Tensor
    answers: Rows
    answer_prompts: Tensor
    attended: PromptTokens
    places: Tensor


@dataclass(frozen=True)
class _Examples:
    """The examples of a batch, each array (E,).

    Attributes:
        starts: the first place of each.
        lengths: its tokens.
        before_first: its tokens before the first trained one, 0 if none is.
        before_last: its tokens before the last trained one, 0 if none is.
    """

    starts: Numbers
    lengths: Numbers
    before_first: Numbers
    before_last: Numbers


def layout_of(batch: Batch, hidden_size: int) -> Layout:
    """The layout of a batch; what a prompt is depends on whether it is one of feedback.

    Args:
        batch: padded or packed.
        hidden_size: D, which says what attention costs beside everything else.

    Raises:
        UserError: the tokens of an example do not stand together.
    """
    return (common_to_answers if is_feedback(batch) else before_targets)(batch, hidden_size)


def before_targets(batch: Batch, hidden_size: int) -> Layout:
    """Take for a prompt what stands before an example's first trained token; leave out what predicts no trained one."""
    examples = _examples(batch)
    return _layout(
        batch,
        examples.starts,
        np.arange(len(examples.starts)),
        examples.before_first,
        examples.before_last,
        hidden_size,
    )


def common_to_answers(batch: Batch, hidden_size: int) -> Layout:
    """Take for a prompt the tokens that all answers of a row of feedback begin with, and none of them trains."""
    examples = _examples(batch)
    ids, rows = batch["input_ids"].flatten().cpu().numpy(), batch["answer_rows"].cpu().numpy()
    parts = [ids[start : start + length] for start, length in zip(examples.starts, examples.lengths, strict=True)]
    # Trained tokens may be read otherwise by each answer: see inputs of chosen answers.
    untrained = np.where(examples.before_first > 0, examples.before_first, examples.lengths)
    shared = np.zeros(len(parts), dtype=np.int64)
    for row in np.unique(rows):
        members = np.flatnonzero(rows == row)
        alike = min(_in_common(parts[members[0]], parts[member]) for member in members)
        shared[members] = min(alike, untrained[members].min())
    return _layout(batch, examples.starts, rows, shared, examples.lengths, hidden_size)


def _in_common(first: Numbers, second: Numbers) -> int:
    """Tokens that two sequences begin with alike."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _examples(batch: Batch) -> _Examples:
    of_token = owners(batch).flatten().cpu()
    count = count_examples(of_token) if is_packed(batch) else len(batch["input_ids"])
    trained = pad(target_mask(batch["labels"]), (1, 0)).flatten().cpu() & (of_token >= 0)
    starts, ends = _first_and_last(of_token, of_token >= 0, count)
    first, last = _first_and_last(of_token, trained, count)
    lengths = torch.where(ends < 0, 0, ends - starts + 1)
    if not torch.equal(lengths, torch.bincount(of_token[of_token >= 0], minlength=count)):
        raise UserError(
            "The tokens of an example do not stand one after the other: its attention_mask has a gap. "
            "Set model.share_prompts=false, or let lit_ift.data.collate build the batches."
        )
    has_any = last >= 0
    before = [torch.where(has_any, place - starts, 0) for place in (first, last)]
    return _Examples(*(values.numpy() for values in (torch.where(lengths > 0, starts, 0), lengths, *before)))


def _first_and_last(of_token: Tensor, wanted: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First and last wanted place of each example, (E,); N and -1 where there is none."""
    places, of_place = wanted.nonzero()[:, 0], of_token[wanted]
    first = torch.full((count,), len(wanted)).scatter_reduce(0, of_place, places, "amin")
    return first, torch.full((count,), -1).scatter_reduce(0, of_place, places, "amax")


def _layout(
    batch: Batch, starts: Numbers, prompt_of: Numbers, shared: Numbers, lengths: Numbers, hidden_size: int
) -> Layout:
    """Lay out examples that begin with a shared prompt.

    Args:
        batch: has the positions of its tokens, if they are not those in their row.
        starts: first place of each example, (E,).
        prompt_of: number of its prompt, (E,).
        shared: tokens of that prompt, (E,).
        lengths: tokens to read, prompt included, (E,).
        hidden_size: D, which says what attention costs beside everything else.
    """
    shape = batch["input_ids"].shape
    num_prompts = int(prompt_of.max()) + 1
    first = np.zeros(num_prompts, dtype=np.int64)
    first[prompt_of[::-1]] = np.arange(len(prompt_of))[::-1]  # Any example of a prompt would do.
    prompts = [np.arange(starts[e], starts[e] + shared[e]) for e in first]
    answers = [np.arange(a + b, a + max(b, c)) for a, b, c in zip(starts, shared, lengths, strict=True)]
    sizes = [len(tokens) for tokens in prompts]

    prompt_rows = _arranged(prompts, [[]] * num_prompts, sizes, shape[1], hidden_size)
    answer_rows = _arranged(answers, [[p] for p in prompt_of.tolist()], sizes, shape[1], hidden_size)
    attended_rows = [list(dict.fromkeys(prompt_of[row].tolist())) for row in answer_rows]
    prompt_places, answer_places = _places(prompt_rows, prompts), _places(answer_rows, answers)
    positions, device = _positions(batch), batch["input_ids"].device
    prompt_tokens, answer_tokens = _grid(prompt_rows, prompts, device), _grid(answer_rows, answers, device)
    numbers = [np.full(len(tokens), p) for p, tokens in enumerate(prompts)]
    prompt_numbers = [np.full(len(tokens), p) for p, tokens in zip(prompt_of, answers, strict=True)]

    places = np.full(shape.numel(), prompt_tokens.numel() + answer_tokens.numel())
    for e, (start, prompt) in enumerate(zip(starts, prompt_of, strict=True)):
        places[start : start + shared[e]] = prompt_places[prompt]
        places[answers[e]] = prompt_tokens.numel() + answer_places[e]
    return Layout(
        prompt_tokens=prompt_tokens,
        prompts=_rows(prompt_rows, prompts, positions, device),
        one_a_row=all(len(row) <= 1 for row in prompt_rows),
        answer_tokens=answer_tokens,
        answers=_rows(answer_rows, answers, positions, device),
        answer_prompts=_grid(answer_rows, prompt_numbers, device, fill=-1),
        attended=PromptTokens(
            places=_grid(attended_rows, prompt_places, device),
            prompts=_grid(attended_rows, numbers, device, fill=-2),
            positions=_grid(attended_rows, [positions[tokens] for tokens in prompts], device),
        ),
        places=torch.from_numpy(places.reshape(shape)).to(device),
    )


def _positions(batch: Batch) -> Numbers:
    """Position of each token in its example, (N,)."""
    rows, width = batch["input_ids"].shape
    if "position_ids" not in batch:
        return np.tile(np.arange(width), rows)
    given: Numbers = batch["position_ids"].expand(rows, width).flatten().cpu().numpy()
    return given


def _arranged(
    parts: Sequence[Numbers], needs: Sequence[list[int]], sizes: Sequence[int], width: int, hidden_size: int
) -> list[list[int]]:
    """Put parts into rows, in the way that costs least of a few.

    A position costs what its linear layers do, about 24 D² operations a layer, and 4 D for each key.
    """
    lengths = [len(part) for part in parts]
    total, longest = sum(lengths), max(max(lengths), 1)
    tries = min(8, max(3, _TRIED // len(parts)))
    widths = [int(w) for w in np.linspace(longest, max(longest, 2 * width), tries)]
    # In as many rows of equal length, with some room, for parts do not fill rows wholly.
    even = [max(longest, int(_ROOM * total / -(-total // w))) for w in widths if total]
    limits = product(sorted({width, *widths, *even}), (width, 2 * width) if any(needs) else (0,))
    choices = [_filled(lengths, needs, sizes, *limit) for limit in limits]

    def cost(rows: list[list[int]]) -> float:
        own = max(sum(lengths[k] for k in row) for row in rows)
        keys = max(sum(sizes[p] for p in {p for k in row for p in needs[k]}) for row in rows)
        # A prompt alone in its row takes causal attention, which leaves out half of it.
        is_halved = not any(needs) and all(len(row) <= 1 for row in rows)
        return len(rows) * own * (6 * hidden_size + (own / 2 if is_halved else own + keys))

    return min(choices, key=cost)


def _filled(
    lengths: Sequence[int], needs: Sequence[list[int]], sizes: Sequence[int], width: int, keys: int
) -> list[list[int]]:
    """First-fit decreasing, into rows of at most ``width`` tokens whose prompts have at most ``keys`` together."""
    rows: list[list[int]] = []
    attended: list[set[int]] = []
    used: list[tuple[int, int]] = []
    for part in sorted((k for k, length in enumerate(lengths) if length), key=lambda k: -lengths[k]):
        for i, (own, others) in enumerate(used):
            if own + lengths[part] > width:
                continue
            more = sum(sizes[p] for p in needs[part] if p not in attended[i])
            if others + more <= keys:
                break
        else:
            i, own, others, more = len(rows), 0, 0, sum(sizes[p] for p in needs[part])
            rows.append([])
            attended.append(set())
            used.append((0, 0))
        rows[i].append(part)
        attended[i].update(needs[part])
        used[i] = own + lengths[part], others + more
    # There is always a pass, for ranks that share a sharded model make the same passes.
    return rows or [[]]


def _width(rows: Sequence[Sequence[int]], parts: Sequence[Numbers]) -> int:
    """Columns that rows of these parts need, at least one."""
    return max(1, max(sum(len(parts[k]) for k in row) for row in rows))


def _grid(rows: Sequence[Sequence[int]], values: Sequence[Numbers], device: torch.device, *, fill: int = 0) -> Tensor:
    """The values of each row's parts, one after the other."""
    grid = np.full((len(rows), _width(rows, values)), fill)
    for r, row in enumerate(rows):
        if row:
            joined = np.concatenate([values[k] for k in row])
            grid[r, : len(joined)] = joined
    return torch.from_numpy(grid).to(device)


def _places(rows: Sequence[Sequence[int]], parts: Sequence[Numbers]) -> list[Numbers]:
    """Where the tokens of each part stand in the grid of these rows, counted row by row."""
    width = _width(rows, parts)
    found = [np.arange(0) for _ in parts]
    for r, row in enumerate(rows):
        start = r * width
        for k in row:
            found[k] = np.arange(start, start + len(parts[k]))
            start += len(parts[k])
    return found


def _rows(rows: Sequence[Sequence[int]], parts: Sequence[Numbers], positions: Numbers, device: torch.device) -> Rows:
    numbers = [np.full(len(part), k) for k, part in enumerate(parts)]
    at = [positions[part] for part in parts]
    return Rows(_grid(rows, numbers, device, fill=-1), _grid(rows, at, device))
