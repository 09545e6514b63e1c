"""Predictions that are kept instead of made anew in every step, so that IFT needs one forward pass a step.

Shapes: B examples, N trained positions of a batch, K trained positions of the training rows.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_ift.data.rows import ROW_KINDS
from lit_ift.errors import UserError
from lit_ift.losses.logprobs import Select
from lit_ift.modules.kept_arrays import KeptArray, datasets_of, default_folder, policy_key, weights_digest
from lit_ift.modules.kept_predictions import UNKNOWN, KeptPredictions
from lit_ift.modules.row_passes import pass_over_answers
from lit_ift.modules.stepping import Batch

if TYPE_CHECKING:
    from lit_ift.modules.base import CausalLMModule

Reuse = Literal["initial", "epoch"]

KEY: Final = "kept_predictions"
"""Where a checkpoint has them."""

REMEDY: Final = "Use an InstructionDataModule, or leave model.reuse_predictions out."


class ReusedPredictions:
    """Gives training batches the predictions that were made for their rows before.

    ``initial``: the policy that training begins from predicts all training rows once, before training. The predictions
    are kept on disk beside the reference's numbers, under a key of weights, rows and the way of predicting.

    ``epoch``: in the first epoch predictions are made as usual, and kept. In each later one, those of the epoch before
    are read, and what the pass with gradient predicts (from the mixed input) is kept for the next. Rows that an epoch
    did not have are predicted at its end. A checkpoint holds them, so that a resumed run goes on exactly.

    Args:
        kind: which of the two.
        predict: chooses a token from each row of logits, (n, V) -> (n,).
        name: of the way of predicting, for the key.
    """

    def __init__(self, kind: Reuse, predict: Select, name: str) -> None:
        self.kind, self.predict, self.name = kind, predict, name
        self._old: KeptPredictions | None = None
        self._new: KeptPredictions | None = None
        self._rows: list[int] = []
        self._dataset: Any = None
        self._epoch = 0
        self._restored: Mapping[str, Any] | None = None

    def prepare(self, module: "CausalLMModule") -> None:
        """Make ready for training, once the model is loaded; nothing else reuses predictions.

        Raises:
            UserError: there are no training rows to tell apart, or there is no second epoch.
        """
        if module._trainer is None or module.trainer.state.fn != "fit":
            return
        self._dataset = datasets_of(module, ("train",), f"reuse_predictions={self.kind}", REMEDY)["train"]
        self._epoch = 0
        stored = self._dataset.rows
        self._rows = np.flatnonzero(stored.kinds == ROW_KINDS.index("instruction")).tolist()
        self._old = KeptPredictions(stored.row_ids, stored.target_counts)
        if self.kind == "initial":
            self._predict_initially(module, self._old)
            return
        if module.trainer.max_epochs == 1:
            raise _one_epoch()
        self._new = self._old.blank()

    def begin(self, module: "CausalLMModule") -> None:
        """Turn to the next epoch where one begins; called before each training batch, on all ranks.

        Raises:
            UserError: training ends with its first epoch.
        """
        if self._new is None:
            return
        if self._restored is not None:
            self._restore(self._new)
        trainer = module.trainer
        if trainer.global_step == 0 and trainer.max_epochs is not None and trainer.max_epochs < 0:
            per_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
            if module.total_steps() <= per_epoch:
                raise _one_epoch()
        if trainer.current_epoch == self._epoch:
            return
        self._new.tokens = self._merged(module, self._new)
        missing = sorted(set(self._new.unknown_rows()) & set(self._rows))
        if missing:
            self._predict(module, missing, self._new)
            self._new.tokens = self._merged(module, self._new)
        self._old, self._new = self._new, self._new.blank()
        self._epoch = trainer.current_epoch

    def of(self, module: "CausalLMModule", batch: Batch) -> Tensor | None:
        """The kept predictions for a training batch, by example, (N,); None where they are to be made as usual."""
        if self._old is None or not module.trainer.training or (self._new is not None and self._epoch == 0):
            return None
        return self._old.of(_row_ids(batch)).to(batch["input_ids"].device)

    def keep(self, module: "CausalLMModule", batch: Batch, predictions: Tensor) -> None:
        """Take what was predicted in a training step for the next epoch, by example, (N,)."""
        if self._new is not None and module.trainer.training:
            self._new.keep(_row_ids(batch), predictions)

    @property
    def keeps(self) -> bool:
        """Whether it wants to know what a training step predicts."""
        return self._new is not None

    def save(self, module: "CausalLMModule", checkpoint: dict[str, Any]) -> None:
        """Put what a resumed run needs into a checkpoint; all ranks call it."""
        if self._old is None or self._new is None:
            return
        new = self._merged(module, self._new)
        checkpoint[KEY] = {
            "epoch": self._epoch,
            "old": torch.from_numpy(self._old.tokens.copy()),
            "new": torch.from_numpy(new),
        }

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up what `save` has put there, once training begins.

        Raises:
            UserError: the checkpoint is of a run without.
        """
        if self.kind == "epoch":
            if KEY not in checkpoint:
                raise UserError(
                    "The checkpoint has no predictions of its epoch, which reuse_predictions=epoch goes on with. "
                    "Resume with the options of its run, or begin a new run from its weights."
                )
            self._restored = checkpoint[KEY]

    def _restore(self, new: KeptPredictions) -> None:
        assert self._old is not None
        assert self._restored is not None
        self._epoch = self._restored["epoch"]
        self._old.tokens = self._restored["old"].numpy().copy()
        new.tokens = self._restored["new"].numpy().copy()
        self._restored = None

    def _predict_initially(self, module: "CausalLMModule", kept: KeptPredictions) -> None:
        digest = module.trainer.strategy.broadcast(weights_digest(module.model))
        key = {
            "predict": self.name,
            "rows": self._dataset.content_digest,
            "weights": digest,
            **policy_key(module, sys.modules[__name__]),
        }
        array = KeptArray(default_folder(module, "predictions"), "predictions of the initial policy", key)
        tokens = array.on_all_ranks(module, kept.tokens.shape)
        if tokens is None:
            began = time.monotonic()
            self._predict(module, self._rows, kept)
            kept.tokens = self._merged(module, kept)
            rank_zero_info(
                f"Predicted {int((kept.tokens != UNKNOWN).sum()):,} tokens of the training rows in "
                f"{time.monotonic() - began:.1f} s, once, before training."
            )
            if module.trainer.is_global_zero:
                array.write(kept.tokens)
        else:
            kept.tokens = tokens.copy()

    def _predict(self, module: "CausalLMModule", rows: Sequence[int], kept: KeptPredictions) -> None:
        """Predict rows with the policy as it is, each rank its share."""
        row_of = {int(self._dataset.answer_offsets[row]): row for row in rows}

        def take(answers: Sequence[int], predictions: Tensor) -> None:
            kept.keep([kept.row_ids[row_of[answer]] for answer in answers], predictions)

        compute = partial(self._predictions, module)
        pass_over_answers(module, self._dataset, list(row_of), compute, take, progress="predict train")

    def _predictions(self, module: "CausalLMModule", batch: Batch) -> Tensor:
        hidden = module.hidden_states(module.embed(batch["input_ids"]), batch)
        return module.score(hidden, batch, select=self.predict).predictions

    def _merged(self, module: "CausalLMModule", kept: KeptPredictions) -> Any:
        """What all ranks know together; of a row that several ranks had, the larger ids."""
        strategy = module.trainer.strategy
        if module.trainer.world_size == 1:
            return kept.tokens.copy()
        tokens = torch.from_numpy(kept.tokens.astype(np.int64)).to(strategy.root_device)
        merged = strategy.reduce(tokens, reduce_op="max")
        assert isinstance(merged, Tensor)
        return merged.cpu().numpy().astype(np.int32)


def _row_ids(batch: Batch) -> Sequence[str]:
    if "row_ids" not in batch:
        raise UserError(f"model.reuse_predictions finds rows by their row_ids, which the batch lacks. {REMEDY}")
    ids: Sequence[str] = batch["row_ids"]
    return ids


def _one_epoch() -> UserError:
    return UserError(
        "reuse_predictions=epoch reads the predictions of the epoch before, but training ends with the first one. Set "
        "trainer.max_epochs to at least 2, or reuse_predictions=initial."
    )
