"""Answers from a causal language model, in padded batches."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

import torch

from lit_ift.distributed.shard import compute_device, in_root, is_sharded, most_on_any_rank
from lit_ift.errors import UserError, did_you_mean
from lit_ift.models.eval_mode import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS: Final = 128
"""Longest answer where nothing is said of it [tokens]."""

SAMPLING_OPTIONS: Final = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Options of ``model.generate`` that only sampling heeds."""


def generate_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 32,
    prior: str | None = None,
    **options: Any,
) -> Iterator[tuple[int, str]]:
    """Continue each prompt, greedily unless ``options`` say otherwise.

    Prompts of similar length share a batch, so answers come in another order than prompts. Ranks that share a sharded
    model must all call this, each with its own prompts if any, and take all answers.

    Args:
        model: the policy; its mode is left as it was found.
        tokenizer: decodes answers; supplies the padding id.
        prompts: token ids, each ending where the answer begins.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts at a time.
        prior: text that every answer begins with, such as the first words of a tuned model's answers (PreTTY,
            arXiv:2404.16766). Tokenized by itself, without special tokens of the tokenizer's own; part of the
            answer, but not of ``max_new_tokens``.
        **options: passed to ``model.generate``, such as ``do_sample=True, temperature=0.7``.

    Yields:
        Index of a prompt and its answer as text, the prior included, special tokens left out.

    Raises:
        ValueError: a prompt is empty, or the tokenizer has neither padding nor end-of-sequence token.
        UserError: ``prior`` is not text, or has no tokens.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt has no tokens")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ValueError("the tokenizer has neither a padding nor an end-of-sequence token")
    begin = [] if prior is None else _prior_ids(tokenizer, prior)
    prompts = [[*prompt, *begin] for prompt in prompts]
    options = {"do_sample": False, **options}
    if not options["do_sample"]:
        # A model's own sampling defaults would only draw warnings here.
        options = {"temperature": None, "top_p": None, "top_k": None, **options}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    device = compute_device(model)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if is_sharded(model):
        # Ranks generate together, each until the last of them is done; one that has no prompt left makes one up.
        options |= {"synced_gpus": True}
        batches += [[]] * (most_on_any_rank(len(batches), device) - len(batches))
    for indices in batches:
        rows = [prompts[i] for i in indices] or [[pad]]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(rows):  # Padding stands on the left, so that answers begin side by side.
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention[row, width - len(prompt) :] = 1
        with evaluating(model), torch.inference_mode():
            generate = partial(
                model.generate,
                input_ids=ids.to(device),
                attention_mask=attention.to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                use_cache=True,
                **options,
            )
            output = in_root(model, generate)
        texts = tokenizer.batch_decode(output[:, width - len(begin) :], skip_special_tokens=True)
        yield from zip(indices, texts[: len(indices)], strict=True)


def check_generation(options: Mapping[str, Any]) -> None:
    """Check options of `generate_answers` before there is a model, so that a misspelt one does not end a long run.

    Raises:
        UserError: a name looks misspelt, or an option needs sampling, which is off.
    """
    if not options:
        return
    from transformers import GenerationConfig, GenerationMixin

    own = [*signature(generate_answers).parameters, *signature(GenerationMixin.generate).parameters]
    known = {*own, *vars(GenerationConfig())}
    for name in options:
        # What is like no name that is known may be meant for the model's own code.
        if name not in known and (hint := did_you_mean(name, known)):
            raise UserError(f"generation has no option {name!r}.{hint}")
    idle = [name for name in SAMPLING_OPTIONS if options.get(name) is not None]
    if idle and not options.get("do_sample"):
        raise UserError(
            f"generation: {', '.join(idle)} has no effect without do_sample: true. Set that, or leave "
            f"{'it' if len(idle) == 1 else 'them'} out for greedy answers."
        )


def _prior_ids(tokenizer: "PreTrainedTokenizerBase", prior: str) -> list[int]:
    """Token ids of what every answer begins with, at least one."""
    if not isinstance(prior, str):
        raise UserError(f"prior={prior!r} is not text. Put it into quotes, or leave it out.")
    ids: list[int] = tokenizer.encode(prior, add_special_tokens=False)
    if not ids:
        raise UserError(f"prior={prior!r} has no tokens. Give the words that answers begin with, or leave it out.")
    return ids
