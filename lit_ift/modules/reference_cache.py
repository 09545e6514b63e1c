"""Log-probabilities of all answers under the initial policy, computed once and kept on disk."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_ift.data.modules.conversation import ConversationDataModule
from lit_ift.data.modules.feedback import FeedbackDataModule
from lit_ift.errors import UserError
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.kept_arrays import KeptArray, datasets_of, default_folder, policy_key, weights_digest
from lit_ift.modules.row_passes import pass_over_answers

Logps = npt.NDArray[np.floating[Any]]

SPLITS_OF: Final = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""Splits that are scored for what a Trainer does; a prediction compares with nothing."""

REMEDY: Final = "Use a FeedbackDataModule, or set reference=adapter (with LoRA) or reference=model."


class CachedReference:
    """Scores the answers of a data module's splits with the policy as it is, or finds the scores on disk.

    Args:
        folder: of the files; ``reference`` in the data module's folder of tokenized data by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self._initial_weights: str | None = None
        self._given: dict[str, Any] = {}

    def prepare(self, module: CausalLMModule) -> None:
        """Give every data set of this run its ``reference_logps``.

        The first call remembers the weights. A later one, after training, takes what the first policy said from
        disk, and refuses to let the trained one speak for it.

        Raises:
            UserError: there is no data module with data sets, or a split would have to be scored with a policy that has
                been trained meanwhile.
        """
        trainer = module.trainer
        splits = SPLITS_OF.get(str(trainer.state.fn.value) if trainer.state.fn else "", ())
        missing = {
            split: dataset
            for split, dataset in _datasets(module, splits).items()
            if dataset.reference_logps is None or dataset.reference_logps is not self._given.get(split)
        }
        if not missing:
            return
        now = trainer.strategy.broadcast(weights_digest(module.model))
        if self._initial_weights is None:
            self._initial_weights = now
        shared = {"weights": self._initial_weights, **policy_key(module, sys.modules[__name__])}
        folder = self.folder or default_folder(module, "reference")
        for split, dataset in missing.items():
            what = "the reference policy's log-probabilities"
            kept = KeptArray(folder, what, {"rows": dataset.content_digest, **shared})
            logps = kept.on_all_ranks(module, (dataset.num_answers,))
            if logps is None:
                if now != self._initial_weights:
                    raise UserError(
                        f"The {split} answers were not scored before training, and the policy is another one by now. "
                        "Evaluate in a run of its own that starts from the initial model and restores the checkpoint "
                        "(ckpt_path), or set reference=adapter (with LoRA) or reference=model."
                    )
                logps = _score(module, dataset, split)
                if trainer.is_global_zero:
                    kept.write(logps)
            dataset.reference_logps = logps
            self._given[split] = dataset.reference_logps  # As it keeps them, perhaps in another dtype.


def _datasets(module: CausalLMModule, splits: Sequence[str]) -> dict[str, Any]:
    data: Any = getattr(module.trainer, "datamodule", None)
    if isinstance(data, ConversationDataModule) and not isinstance(
        data, FeedbackDataModule
    ):  # It has no place for them.
        raise UserError(f"reference=cached cannot score the rows of {type(data).__name__}. {REMEDY}")
    return datasets_of(module, splits, "reference=cached", REMEDY)


def _score(module: CausalLMModule, dataset: Any, split: str) -> Logps:
    """Log-probability of every answer, each rank computing its share, (A,) on all ranks."""
    trainer = module.trainer
    rank_zero_info(f"Scoring {dataset.num_answers} {split} answers with the initial policy.")
    sums = torch.zeros(dataset.num_answers, dtype=torch.float64)
    dtypes: set[torch.dtype] = set()

    def take(answers: Sequence[int], nll: torch.Tensor) -> None:
        sums[list(answers)] = -nll.double().sum(-1).cpu()
        dtypes.add(nll.dtype)

    pass_over_answers(
        module, dataset, range(dataset.num_answers), partial(_nll, module), take, progress=f"reference {split}"
    )
    if trainer.world_size > 1:
        sums = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum").cpu()
    logps: Logps = sums.numpy().astype(np.float64 if torch.float64 in dtypes else np.float32)
    bad = np.flatnonzero(~np.isfinite(logps))
    if len(bad):
        rows = np.searchsorted(dataset.answer_offsets, bad[:8], side="right") - 1
        names = sorted({dataset[[row]][0].row_id for row in rows.tolist()})
        raise UserError(
            f"The initial policy gives {len(bad)} {split} answers a log-probability that is not finite, in the rows "
            f"{', '.join(names)}. Look at them, or compute in another precision (trainer.precision)."
        )
    return logps


def _nll(module: CausalLMModule, batch: dict[str, Any]) -> torch.Tensor:
    """Negative log-likelihoods of the trained tokens, one row an answer, (A, T-1)."""
    hidden = module.hidden_states(module.embed(batch["input_ids"]), batch)
    return module.score(hidden, batch, select=None).nll
