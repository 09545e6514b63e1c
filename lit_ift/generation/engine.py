"""What an engine of generation is told and gives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lit_ift.errors import UserError, told_as
from lit_ift.options import NonNegative, PositiveInt, Share, check_options

MAX_NEW_TOKENS: Final = 512
"""Longest answer where nothing is said of it [tokens]."""


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are generated.

    Args:
        max_new_tokens: longest answer [tokens].
        temperature: 0 takes the likeliest token each time (greedy); above 0 tokens are drawn.
        top_p: draw from the smallest set of tokens that holds this probability; None leaves it to the model's
            generation config, as for ``top_k``.
        top_k: draw from so many of the likeliest tokens.
        num_answers: answers to each prompt.
        batch_size: answers generated at a time.
        seed: of the draws.

    Raises:
        UserError: a value is out of range, or has no effect with the others.
    """

    max_new_tokens: PositiveInt = MAX_NEW_TOKENS
    temperature: NonNegative = 0.0
    top_p: Share | None = None
    top_k: PositiveInt | None = None
    num_answers: PositiveInt = 1
    batch_size: PositiveInt = 32
    seed: int = 0

    def __post_init__(self) -> None:
        with told_as(ValueError, lambda error: UserError(f"{error}.")):
            check_options(GenerationOptions, vars(self))
        if self.is_sampled:
            return
        if idle := [name for name in ("top_p", "top_k") if getattr(self, name) is not None]:
            raise UserError(
                f"{idle[0]} has no effect on greedy answers: set a temperature above 0, or leave {idle[0]} out."
            )
        if self.num_answers > 1:
            raise UserError(
                f"num_answers={self.num_answers} greedy answers would be the same. Set a temperature above 0, such as "
                "--temperature 0.7."
            )

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0

    @property
    def sampling(self) -> dict[str, Any]:
        """What was said of sampling, by the names that transformers and vLLM share; empty for greedy answers."""
        if not self.is_sampled:
            return {}
        named = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {name: value for name, value in named.items() if value is not None}


class Engine(Protocol):
    """Continues prompts. Two calls with the same arguments give the same answers."""

    def generate(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> Iterator[tuple[int, list[str]]]:
        """Continue each prompt.

        Args:
            prompts: token ids, each ending where the answer begins.
            options: how.

        Yields:
            Index of a prompt and its ``options.num_answers`` answers without special tokens, in any order of prompts.
        """
        ...
