"""Answers from a causal language model, in padded batches."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

import torch

from lit_ift.distributed.shard import compute_device, in_root, is_sharded, most_on_any_rank
from lit_ift.errors import UserError, did_you_mean
from lit_ift.models.balancing import asks_for_router_logits
from lit_ift.models.eval_mode import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS: Final = 128
"""Longest answer where nothing is said of it [tokens]."""

SAMPLING_OPTIONS: Final = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Options of ``model.generate`` that only sampling heeds."""

PLAIN: Final[dict[str, Any]] = {
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")),
    **{"num_beams": 1, "early_stopping": False, "length_penalty": 1.0, "repetition_penalty": 1.0},
    **{"no_repeat_ngram_size": 0, "min_length": 0},
    **dict.fromkeys(("num_beam_groups", "diversity_penalty", "penalty_alpha", "dola_layers", "guidance_scale")),
    **dict.fromkeys(("constraints", "force_words_ids", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
    **dict.fromkeys(("sequence_bias", "watermarking_config", "token_healing", "renormalize_logits", "min_new_tokens")),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "max_time")),
}
"""Options of ``model.generate`` that have a say in which tokens an answer has, with values that leave them as the model
finds them likeliest."""

ONE_ANSWER: Final[dict[str, Any]] = {"num_return_sequences": 1, "return_dict_in_generate": False}
"""What ``model.generate`` is to return."""


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

    Greedy takes the likeliest token each time, whatever the model's own generation config asks for (repetition penalty,
    beams, tokens never to use, ...): of that, only the tokens and strings that end an answer stand. With
    ``do_sample=True``, what ``options`` leave out is as the model's generation config has it.

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
    options = _options(options)
    if asks_for_router_logits(model):  # transformers would make a loss of them, which it cannot token by token.
        options["output_router_logits"] = False
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
                tokenizer=tokenizer,  # For strings that end an answer.
                **options,
            )
            output = in_root(model, generate)
        texts = tokenizer.batch_decode(output[:, width - len(begin) :], skip_special_tokens=True)
        yield from zip(indices, texts[: len(indices)], strict=True)


def check_generation(options: Mapping[str, Any]) -> None:
    """Check options of `generate_answers` before there is a model, so that a misspelt one does not end a long run.

    Raises:
        UserError: a name looks misspelt, an option needs sampling, which is off, or asks for several answers.
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
    if several := [name for name, value in ONE_ANSWER.items() if options.get(name) not in (None, value)]:
        raise UserError(f"generation: {several[0]}={options[several[0]]} asks for more than one answer. Leave it out.")
    idle = [name for name in SAMPLING_OPTIONS if options.get(name) is not None]
    if idle and not options.get("do_sample"):
        raise UserError(
            f"generation: {', '.join(idle)} has no effect without do_sample: true. Set that, or leave "
            f"{'it' if len(idle) == 1 else 'them'} out for greedy answers."
        )


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options for ``model.generate``, in which what is not given is greedy."""
    from transformers import GenerationConfig

    known = vars(GenerationConfig())
    plain = {} if given.get("do_sample") else {name: value for name, value in PLAIN.items() if name in known}
    return {"do_sample": False, **plain, **ONE_ANSWER, **given}


def _prior_ids(tokenizer: "PreTrainedTokenizerBase", prior: str) -> list[int]:
    """Token ids of what every answer begins with, at least one."""
    if not isinstance(prior, str):
        raise UserError(f"prior={prior!r} is not text. Put it into quotes, or leave it out.")
    ids: list[int] = tokenizer.encode(prior, add_special_tokens=False)
    if not ids:
        raise UserError(f"prior={prior!r} has no tokens. Give the words that answers begin with, or leave it out.")
    return ids
