"""What a chat template renders: messages, and which of them are trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NotRequired, TypedDict

from lit_ift.errors import RowError

LOSS: Final = "loss"
"""Key of a turn that says whether to train on it, or how much its tokens count."""

THINKING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that hold its thinking apart from its text."""

THINK, END_THINK = "<think>", "</think>"


class Message(TypedDict):
    """One turn. Keys that are not listed here reach the chat template as they are; those set to None are dropped."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    loss: NotRequired[bool | float]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation, with at least one assistant turn to train on unless it is a mere prompt.

    Args:
        messages: the turns, in order; the first one is never the assistant's. One whose ``loss`` is false is shown to
            the model, but not trained on; one whose ``loss`` is a number counts for as much. The key itself is taken
            out.
        tools: declarations of the functions the assistant may call, as the chat template takes them.
        num_prompt_messages: assistant turns before this index are context, not targets.
        untrained: indices of turns that are not trained on, wherever they stand.
        weights: by index, how much the tokens of a turn count, where that is not 1; above 0.
        trains_all: whether everything is trained on, prompts and what the template writes too, but for untrained turns.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None
    num_prompt_messages: int = 0
    untrained: frozenset[int] = frozenset()
    weights: Mapping[int, float] = field(default_factory=dict)
    trains_all: bool = False

    def __post_init__(self) -> None:
        flags = [message.get(LOSS) for message in self.messages]
        if any(flag is not None for flag in flags):
            off = {index for index, flag in enumerate(flags) if flag is not None and not flag}
            weights = {index: float(flag) for index, flag in enumerate(flags) if flag and flag != 1}
            bare = [{key: value for key, value in message.items() if key != LOSS} for message in self.messages]
            object.__setattr__(self, "untrained", self.untrained | off)
            object.__setattr__(self, "weights", {**self.weights, **weights})
            object.__setattr__(self, "messages", bare)

    @property
    def target_turns(self) -> list[int]:
        """Indices of the assistant turns that are trained on."""
        first = self.num_prompt_messages
        return [
            i
            for i, m in enumerate(self.messages)
            if i >= first and m["role"] == "assistant" and i not in self.untrained
        ]

    @property
    def located_turns(self) -> list[int]:
        """Indices of the assistant turns whose tokens must be found.

        These are the targets; with `trains_all` those that are none, or count for more or less than others.
        """
        if not self.trains_all:
            return self.target_turns
        return [i for i in sorted(self.untrained | self.weights.keys()) if self.messages[i]["role"] == "assistant"]

    @property
    def is_prompt(self) -> bool:
        """Whether all of it is for the model to answer, and nothing to train on."""
        return self.num_prompt_messages == len(self.messages)


def split_thinking(content: str) -> tuple[str, str]:
    """What stands through the last ``</think>`` of an assistant's text, and the rest."""
    head, found, answer = content.rpartition(END_THINK)
    return (head + found, answer) if found else ("", content)


def check_has_target(conversation: Conversation, origin: str) -> None:
    """Do nothing if something of a conversation can be trained on, or it is a mere prompt.

    Raises:
        RowError: all its answers are marked as not to be trained on, or the prompt holds the beginning of the answer.
    """
    if conversation.is_prompt:
        return
    if not conversation.trains_all and not conversation.target_turns:
        raise RowError(
            origin,
            "messages",
            "every answer in it is marked as not to be trained on",
            "Leave the row out, or mark an answer as one to train on (loss: true)",
            reason="no_target",
        )
    messages, start = conversation.messages, conversation.num_prompt_messages
    if start and messages[start - 1]["role"] == messages[start]["role"] == "assistant":
        raise RowError(
            origin,
            f"messages[{start - 1}]",
            "the prompt ends with an answer that is begun, and the template would close it before the rest",
            "Write the whole answer as the completion, or end the prompt with a user or tool turn",
        )
