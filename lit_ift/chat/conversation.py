"""What a chat template renders: messages, and which of them are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict


class Message(TypedDict):
    """One turn. Keys that are not listed here reach the chat template as they are; those set to None are dropped."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation, with at least one assistant turn to train on unless it is a mere prompt.

    Args:
        messages: the turns, in order; the first one is never the assistant's.
        tools: declarations of the functions the assistant may call, as the chat template takes them.
        num_prompt_messages: assistant turns before this index are context, not targets.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None
    num_prompt_messages: int = 0

    @property
    def target_turns(self) -> list[int]:
        """Indices of the assistant turns that are trained on."""
        first = self.num_prompt_messages
        return [i for i, m in enumerate(self.messages) if i >= first and m["role"] == "assistant"]

    @property
    def is_prompt(self) -> bool:
        """Whether all of it is for the model to answer, and nothing to train on."""
        return self.num_prompt_messages == len(self.messages)
