"""Hidden states of a batch whose prompts are read once.

Shapes: B rows of T tokens as the batch has them, D hidden size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_ift.models.shared_prompts import read_answers, read_prompts
from lit_ift.modules.prompt_layout import layout_of
from lit_ift.modules.stepping import Batch

if TYPE_CHECKING:
    from lit_ift.modules.language_model import LanguageModelModule


class SharedPrompts:
    """The prompts of a batch, read; any number of passes over what follows them may come after.

    Args:
        module: whose model reads.
        embeddings: of the batch's tokens, (B, T, D).
        batch: padded or packed.
    """

    def __init__(self, module: "LanguageModelModule", embeddings: Tensor, batch: Batch) -> None:
        self._model = module.model
        self._layout = layout = layout_of(batch, embeddings.shape[-1])
        self._hidden, self._kept = read_prompts(
            self._model, _taken(embeddings, layout.prompt_tokens), layout.prompts, one_a_row=layout.one_a_row
        )

    def hidden_states(self, embeddings: Tensor) -> Tensor:
        """Final hidden states, zeros for tokens that nothing is asked of, (B, T, D) -> (B, T, D).

        Gradient flows to ``embeddings`` at answers only; at prompts it flows to those that were read before.
        """
        layout = self._layout
        answers = read_answers(
            self._model,
            _taken(embeddings, layout.answer_tokens),
            layout.answers,
            layout.answer_prompts,
            self._kept,
            layout.attended,
        )
        nothing = answers.new_zeros(1, answers.shape[-1])
        return _taken(torch.cat([self._hidden.flatten(0, 1), answers.flatten(0, 1), nothing])[None], layout.places)


def _taken(states: Tensor, places: Tensor) -> Tensor:
    """States at places that are counted row by row, (·, ·, D) -> (*places, D)."""
    return states.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, states.shape[-1])
