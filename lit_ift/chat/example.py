"""What an encoder makes of a conversation."""

from dataclasses import dataclass, replace

from lit_ift.constants import IGNORE_INDEX


@dataclass(frozen=True)
class Example:
    """One tokenized conversation.

    Args:
        input_ids: token ids, length T.
        labels: aligned with `input_ids`, not shifted; IGNORE_INDEX where a token is not a target.
        row_id: where the row came from; empty for a dummy row that counts for nothing.
        num_cut: tokens that were cut off to fit the maximum length.
        num_split_starts: assistant turns whose first token began before the turn. That token merges prompt and
            answer, is no target, and does not occur when the model is prompted.
        num_lookalikes: control tokens that stood in the text of a message and were encoded as text.
        num_dropped_thoughts: earlier turns whose thinking the chat template leaves out.
        weights: how much each token's loss counts, aligned with `labels`; None where all count 1.
    """

    input_ids: list[int]
    labels: list[int]
    row_id: str
    num_cut: int = 0
    num_split_starts: int = 0
    num_lookalikes: int = 0
    num_dropped_thoughts: int = 0
    weights: list[float] | None = None

    @property
    def num_targets(self) -> int:
        """Labels that a causal model is trained on; position 0 has no prediction."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX) - (self.labels[:1] not in ([], [IGNORE_INDEX]))

    def as_dummy(self) -> "Example":
        """The same tokens with nothing to train on."""
        return replace(self, labels=[IGNORE_INDEX] * len(self.labels), row_id="")
