"""Prompts to which a chat template was applied already, which would be templated a second time."""

from collections.abc import Iterable
from typing import Final

from lit_ift.chat.conversation import Conversation
from lit_ift.errors import RowError

COMMON_HEADS: Final = (
    "<|im_start|>assistant",
    "<|start_header_id|>assistant<|end_header_id|>",
    "<|assistant|>",
    "<start_of_turn>model",
    "[/INST]",
)
"""How the generation prompts of ChatML, Llama 3, Zephyr, Gemma and Mistral end."""

SHORTEST_HEAD: Final = 4
"""Characters from which on a generation prompt cannot be the end of an ordinary text."""

REMEDY: Final = (
    "The chat template is applied here: give the bare question and the bare answer, without turn marks and control "
    "tokens"
)


class TemplatedPromptError(RowError):
    """A row whose prompt ends as a chat template's generation prompt does."""


def heads_of(headers: Iterable[str]) -> tuple[str, ...]:
    """How a prompt ends that was templated: the common ways, and those of the template with these headers."""
    own = {header.strip() for header in headers}
    return tuple(dict.fromkeys([*COMMON_HEADS, *sorted(head for head in own if len(head) >= SHORTEST_HEAD)]))


def check_not_templated(conversation: Conversation, heads: tuple[str, ...], origin: str) -> None:
    """Do nothing if no question ends in one of `heads`; one that only quotes them may.

    Raises:
        TemplatedPromptError: one does.
    """
    messages = conversation.messages
    for index, message in enumerate(messages):
        is_last = index + 1 == len(messages)
        is_answered = conversation.is_prompt if is_last else messages[index + 1]["role"] == "assistant"
        if message["role"] != "user" or not is_answered:
            continue
        text = message["content"].rstrip()
        head = next((head for head in heads if text.endswith(head)), None)
        if head is not None:
            raise TemplatedPromptError(
                origin,
                f"messages[{index}].content",
                f"ends in {head!r}, which a chat template writes: the prompt is templated already",
                REMEDY,
            )
