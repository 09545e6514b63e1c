"""A packed batch gives each example the loss and the gradient that it has alone."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rounding import CLOSE32
from tiny import CONFIGS, QUIET_TRAINER, VOCABULARY_SIZE, tiny_model, tiny_tokenizer
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.errors import UserError
from lit_ift.modules import CausalLMModule, IFTModule, SFTModule
from lit_ift.modules.optim import ConstantSchedule
from lit_ift.modules.packed import unpacked

OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: SGD(params, lr=0.02),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}


class LastTokens(CausalLMModule):
    """A user's objective that cares where in its example a token stands, and overrides nothing else."""

    def per_example_loss(self, nll: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weight = torch.arange(nll.shape[1], dtype=nll.dtype) * mask
        return (nll * weight).sum(-1) / mask.sum(-1).clamp(min=1), {"positions": weight.sum(-1)}


def model_of(name: str, **changes: Any) -> Any:
    # Gemma 2 caps attention logits, which sdpa cannot.
    implementation = "eager" if name == "gemma2" else "sdpa"
    # A low mean squared activation makes float32 norms inside transformers imprecise.
    return tiny_model(name, **{"attn_implementation": implementation, "dtype": torch.float64, **changes})


def example(length: int, targets: int, seed: int, row_id: str = "") -> Example:
    draw = random.Random(f"{length}/{targets}/{seed}")
    ids = [draw.randrange(3, VOCABULARY_SIZE) for _ in range(length)]
    return Example(ids, [IGNORE_INDEX] * (length - targets) + ids[length - targets :], row_id or f"f:{seed}")


def two_turns(length: int, seed: int) -> Example:
    whole = example(length, length - 2, seed)
    labels = [IGNORE_INDEX if 5 <= k < 8 else label for k, label in enumerate(whole.labels)]
    return Example(whole.input_ids, labels, f"f:{seed}")


TWIN = example(6, 3, 3)
BATCHES = {
    "mixed": [
        example(7, 4, 0),
        example(13, 9, 1),
        example(3, 1, 2),  # one target
        TWIN,
        TWIN,  # equal content
        two_turns(14, 4),
        example(5, 5, 5),  # trained from its first token on
    ],
    "tiny": [example(2 + i % 3, 1, i) for i in range(20)] + [example(12, 3, 99)],
    "one": [example(9, 4, 0)],
    "dummy": [example(9, 4, 0), example(5, 3, 1).as_dummy(), example(4, 3, 2)],
}


def packed(examples: list[Example], **options: Any) -> dict[str, Any]:
    return dict(collate_packed(examples, pad_token_id=2, **options))


def padded(examples: list[Example]) -> dict[str, Any]:
    return dict(collate(examples, pad_token_id=2))


def gradient(module: CausalLMModule, value: Tensor) -> Tensor:
    trained = [p for p in module.model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(value, trained, retain_graph=True, allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(trained, parts, strict=True)]
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


def assert_equal_to_alone(
    module: CausalLMModule, examples: list[Example], batch: dict[str, Any], *, each: bool
) -> None:
    losses, metrics = module.example_losses(batch)
    weights = module.example_weights(batch)
    assert losses.shape == weights.shape == (len(examples),)
    bound = CLOSE32 if losses.dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-9}
    total: Any = 0
    for i, one in enumerate(examples):
        alone = padded([one])
        expected, expected_metrics = module.example_losses(alone)
        assert weights[i] == module.example_weights(alone)[0]
        torch.testing.assert_close(losses[i], expected[0], **bound)
        for name, values in expected_metrics.items():
            torch.testing.assert_close(metrics[name][i], values[0], **bound)
        total = total + expected.sum()
        if each and one.num_targets:
            assert relative_error(gradient(module, losses[i]), gradient(module, expected[0])) < bound["rtol"]
    assert relative_error(gradient(module, losses.sum()), gradient(module, total)) < bound["rtol"]


@pytest.mark.slow
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("module_class", [SFTModule, IFTModule, LastTokens])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_losses_and_gradient_as_alone(name: str, module_class: type, one_row: bool) -> None:
    module = module_class(model_of(name))
    batch = packed(BATCHES["mixed"], one_row=one_row)
    assert batch["input_ids"].shape[0] == (1 if one_row else 4)
    module.check_batch(batch)
    assert_equal_to_alone(module, BATCHES["mixed"], batch, each=False)


@pytest.mark.slow
@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_same_gradient_of_each_example(name: str, rows: str) -> None:
    changes = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]} if name == "gemma3" else {}
    module = IFTModule(model_of(name, **changes), lam=0.3, gamma=0.9)
    assert_equal_to_alone(module, BATCHES[rows], packed(BATCHES[rows], pad_to_multiple_of=4), each=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lam": 0.0, "gamma": 0.95},
        {"lam": 0.5, "gamma": 0.0},
        {"lam": 0.5, "side": "right"},
        {"lam": 0.2, "side": "right", "norm": "l2", "source": "logps"},
        {"lam": 0.2, "norm": "softmax"},
        {"lam": 0.2, "norm": "log", "source": "mask", "reduction": "token"},
        {"lam": 0.4, "prediction": "top-k", "top_k": 3, "detach_weights": True},
        {"lam": 0.4, "detach_input_embeddings": False, "gradient_checkpointing": True},
    ],
)
def test_propagation_stops_at_the_borders(options: dict[str, Any]) -> None:
    module = IFTModule(model_of("llama"), **options)
    for rows in ("mixed", "tiny"):
        assert_equal_to_alone(module, BATCHES[rows], packed(BATCHES[rows]), each=False)


@pytest.mark.parametrize("module_class", [SFTModule, IFTModule])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_single_precision(name: str, module_class: type) -> None:
    module = module_class(model_of(name, dtype=torch.float32))
    assert_equal_to_alone(module, BATCHES["mixed"], packed(BATCHES["mixed"]), each=False)


def test_counts_rows_and_names() -> None:
    examples = BATCHES["dummy"]
    module = SFTModule(model_of("llama"), reduction="token")
    batch, plain = packed(examples, pad_to_multiple_of=5), padded(examples)
    assert batch["input_ids"].shape[0] < len(examples)
    assert module.num_tokens(batch) == module.num_tokens(plain) == 9 + 5 + 4
    assert module.example_weights(batch).tolist() == [4, 0, 3]
    rows = unpacked(batch)
    assert unpacked(plain) is plain
    assert rows["row_ids"] == ["f:0", "", "f:2"]
    assert torch.equal(rows["attention_mask"], plain["attention_mask"])
    assert torch.equal(rows["labels"], plain["labels"])
    assert torch.equal(rows["input_ids"], plain["input_ids"] * plain["attention_mask"])


def test_predict_answers_packed_rows() -> None:
    module = SFTModule(model_of("llama"), generation={"max_new_tokens": 3})
    module.tokenizer = tiny_tokenizer()
    prompt = Example([5, 6, 7], [IGNORE_INDEX] * 3, "f:9")
    examples = [*BATCHES["dummy"], prompt]
    expected = module.predict_step(padded(examples), 0)
    assert [row["row_id"] for row in expected] == ["f:0", "f:2", "f:9"]
    assert module.predict_step(packed(examples), 0) == expected


class Steps(Callback):
    """Loss and gradient norm of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.seen):
            names = ("train/loss", "train/grad_norm", "train/token_accuracy")
            self.seen.append(tuple(float(trainer.callback_metrics[name]) for name in names))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("module_class", [SFTModule, IFTModule])
def test_training_takes_the_same_steps(module_class: type, tmp_path: Path) -> None:
    examples = [example(3 + (7 * i) % 11, 1 + i % 3, i) for i in range(46)]
    batches = [examples[k : k + 5] for k in range(0, 46, 5)]

    def fit(collator: Any) -> tuple[list[tuple[float, float, float]], Any]:
        steps = Steps()
        trainer = L.Trainer(
            default_root_dir=tmp_path,
            **QUIET_TRAINER,
            accumulate_grad_batches=2,
            max_steps=5,
            callbacks=[steps],
        )
        loader = DataLoader([collator(rows) for rows in batches], batch_size=None)
        trainer.fit(module_class(model_of("llama"), **OPTIONS), loader, loader)
        return steps.seen, {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}

    assert sum(packed(rows)["input_ids"].numel() for rows in batches) < 0.9 * sum(
        padded(rows)["input_ids"].numel() for rows in batches
    )
    (steps, evaluated), (expected_steps, expected) = fit(packed), fit(padded)
    assert len(steps) == 5
    assert len({round(loss, 4) for loss, _, _ in steps}) == 5
    for ours, theirs in zip(steps, expected_steps, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert evaluated == pytest.approx(expected, rel=1e-6)


def test_refuses_packed_batches_that_would_mix_examples() -> None:
    module = SFTModule(model_of("llama"))
    good = packed(BATCHES["mixed"])
    module.check_batch(good)
    for changes, message in (
        ({"attention_mask": torch.ones_like(good["input_ids"])}, "would let examples see each other"),
        ({"labels": good["input_ids"]}, "first token of a packed example has a label"),
    ):
        with pytest.raises(UserError, match=message):
            module.check_batch({**good, **changes})
    with pytest.raises(UserError, match="no position_ids that restart"):
        module.check_batch({k: v for k, v in good.items() if k != "position_ids"})


def test_the_model_is_proven_once_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("lit_ift.modules.base.check_packing", calls.append)
    module = SFTModule(model_of("llama"))
    module.validation_step(padded(BATCHES["one"]), 0)
    assert not calls
    # A resumed epoch does not begin with batch 0.
    fresh = SFTModule(model_of("llama"))
    for batch_idx in (3, 4):
        fresh.validation_step(packed(BATCHES["one"]), batch_idx)
    assert calls == [fresh.model]
