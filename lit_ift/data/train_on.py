"""Which part of a conversation is trained on, where it is not every turn of the assistant."""

from dataclasses import replace
from typing import Literal

from lit_ift.chat.conversation import Conversation
from lit_ift.data.rows import Row, Side
from lit_ift.errors import UserError

TrainOn = Literal["assistant", "last", "completion", "all"]
"""All turns of the assistant; its last turn alone (LLaMA-Factory's ``mask_history``); all tokens from the start of the
completion on, or of the last turn where no column says what the completion is (TRL's ``completion_only_loss``); or all
tokens but the first one (``train_on_prompt`` of LLaMA-Factory, ``train_on_inputs`` elsewhere). The last two train white
space after an answer, too. Of a raw text all is trained in any case."""


def with_targets(row: Row, train_on: TrainOn) -> Row:
    """`row` with the targets that `train_on` asks for. Mere prompts have none, and texts are all targets.

    Raises:
        UserError: the row is a judged one, whose targets are what was judged.
    """
    if train_on == "assistant":
        return row
    if row.kind != "instruction":
        raise UserError(
            f"{row.origin}: data.train_on={train_on} is for instruction rows, but the rows are {row.kind} data, of "
            "which the judged answer is trained on. Leave data.train_on out."
        )
    return replace(row, sides={name: _with_targets(side, train_on) for name, side in row.sides.items()})


def _with_targets(side: Side, train_on: TrainOn) -> Side:
    if not isinstance(side, Conversation) or side.is_prompt:
        return side
    if train_on == "all":
        return replace(side, trains_all=True)
    answers = [i for i, message in enumerate(side.messages) if message["role"] == "assistant"]
    if train_on == "completion":
        own = [i for i in answers if i >= side.num_prompt_messages] if side.num_prompt_messages else answers[-1:]
        return replace(side, trains_all=True, first_answer=own[0])
    return replace(side, untrained=side.untrained.union(answers[:-1]))
