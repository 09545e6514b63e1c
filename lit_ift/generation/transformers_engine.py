"""Generation by transformers, with the model in this process."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lit_ift.generation.engine import GenerationOptions
from lit_ift.modules.generate import generate_answers


class TransformersEngine:
    """Answers in padded batches.

    Args:
        model: a Hugging Face model, or a ``PeftModel``.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def generate(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, **more: Any
    ) -> Iterator[tuple[int, list[str]]]:
        """See `Engine`; sampling sets torch's seed. What else there is goes to ``model.generate``."""
        if options.is_sampled:
            torch.manual_seed(options.seed)
            more |= {"do_sample": True, **options.sampling}
        answers: dict[int, list[str]] = defaultdict(list)
        stream = generate_answers(
            self.model,
            self.tokenizer,
            [prompt for prompt in prompts for _ in range(options.num_answers)],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            **more,
        )
        for position, text in stream:
            index = position // options.num_answers
            answers[index].append(text)
            if len(answers[index]) == options.num_answers:
                yield index, answers.pop(index)
