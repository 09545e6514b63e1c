"""What a dry step says, against numbers derived by hand and against torch's tracker of a real run."""

from typing import Any

import lightning as L
import pytest
import torch
from tiny import QUIET_TRAINER, tiny_batch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_ift import IFTModule, PreferenceModule, SFTMixModule, SFTModule
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate_feedback
from lit_ift.data.rows import EncodedRow
from lit_ift.models.source import ModelSource
from lit_ift.modules.base import CausalLMModule
from lit_ift.planning.dry_step import StepCost, step_cost

HIDDEN, INNER, VOCABULARY, KEYS = 32, 48, 259, 16
OF_LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INNER
"""Weights of a layer's seven matrices."""


def configuration(layers: int = 3, *, hidden: int = HIDDEN) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )


def cost(make: Any, batch: dict[str, Any], layers: int = 3, **options: Any) -> StepCost:
    source = ModelSource("x", None, "x", config=configuration(layers))
    return step_cost(make, source, batch, **{"precision": "32-true", "accumulates": False, **options})


def even_batch(rows: int = 2, length: int = 16, trained: int = 6) -> dict[str, Any]:
    labels = torch.ones(rows, length, dtype=torch.long)
    labels[:, : length - trained] = IGNORE_INDEX
    ids = torch.ones_like(labels)
    return {"input_ids": ids, "labels": labels, "attention_mask": ids.clone(), "row_ids": [str(i) for i in range(rows)]}


def pairs(rows: int = 2, length: int = 16) -> dict[str, Any]:
    example = Example([1] * length, [IGNORE_INDEX] * 6 + [1] * (length - 6), "a row")
    made = [EncodedRow("preference", str(i), {"chosen": example, "rejected": example}) for i in range(rows)]
    return {**collate_feedback(made, pad_token_id=0), "reference_logps": torch.zeros(2 * rows)}


@pytest.fixture(scope="module")
def of_sft() -> StepCost:
    return cost(lambda: SFTModule("x"), even_batch())


def test_weights_gradients_and_moments_by_hand(of_sft: StepCost) -> None:
    number = VOCABULARY * HIDDEN + 3 * (OF_LAYER + 2 * HIDDEN) + HIDDEN
    assert (of_sft.parameters, of_sft.trained, of_sft.num_layers) == (number, number, 3)
    assert of_sft.layer_parameters == OF_LAYER + 2 * HIDDEN
    update = of_sft.memory["update"]
    assert update["gradients"] == 4 * number
    tensors = 3 * 9 + 2  # Seven matrices and two norms a layer; embedding and last norm. Each has a step in float32.
    assert update["optimizer"] == 8 * number + 4 * tensors
    frequencies = 2 * 4 * 8  # Of rotary positions, twice: as they are and as they were.
    assert update["weights"] == 4 * number + frequencies


def test_flops_by_hand(of_sft: StepCost) -> None:
    tokens, scored = 2 * 16, 2 * 6
    # The backward pass costs twice the forward pass; the head is computed at trained positions alone.
    assert of_sft.work.matmul == 6 * (tokens * 3 * OF_LAYER + scored * VOCABULARY * HIDDEN)
    scores = 2 * 16 * 16 * HIDDEN  # Of a product of all queries and keys of both rows.
    # Two products forward; five backward, of which one is made again.
    assert of_sft.work.attention == 3 * 7 * 2 * scores
    assert of_sft.tokens == tokens
    assert of_sft.mean_square == 16


def test_ift_takes_four_thirds_of_it() -> None:
    of_sft, of_ift, shared = (
        cost(make, even_batch(), 1).work.matmul
        for make in (lambda: SFTModule("x"), lambda: IFTModule("x"), lambda: IFTModule("x", share_prompts=True))
    )
    assert of_ift - of_sft == 2 * (32 * OF_LAYER + 12 * VOCABULARY * HIDDEN)  # One more forward pass.
    assert of_sft < shared < of_ift


def test_sftmix_mixes_pairs_of_rows(of_sft: StepCost) -> None:
    mixed = cost(lambda: SFTMixModule("x"), even_batch())
    # Six positions of the one pair go through the head once more, there and back.
    assert mixed.work.matmul - of_sft.work.matmul == 6 * 6 * VOCABULARY * HIDDEN


def test_checkpointing_and_half_precision_take_less(of_sft: StepCost) -> None:
    whole = of_sft.peak["activations"]
    assert cost(lambda: SFTModule("x", gradient_checkpointing=True), even_batch()).peak["activations"] < whole / 2
    half = cost(lambda: SFTModule("x"), even_batch(), precision="bf16-true")
    assert half.memory["update"]["gradients"] == of_sft.memory["update"]["gradients"] / 2


class WithoutModules:
    """In the place of the tracker's account by modules, which fails at parts without gradient, as under LoRA."""

    parents: frozenset[str] = frozenset()
    is_bw = False

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...

    def register_user_hooks(self, *_: Any) -> None: ...

    def clear_user_hooks(self) -> None: ...


class Tracked(L.Callback):
    """Has torch's tracker follow the second step."""

    peak = 0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.tracker = MemTracker()
            self.tracker._mod_tracker = WithoutModules()
            tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
            self.tracker.track_external(module, *trainer.optimizers, *tensors)
            self.tracker.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        if hasattr(self, "tracker") and not self.peak:
            self.tracker.__exit__(None, None, None)
            self.peak = self.tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def tracked_peak(module: CausalLMModule, batch: dict[str, Any]) -> int:
    callback = Tracked()
    trainer = L.Trainer(max_steps=2, callbacks=[callback], **QUIET_TRAINER)
    trainer.fit(module, DataLoader([batch] * 2, batch_size=None))
    return callback.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("sft", {}),
        ("sft", {"lora": {"r": 4}}),
        ("sft", {"gradient_checkpointing": True}),
        ("dpo", {"reference": "model"}),
        ("dpo", {"reference": "adapter", "lora": {"r": 4}}),
    ],
)
def test_peak_is_that_of_the_tracker(objective: str, options: dict[str, Any]) -> None:
    batch = tiny_batch(4, 32) if objective == "sft" else pairs(2, 32)

    def make(model: Any = "x") -> CausalLMModule:
        return (SFTModule if objective == "sft" else PreferenceModule)(model, **options)

    planned = sum(cost(make, batch).peak.values())
    real = AutoModelForCausalLM.from_config(configuration(), dtype=torch.float32)
    assert planned == pytest.approx(tracked_peak(make(real), batch), rel=0.15)
