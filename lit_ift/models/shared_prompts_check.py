"""Whether a model reads a prompt once for several answers, or several times one, as it reads them whole."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from lit_ift.errors import UserError
from lit_ift.models.balancing import asks_for_router_logits
from lit_ift.models.eval_mode import evaluating
from lit_ift.models.head import base_model
from lit_ift.models.packing_check import hidden_of, is_close
from lit_ift.models.shared_prompts import IMPLEMENTATIONS, PromptTokens, Rows, read_answers, read_prompts, unknown_kinds

_PROMPTS: Final = ((0, 5), (1, 1), (2, 7))
"""Number and tokens of each prompt."""
_ANSWERS: Final = ((0, 3), (0, 6), (1, 9), (2, 1), (2, 4))
"""Prompt and tokens of each answer."""
_PROMPT_ROWS: Final = ((0, 1), (2,))
_ANSWER_ROWS: Final = ((4, 0), (2,), (1, 3))
"""Numbers of the prompts and answers in each row."""
_WINDOW: Final = 4
"""Less than a prompt, so that the few tokens show what a window does."""


def check_shared_prompts(model: Any) -> None:
    """Check on a few tokens that answers to shared prompts have the hidden states that they have alone.

    Also that changing one prompt and its answers leaves the others as they were, which rounding cannot hide. Sliding
    windows are made short for the time of the check. It runs under the caller's autocast. Training mode of every module
    and all random states are as before.

    Args:
        model: with materialised weights; an adapter model is looked into.

    Raises:
        UserError: it does not share prompts, or not exactly.
    """
    inner = base_model(model)
    if (reason := _reason_against(inner)) is not None:
        raise _refusal(inner, reason)
    with evaluating(inner), torch.no_grad(), _short_window(inner.config.get_text_config()):
        try:
            agrees = _agrees(inner)
        except Exception as error:  # An architecture that knows no such caches or masks may fail anywhere.
            raise _refusal(inner, f"it fails where prompts are shared ({type(error).__name__}: {error})") from error
    if not agrees:
        raise _refusal(inner, "its hidden states are not those that it has without")


def _reason_against(inner: Any) -> str | None:
    """What is known without trying."""
    config = inner.config.get_text_config()
    if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
        return "gradient checkpointing forgets the keys and values that answers read: set gradient_checkpointing=false"
    if config._attn_implementation not in IMPLEMENTATIONS:
        return (
            f"attn_implementation={config._attn_implementation!r} takes no mask of any form: set "
            "model.attn_implementation to sdpa or eager"
        )
    if asks_for_router_logits(inner):
        return (
            "the balancing loss of its experts is one of whole rows: set output_router_logits in config.json to false"
        )
    if unknown := unknown_kinds(config):
        return f"it has layers of the kind {', '.join(sorted(unknown))}"
    return None


def _refusal(inner: Any, reason: str) -> UserError:
    return UserError(f"{type(inner).__name__} cannot share prompts: {reason}. Or set model.share_prompts=false.")


@contextmanager
def _short_window(config: Any) -> Iterator[None]:
    window = getattr(config, "sliding_window", None)
    if window is None:
        yield
        return
    config.sliding_window = min(window, _WINDOW)
    try:
        yield
    finally:
        config.sliding_window = window


def _agrees(inner: Any) -> bool:
    embedding = inner.get_input_embeddings()
    vocabulary_size, device = embedding.weight.shape[0], embedding.weight.device
    generator = torch.Generator().manual_seed(0)

    def drawn(length: int) -> Tensor:
        return torch.randint(vocabulary_size, (length,), generator=generator).to(device)

    prompts, answers = [drawn(length) for _, length in _PROMPTS], [drawn(length) for _, length in _ANSWERS]
    whole = [torch.cat([prompts[of], answer]) for (of, _), answer in zip(_ANSWERS, answers, strict=True)]
    alone = [hidden_of(inner, ids[None])[0] for ids in whole]
    shared = _shared(inner, prompts, answers)
    changed = [(ids + (k == 0)) % vocabulary_size for k, ids in enumerate(prompts)]
    others = [(ids + (of == 0)) % vocabulary_size for (of, _), ids in zip(_ANSWERS, answers, strict=True)]
    disturbed = _shared(inner, changed, others)
    # Where no other prompt stands in the row, attention is asked for in another way.
    last = _alone(inner, prompts[_ANSWERS[-1][0]], answers[-1])
    return is_close(last, alone[-1], factor=8) and all(
        is_close(ours, expected, factor=8) and (of == 0 or is_close(after, ours, factor=1))
        for (of, _), ours, after, expected in zip(_ANSWERS, shared, disturbed, alone, strict=True)
    )


def _shared(inner: Any, prompts: Sequence[Tensor], answers: Sequence[Tensor]) -> list[Tensor]:
    """Hidden states of each answer and its prompt, all in the rows above."""
    embed, device = inner.get_input_embeddings(), prompts[0].device
    prompt_rows = _rows(_PROMPT_ROWS, [0] * len(prompts), prompts)
    prompt_hidden, kept = read_prompts(inner, embed(_tokens(_PROMPT_ROWS, prompts)), prompt_rows)
    begins = [len(prompts[of]) for of, _ in _ANSWERS]
    answer_rows = _rows(_ANSWER_ROWS, begins, answers)
    owners = torch.tensor([*(of for of, _ in _ANSWERS), -1], device=device)[answer_rows.sequences]
    # Every row could attend to all prompts: the mask tells.
    places = torch.arange(prompt_rows.sequences.numel(), device=device).expand(len(_ANSWER_ROWS), -1)
    of_prompt = prompt_rows.sequences.flatten()[places]
    attended = PromptTokens(places, of_prompt.masked_fill(of_prompt < 0, -2), prompt_rows.positions.flatten()[places])
    answer_hidden = read_answers(inner, embed(_tokens(_ANSWER_ROWS, answers)), answer_rows, owners, kept, attended)
    return [
        torch.cat([prompt_hidden[prompt_rows.sequences == of], answer_hidden[answer_rows.sequences == k]])
        for k, (of, _) in enumerate(_ANSWERS)
    ]


def _alone(inner: Any, prompt: Tensor, answer: Tensor) -> Tensor:
    """Hidden states of an answer and its prompt, in rows of their own."""
    embed, device = inner.get_input_embeddings(), prompt.device
    zeros = [torch.zeros(1, len(ids), dtype=torch.long, device=device) for ids in (prompt, answer)]
    at = [torch.arange(len(prompt), device=device)[None], torch.arange(len(answer), device=device)[None] + len(prompt)]
    hidden, kept = read_prompts(inner, embed(prompt[None]), Rows(zeros[0], at[0]), one_a_row=True)
    attended = PromptTokens(at[0], zeros[0], at[0])
    after = read_answers(inner, embed(answer[None]), Rows(zeros[1], at[1]), zeros[1], kept, attended)
    return torch.cat([hidden, after], dim=1)[0]


def _tokens(layout: Sequence[Sequence[int]], ids: Sequence[Tensor]) -> Tensor:
    rows = [torch.cat([ids[k] for k in row]) for row in layout]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _rows(layout: Sequence[Sequence[int]], begins: Sequence[int], ids: Sequence[Tensor]) -> Rows:
    numbers = [torch.full_like(part, k) for k, part in enumerate(ids)]
    places = [torch.arange(len(part), device=part.device) + start for part, start in zip(ids, begins, strict=True)]
    of_rows = [torch.cat([numbers[k] for k in row]) for row in layout]
    return Rows(torch.nn.utils.rnn.pad_sequence(of_rows, batch_first=True, padding_value=-1), _tokens(layout, places))
