"""SFTMix: supervised fine-tuning with a mixup of confident and unconfident examples.

Shapes: B examples, K pairs.
"""

import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ift.errors import RowError, UserError
from lit_ift.losses.logprobs import chunk_size_for, target_mask
from lit_ift.losses.masking import target_counts
from lit_ift.losses.sft import sft_loss
from lit_ift.losses.sftmix import confidence_pairs, mean_by_pair, mixup_loss, paired_positions
from lit_ift.modules.base import CausalLMModule, token_accuracy
from lit_ift.modules.packed import is_packed, unpacked
from lit_ift.modules.stepping import Batch, ExampleLosses
from lit_ift.modules.window import Weighted
from lit_ift.options import NonNegative, Positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SFTMixModule(CausalLMModule):
    """SFTMix (arXiv:2410.05248): the loss of SFT, and μ times a mixup of confident and unconfident examples.

    The more confident half of a micro-batch is paired with the less confident half. A pair's final hidden states are
    interpolated token by token by λ ~ Beta(α, α), up to the end of the shorter answer, and must predict both
    answers' tokens in that proportion: see ``lit_ift.losses.sftmix``.

    A pair's mixup loss is the mean over its positions. Each of its two examples gets half of it, so over a batch
    ``sum_b loss_b = sum_b nll_b + μ * sum_pairs mixup``: where all examples have a partner and count the same, the
    mean loss is ``mean nll + μ/2 * mean mixup``. Pairs are made within a micro-batch, so how a step is split into
    micro-batches matters, unlike for other objectives; a micro-batch of one row has no pair.

    The mixup regularises training only: ``val/loss`` is that of SFT. ``mu=0`` is SFT.

    Logged besides the loss: ``token_accuracy``, and in training ``mixup_loss``, the mean over pairs.

    Use:
        Like SFT, with a regulariser that mixes examples of a micro-batch. To follow the paper, record the confidence in
        a run of SFT first.

    Args:
        model: see ``CausalLMModule``, as for every argument not listed here.
        confidence: a file of ``row_id`` and ``confidence`` that ``ConfidenceRecorder`` has written in a run of SFT on
            the same data: the negative perplexity, averaged over its epochs, as in the paper. ``online`` ranks
            the examples of a micro-batch by their present loss instead, which needs no run beforehand; the paper
            does not do this.
        mu: weight of the mixup loss, at least 0.
        alpha: of the Beta distribution, above 0. The smaller, the nearer λ is to 0 or 1.
        mixup_seed: seed of λ. A draw depends on it, on the optimizer step and on the micro-batch alone, so a resumed
            run repeats it.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        confidence: str = "online",
        mu: NonNegative = 0.2,
        alpha: Positive = 0.5,
        mixup_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.confidence = confidence
        self.mu = mu
        self.alpha = alpha
        self.mixup_seed = mixup_seed
        self._confidence_of: dict[str, float] | None = None
        self._micro_batch = 0

    def prepare(self) -> None:
        super().prepare()
        if self.confidence != "online" and self._confidence_of is None:
            self._confidence_of = read_confidence(self.confidence)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._micro_batch = batch_idx

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if self.mu and self._mixes() and int((self.example_weights(batch) > 0).sum()) < 2:
            rank_zero_warn("A micro-batch of fewer than 2 rows has no pair to mix: raise data.batch_size.")

    def example_losses(self, batch: Batch) -> ExampleLosses:
        hidden = self.hidden_states(self.embed(batch["input_ids"]), batch)
        scores = self.score(hidden, batch)
        losses, _ = sft_loss(scores.nll, scores.mask)
        metrics: dict[str, Tensor | Weighted] = {
            "token_accuracy": token_accuracy(scores.predictions, unpacked(batch)["labels"])
        }
        if self.mu and self._mixes():
            trained = target_counts(scores.mask) > 0
            pairs = confidence_pairs(self._confidence(batch, losses.detach()), trained)
            values = self._mixup(hidden, batch, pairs, len(losses))
            # Half of a pair's loss to each of its two examples.
            halves = values.repeat_interleave(2) / 2
            losses = losses + self.mu * torch.zeros_like(losses).index_put((pairs.flatten(),), halves)
            paired = torch.zeros_like(losses).index_fill(0, pairs.flatten(), 1.0)
            of_pair = torch.zeros_like(losses).index_put((pairs.flatten(),), values.repeat_interleave(2))
            metrics["mixup_loss"] = Weighted(of_pair.detach(), paired.detach())
        return losses, metrics

    def _mixes(self) -> bool:
        """True in training, and where the module is used without a Trainer."""
        return self._trainer is None or self.trainer.training

    def _confidence(self, batch: Batch, nll: Tensor) -> Tensor:
        """(B,); larger is more confident. The perplexity is monotonic in the mean nll, so this ranks alike."""
        if self.confidence == "online":
            return -nll
        if self._confidence_of is None:  # Used without a Trainer.
            self._confidence_of = read_confidence(self.confidence)
        row_ids = batch.get("row_ids") or []
        # A row without an id only keeps ranks in step, and has no trained token.
        missing = [row_id for row_id in row_ids if row_id and row_id not in self._confidence_of]
        if missing or len(row_ids) != len(nll):
            what = f"no confidence of row {missing[0]!r}" if missing else "nothing to look up: the batch has no row_ids"
            raise UserError(
                f"{self.confidence} has {what}. Record it on the same data with ConfidenceRecorder, "
                "or use confidence='online'."
            )
        values = [self._confidence_of.get(row_id, 0.0) for row_id in row_ids]
        return torch.tensor(values, dtype=torch.float64 if nll.device.type != "mps" else torch.float32).to(nll.device)

    def _lam(self, num_pairs: int) -> list[float]:
        """λ of each pair of this micro-batch, the same on every rank."""
        step = 0 if self._trainer is None else self.trainer.global_step
        # A generator of its own leaves the global random state alone.
        draw = random.Random(f"{self.mixup_seed}/{step}/{self._micro_batch}")
        return [draw.betavariate(self.alpha, self.alpha) for _ in range(num_pairs)]

    def _mixup(self, hidden: Tensor, batch: Batch, pairs: Tensor, num_examples: int) -> Tensor:
        """Mean mixup loss of each pair, (K,)."""
        mask = target_mask(batch["labels"])
        if is_packed(batch):
            owners = batch["sequence_ids"][:, 1:][mask]
        else:
            owners = torch.arange(num_examples, device=mask.device)[:, None].expand_as(mask)[mask]
        positions, pair_of, lengths = paired_positions(owners, pairs, num_examples)
        states, targets = hidden[:, :-1][mask][positions], batch["labels"][:, 1:][mask][positions]
        precision = torch.promote_types(hidden.dtype, torch.float32)
        lam = torch.tensor(self._lam(len(pairs)), dtype=precision, device=hidden.device)
        losses = mixup_loss(
            states[:, 0],
            states[:, 1],
            targets[:, 0],
            targets[:, 1],
            lam[pair_of],
            self.head,
            chunk_size=chunk_size_for(self.model.get_output_embeddings().weight.shape[0]),
        )
        return mean_by_pair(losses, pair_of, lengths)


def read_confidence(path: str | Path) -> dict[str, float]:
    """Confidence of each row, by its id, from the JSON Lines that ``ConfidenceRecorder`` writes.

    Raises:
        UserError: the file cannot be read, or is empty.
        RowError: a line is not ``{"row_id": text, "confidence": finite number}``, or names a row again.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"confidence={str(path)!r} cannot be read ({error}). Give a file that ConfidenceRecorder has written, or "
            "'online'."
        ) from error
    remedy = 'A line must read {"row_id": "file.jsonl:1", "confidence": -3.2}, as ConfidenceRecorder writes it'
    found: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        origin = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RowError(origin, "", f"not valid JSON ({error})", remedy, reason="unreadable") from error
        if not isinstance(row, dict):
            raise RowError(origin, "", f"{row!r} is not an object", remedy, reason="layout")
        row_id, value = row.get("row_id"), row.get("confidence")
        if not isinstance(row_id, str):
            raise RowError(origin, "row_id", f"{row_id!r} is not text", remedy)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RowError(origin, "confidence", f"{value!r} is not a finite number", remedy)
        if row_id in found:
            raise RowError(origin, "row_id", f"{row_id!r} stands in the file twice", "Leave one of its lines out.")
        found[row_id] = float(value)
    if not found:
        raise UserError(f"{path} is empty. Record it with ConfidenceRecorder, or use confidence='online'.")
    return found
