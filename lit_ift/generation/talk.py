"""A conversation with a model: its history, answers as they come, and the same question to the base model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import TextStreamer

from lit_ift.chat.conversation import Message
from lit_ift.chat.encoder import ConversationEncoder
from lit_ift.errors import UserError
from lit_ift.generation.engine import GenerationOptions
from lit_ift.generation.opened import OpenedModel, check_chat_template, room_for_prompt, stop_ids_of
from lit_ift.generation.transformers_engine import TransformersEngine

Write = Callable[[str], None]
"""Takes the next piece of an answer."""


@dataclass(frozen=True)
class Reply:
    """An answer, and what is to be told of it.

    Attributes:
        text: the answer.
        forgotten: messages that no longer fitted into the context and were dropped.
        is_cut: whether it reached the longest length of an answer.
        is_stopped: whether the user stopped it.
    """

    text: str
    forgotten: int = 0
    is_cut: bool = False
    is_stopped: bool = False


class Talk:
    """A conversation. What fails leaves it as it was.

    Args:
        opened: the model.
        options: of generation; the seed moves on with each answer.
        system: what the system message says; None for none.

    Raises:
        UserError: the model has no chat template, its context is too small, or the template takes no system message.
    """

    def __init__(self, opened: OpenedModel, options: GenerationOptions, system: str | None = None) -> None:
        check_chat_template(opened.tokenizer)
        self.opened = opened
        self.options = options
        self.room = room_for_prompt(opened.model, options.max_new_tokens)
        self._encoder = ConversationEncoder(opened.tokenizer)
        self.messages: list[Message] = []
        self.system: str | None = None
        self.set_system(system)

    def set_system(self, system: str | None) -> None:
        """Change the system message, or leave it out; the history stays.

        Raises:
            UserError: the chat template takes none.
        """
        if system is not None:
            self._encoder.encode_prompt([{"role": "system", "content": system}, {"role": "user", "content": "?"}])
        self.system = system

    def reset(self) -> None:
        """Forget the history, but not the system message."""
        self.messages = []

    def ask(self, question: str, write: Write) -> Reply:
        """Answer a question in the conversation so far.

        If the history is too long for the model's context, its oldest questions are dropped with their answers.
        Ctrl-C ends the answer. The part that was written so far stays in the conversation.

        Raises:
            UserError: the question alone is too long, or the chat template cannot write the conversation.
        """
        messages, ids = self._fitted([*self.messages, {"role": "user", "content": question}])
        forgotten = len(self.messages) + 1 - len(messages)
        stream = _Stream(self.opened.tokenizer, write)
        try:
            text = self._answer(self.opened.model, ids, streamer=stream)
            last = stream.ids[-1] if stream.ids else None
            is_full = len(stream.ids) >= self.options.max_new_tokens and last not in stop_ids_of(self.opened.model)
            reply = Reply(text, forgotten, is_cut=is_full)
        except KeyboardInterrupt:
            reply = Reply(stream.text, forgotten, is_stopped=True)
        self.messages = [*messages, {"role": "assistant", "content": reply.text}]
        return reply

    def compare(self, question: str | None = None) -> tuple[str, str, str]:
        """The answers of the base model and of the trained one to the same prompt; the conversation stays as it is.

        Args:
            question: to ask in the conversation so far; None for its last question.

        Returns:
            The question, the base model's answer and the trained model's.

        Raises:
            UserError: nothing was asked yet, or the base model cannot be loaded.
        """
        asked = self.messages[:-1]
        if question is not None:
            asked = [*self.messages, {"role": "user", "content": question}]
        if not asked:
            raise UserError("Nothing was asked yet: ask first, or write the question behind /compare.")
        _, ids = self._fitted(asked)
        with self.opened.base() as base:
            before = self._answer(base, ids)
        return asked[-1]["content"], before, self._answer(self.opened.model, ids)

    def _answer(self, model: Any, ids: Sequence[int], **more: Any) -> str:
        options = replace(self.options, seed=self.options.seed + len(self.messages))
        ((_, (text,)),) = TransformersEngine(model, self.opened.tokenizer).generate([ids], options, **more)
        return text

    def _fitted(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        """The newest messages that fit into the context, from a question on, and their ids."""
        while True:
            ids = self._encoder.encode_prompt([*self._system_message(), *messages])
            if self.room is None or len(ids) <= self.room:
                return messages, ids
            if len(messages) <= 2:
                raise UserError(
                    f"The question is too long: the prompt has {len(ids)} tokens, and {self.room} leave room for an "
                    f"answer of {self.options.max_new_tokens}. Shorten it, or start with less --max_new_tokens."
                )
            messages = messages[2:]

    def _system_message(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]


class _Stream(TextStreamer):  # type: ignore[misc]
    """Hands on an answer's text as soon as its words are whole.

    Attributes:
        ids: tokens of the answer.
        text: what was handed on.
    """

    def __init__(self, tokenizer: Any, write: Write) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self.text = ""
        self._write = write

    def put(self, value: Any) -> None:
        """Take the prompt first, then a token at a time."""
        if not self.next_tokens_are_prompt:
            self.ids += value.flatten().tolist()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the next words."""
        self.text += text
        self._write(text)
