"""Prompts from any data format: what stands before the first answer of a row."""

from dataclasses import dataclass
from typing import Any

from lit_ift.chat.conversation import Conversation
from lit_ift.data.encode_sides import SideEncoder
from lit_ift.data.parse.row_parser import RowParser
from lit_ift.data.read.sources import Source
from lit_ift.data.rows import Document, Row
from lit_ift.errors import RowError, UserError
from lit_ift.generation.opened import check_chat_template


@dataclass(frozen=True)
class Prompt:
    """What a model is to answer, or a text that it is to go on from.

    Attributes:
        row_id: where it came from.
        side: a conversation that is all prompt, or a document.
        expected: the row's own answer; None if it has none.
    """

    row_id: str
    side: Conversation | Document
    expected: str | None

    @property
    def question(self) -> str:
        """The last turn, or the text."""
        return self.side.text if isinstance(self.side, Document) else self.side.messages[-1]["content"]


def read_prompts(source: Source) -> list[Prompt]:
    """The prompt of each row, with answers or without; of a pair, the chosen answer is the expected one.

    Raises:
        RowError: a row cannot be read, or has no prompt.
        UserError: there are no rows.
    """
    parser = RowParser(layout=source.layout, columns=source.columns, score_range=source.score_range, needs_answer=False)
    prompts = [prompt_of(parser.parse(record)) for record in source.records("test")]
    if not prompts:
        raise UserError(f"{source.path}: there are no rows, so there is nothing to answer.")
    return prompts


def prompt_of(row: Row) -> Prompt:
    """What stands before the first answer of a row; of a pair, the chosen answer is the expected one."""
    side = next(iter(row.sides.values()))
    if isinstance(side, Document) or side.is_prompt:
        return Prompt(row.origin, side, None)
    first = side.target_turns[0] if side.target_turns else side.num_prompt_messages
    prompt = Conversation(side.messages[:first], tools=side.tools, num_prompt_messages=first)
    return Prompt(row.origin, prompt, side.messages[first]["content"])


def encode_prompts(prompts: list[Prompt], tokenizer: Any, *, max_length: int | None) -> list[list[int]]:
    """Token ids of prompts, by the chat template as in training, or of texts.

    Args:
        prompts: of one source.
        tokenizer: of the model.
        max_length: longest prompt that leaves room for an answer [tokens]; None for any.

    Raises:
        RowError: a prompt cannot be written by the template, or is too long.
        UserError: there is no chat template.
    """
    if not all(isinstance(prompt.side, Document) for prompt in prompts):
        check_chat_template(tokenizer)
    encoder = SideEncoder(tokenizer, needs_answer=False)
    (examples,) = encoder.encode_batches([[(prompt.side, prompt.row_id) for prompt in prompts]])
    ids = []
    for example in examples:
        if isinstance(example, RowError):
            raise example
        length = len(example.input_ids)
        if max_length is not None and length > max_length:
            problem = f"the prompt has {length} tokens, and {max_length} leave the model room for an answer"
            raise RowError(example.row_id, "", problem, "Shorten it, leave it out, or lower --max_new_tokens")
        if not length:
            raise RowError(example.row_id, "", "the prompt has no tokens", "Fill it in or leave it out")
        ids.append(example.input_ids)
    return ids
