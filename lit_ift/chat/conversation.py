"""What a chat template renders: messages, and which of them are trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NotRequired, TypedDict

from lit_ift.errors import RowError, RowReason

LOSS: Final = "loss"
"""Key of a turn that says whether to train on it, or how much its tokens count."""

THINKING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that hold its thinking apart from its text."""

THINK, END_THINK = "<think>", "</think>"

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

TEMPLATED_REMEDY: Final = (
    "The chat template is applied here: give the bare question and the bare answer, without turn marks and control "
    "tokens"
)


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
        first_answer: index of an assistant turn before whose text nothing is trained on; only with `trains_all`.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None
    num_prompt_messages: int = 0
    untrained: frozenset[int] = frozenset()
    weights: Mapping[int, float] = field(default_factory=dict)
    trains_all: bool = False
    first_answer: int | None = None

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

        These are the targets; with `trains_all` those that are none, that count for more or less than others, or that
        come first.
        """
        if not self.trains_all:
            return self.target_turns
        first = () if self.first_answer is None else (self.first_answer,)
        asked = self.untrained.union(self.weights, first)
        return [i for i in sorted(asked) if self.messages[i]["role"] == "assistant"]

    @property
    def is_prompt(self) -> bool:
        """Whether all of it is for the model to answer, and nothing to train on."""
        return self.num_prompt_messages == len(self.messages)


def split_thinking(content: str) -> tuple[str, str]:
    """What stands through the last ``</think>`` of an assistant's text, and the rest."""
    head, found, answer = content.rpartition(END_THINK)
    return (head + found, answer) if found else ("", content)


class EncodingError(Exception):
    """Why a conversation cannot be encoded. The encoder adds which row it is.

    Args:
        field: the part at fault, such as ``messages[1].content``.
        problem: what is wrong with it.
        remedy: what the user can do about it.
        reason: the kind of fault, for counting.
    """

    def __init__(
        self,
        field: str,
        problem: str,
        remedy: str = "",
        reason: RowReason = "template",
        kind: type[RowError] = RowError,
    ) -> None:
        super().__init__(problem)
        self._field, self._problem, self._reason, self._kind = field, problem, reason, kind
        self._remedy = remedy or "Mend the row or choose another data.chat_template"

    def of_row(self, origin: str) -> RowError:
        """The error of the row that came from there."""
        return self._kind(origin, self._field, self._problem, self._remedy, reason=self._reason)


def check_has_target(conversation: Conversation) -> None:
    """Do nothing if something of a conversation can be trained on, or it is a mere prompt.

    Raises:
        EncodingError: all its answers are marked as not to be trained on, or the prompt holds the beginning of one.
    """
    if conversation.is_prompt:
        return
    if not conversation.trains_all and not conversation.target_turns:
        remedy = "Leave the row out, or mark an answer as one to train on (loss: true)"
        raise EncodingError("messages", "every answer in it is marked as not to be trained on", remedy, "no_target")
    messages, start = conversation.messages, conversation.num_prompt_messages
    if start and messages[start - 1]["role"] == messages[start]["role"] == "assistant":
        problem = "the prompt ends with an answer that is begun, and the template would close it before the rest"
        remedy = "Write the whole answer as the completion, or end the prompt with a user or tool turn"
        raise EncodingError(f"messages[{start - 1}]", problem, remedy, "field")


class TemplatedPromptError(RowError):
    """A row whose prompt ends as a chat template's generation prompt does."""


def heads_of(headers: Iterable[str]) -> tuple[str, ...]:
    """How a prompt ends that was templated: the common ways, and those of the template with these headers."""
    own = {header.strip() for header in headers}
    return tuple(dict.fromkeys([*COMMON_HEADS, *sorted(head for head in own if len(head) >= SHORTEST_HEAD)]))


def check_not_templated(conversation: Conversation, heads: tuple[str, ...]) -> None:
    """Do nothing if no question ends in one of `heads`; one that only quotes them may.

    Raises:
        EncodingError: one does; it becomes a `TemplatedPromptError`.
    """
    messages = conversation.messages
    for index, message in enumerate(messages):
        is_last = index + 1 == len(messages)
        is_answered = conversation.is_prompt if is_last else messages[index + 1]["role"] == "assistant"
        if message["role"] == "user" and is_answered and (text := message["content"].rstrip()).endswith(heads):
            head = next(head for head in heads if text.endswith(head))
            problem = f"ends in {head!r}, which a chat template writes: the prompt is templated already"
            raise EncodingError(f"messages[{index}].content", problem, TEMPLATED_REMEDY, "field", TemplatedPromptError)
