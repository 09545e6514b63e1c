"""Prompts that are read once give the losses, gradients and metrics of prompts that are read whole each time."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from feedback import dummy, encoded_row, feedback_batch, pairs
from lightning.pytorch.callbacks import Callback
from rounding import CLOSE32
from tiny import CONFIGS, QUIET_TRAINER, VOCABULARY_SIZE, tiny_model
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError
from lit_ift.losses.registry import PairLoss
from lit_ift.modules import IFTModule, PreferenceModule, SFTMixModule, SFTModule, UFTModule
from lit_ift.modules.optim import ConstantSchedule
from lit_ift.modules.prompt_layout import Layout, before_targets, common_to_answers
from lit_ift.modules.window import Weighted

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
# Norms compute in float32, whatever the model's dtype, but for those of GPT-2 and Phi. Where answers share a prompt,
# the gradients of both are added before that rounding instead of after it.
ROUNDED: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-7}


def model_of(name: str = "llama", **changes: Any) -> Any:
    # Gemma 2 caps attention logits, which sdpa cannot.
    implementation = "eager" if name == "gemma2" else "sdpa"
    return tiny_model(name, **{"attn_implementation": implementation, "dtype": torch.float64, **changes})


def bound_of(name: str) -> dict[str, Any]:
    """Of IFT, where the order of sums differs in the rows' own dtype, but for Gemma's embeddings."""
    return ROUNDED if "gemma" in name else EXACT


def ids_of(length: int, seed: int) -> list[int]:
    draw = random.Random(f"{length}/{seed}")
    return [draw.randrange(3, VOCABULARY_SIZE) for _ in range(length)]


def example(prompt: int, targets: int, seed: int, *, tail: int = 0, untrained: tuple[int, ...] = ()) -> Example:
    ids = ids_of(prompt + targets + tail, seed)
    trained = [k for k in range(prompt, prompt + targets) if k not in untrained]
    return Example(ids, [token if k in trained else IGNORE_INDEX for k, token in enumerate(ids)], f"f:{seed}")


ROWS = {
    "mixed": [
        example(7, 4, 0),
        example(1, 12, 1),
        example(11, 1, 2),  # one target: no second pass over it
        example(0, 6, 3),  # trained from its first token on
        example(5, 9, 4, untrained=(7, 8, 9)),  # two turns
        example(3, 4, 5, tail=6),  # what stands after the last target is not read
        example(9, 0, 6),  # no targets: the prompt took all room
        example(4, 5, 7).as_dummy(),
    ],
    "short prompts": [example(1, 3 + i % 4, 10 + i) for i in range(9)],
    "long prompts": [example(12 + i % 5, 1 + i % 3, 20 + i) for i in range(7)],
    "one": [example(6, 5, 30)],
    "no answers": [example(6, 1, 31), example(3, 1, 32)],
    "no targets": [example(6, 0, 33), example(2, 0, 34)],
}


def padded(examples: list[Example]) -> dict[str, Any]:
    return dict(collate(examples, pad_token_id=2))


def packed(examples: list[Example]) -> dict[str, Any]:
    return dict(collate_packed(examples, pad_token_id=2))


def gradients(module: Any, value: Tensor) -> list[Tensor]:
    trained = [p for p in module.model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True))


def plain_values(metric: Any) -> Tensor:
    return metric.values if isinstance(metric, Weighted) else metric


def assert_same(plain: Any, sharing: Any, batch: dict[str, Any], **bound: float) -> None:
    """Losses, metrics, and the gradient of all parameters from a sum that no two examples have the same part in."""
    sharing.check_batch(batch)
    expected, expected_metrics = plain.example_losses(batch)
    losses, metrics = sharing.example_losses(batch)
    torch.testing.assert_close(losses, expected, **bound)
    assert list(metrics) == list(expected_metrics)
    for name, values in expected_metrics.items():
        torch.testing.assert_close(plain_values(metrics[name]), plain_values(values), **bound)
    parts = torch.linspace(0.5, 2, len(losses), dtype=losses.dtype)
    right = gradients(plain, expected @ parts)
    least = max(1e-3 * float(torch.cat([gradient.flatten() for gradient in right]).norm()), 1e-3)
    for ours, theirs in zip(gradients(sharing, losses @ parts), right, strict=True):
        assert float((ours - theirs).norm()) <= bound["rtol"] * max(float(theirs.norm()), least)


def flops(module: Any, batch: dict[str, Any]) -> int:
    """Floating-point operations of a step's passes, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        module.example_losses(batch)[0].sum().backward()
    return counter.get_total_flops()


def ift(model: Any, **options: Any) -> tuple[IFTModule, IFTModule]:
    return IFTModule(model, **options), IFTModule(model, share_prompts=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("collated", [padded, packed])
@pytest.mark.parametrize("name", CONFIGS)
def test_ift_of_every_architecture(name: str, collated: Any) -> None:
    assert_same(*ift(model_of(name), lam=0.4, detach_input_embeddings=False), collated(ROWS["mixed"]), **bound_of(name))


@pytest.mark.parametrize("collated", [padded, packed])
@pytest.mark.parametrize("rows", ROWS)
def test_ift_of_every_shape(rows: str, collated: Any) -> None:
    assert_same(*ift(model_of(), lam=0.4), collated(ROWS[rows]), **EXACT)


@pytest.mark.parametrize("kinds", [["sliding_attention", "full_attention"], ["sliding_attention"] * 2])
@pytest.mark.parametrize("name", ["gemma3", "gemma2", "qwen2", "qwen3"])
def test_sliding_windows(name: str, kinds: list[str]) -> None:
    options = {"use_sliding_window": True, "layer_types": kinds, "sliding_window": 3}
    assert_same(*ift(model_of(name, **options)), packed(ROWS["mixed"]), **bound_of(name))


@pytest.mark.parametrize("options", [{"loss": "nll"}, {"gamma": 0.0}, {"prediction": "top-k", "top_k": 3}])
def test_options_of_ift(options: dict[str, Any]) -> None:
    assert_same(*ift(model_of(tied=True), **options), padded(ROWS["mixed"]), **EXACT)


def test_an_adapter() -> None:
    plain = IFTModule(model_of(), lam=0.4, lora={"r": 4, "target_modules": "all-linear"})
    with torch.no_grad():
        for name, parameter in plain.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert_same(plain, IFTModule(plain.model, lam=0.4, share_prompts=True), padded(ROWS["mixed"]), **EXACT)


class Losses(Callback):
    """Loss and gradient norm of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        logged = trainer.callback_metrics
        self.seen.append((float(logged["train/loss"]), float(logged["train/grad_norm"])))


@pytest.mark.slow
def test_a_run_goes_on_with_shared_prompts(tmp_path: Path) -> None:
    batches = [padded(ROWS["mixed"]), packed(ROWS["long prompts"])]

    def fit(*, share: bool, epochs: int, ckpt_path: Path | None = None) -> list[tuple[float, float]]:
        module = IFTModule(
            model_of(),
            share_prompts=share,
            optimizer=lambda params: SGD(params, lr=0.02, momentum=0.9),
            lr_scheduler=lambda optimizer: ConstantSchedule(optimizer, warmup=0),
        )
        losses = Losses()
        trainer = L.Trainer(
            **QUIET_TRAINER,
            max_epochs=epochs,
            callbacks=[losses],
        )
        trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)  # type: ignore[arg-type]
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return losses.seen

    expected = fit(share=False, epochs=2)
    fit(share=False, epochs=1)
    resumed = fit(share=True, epochs=2, ckpt_path=tmp_path / "1.ckpt")
    assert len(resumed) == 2
    for ours, theirs in zip(resumed, expected[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_other_inputs_that_look_ahead() -> None:
    options = {"input": "temporal_residual", "input_options": {"lam": 0.3}, "loss": "dft"}
    plain, sharing = (SFTModule(model_of(), share_prompts=on, **options) for on in (False, True))
    assert_same(plain, sharing, padded(ROWS["mixed"]), **EXACT)
    options = {"input": "own_tokens", "input_options": {"lam": 0.5}}
    found = []
    for on in (False, True):
        module = SFTModule(model_of(), share_prompts=on, **options)
        torch.manual_seed(0)
        found.append(module.example_losses(padded(ROWS["mixed"]))[0])
    torch.testing.assert_close(found[1], found[0], **EXACT)


@pytest.mark.parametrize("collated", [padded, packed])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_single_precision(name: str, collated: Any) -> None:
    assert_same(*ift(model_of(name, dtype=torch.float32)), collated(ROWS["mixed"]), **CLOSE32)


def test_error_in_bfloat16_is_no_larger_than_without() -> None:
    model = model_of(dtype=torch.float32)
    batch = padded(ROWS["mixed"])
    plain, sharing = ift(model, lam=0.2, loss="nll")
    right = gradients(plain, plain.example_losses(batch)[0].sum())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = [gradients(module, module.example_losses(batch)[0].sum()) for module in (plain, sharing)]

    def error(found: list[Tensor]) -> float:
        pairs = list(zip(found, right, strict=True))
        return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5

    assert 0 < error(rounded[1]) < 1.5 * error(rounded[0])
    assert all(bool(gradient.any()) for gradient in rounded[1][1:])  # The second pass trains under autocast, too.


@pytest.mark.parametrize(("prompt", "targets"), [(30, 10), (15, 25), (3, 37)])
def test_ift_costs_three_passes_over_prompts_and_four_over_responses(prompt: int, targets: int) -> None:
    model = model_of(dtype=torch.float32, hidden_size=64, intermediate_size=256, vocab_size=64)
    batch = padded([example(prompt, targets, seed) for seed in range(6)])
    batch["input_ids"] %= 64
    batch["labels"] = batch["labels"].where(batch["labels"] < 0, batch["labels"] % 64)
    sft, (plain, sharing) = SFTModule(model, detach_input_embeddings=True), ift(model)
    share = targets / (prompt + targets)
    assert flops(plain, batch) / flops(sft, batch) > 1.3
    assert flops(sharing, batch) / flops(sft, batch) < 1.03 * (3 + share) / 3


PAIRS = {
    "pairs": pairs(5),
    "gold": pairs(3, gold=True),
    "long prompts": [encoded_row("preference", "chosen", "rejected", seed=i, prompt=20 + i) for i in range(4)],
    "no prompts": [encoded_row("preference", "chosen", "rejected", seed=9, prompt=1), *pairs(1)],
    "dummy": [*pairs(2), dummy(pairs(1)[0])],
}


def cut(row: EncodedRow) -> EncodedRow:
    """The same, but with only a part of the second answer's prompt."""
    side = row.sides["rejected"]
    return EncodedRow(
        row.kind,
        row.row_id,
        {**row.sides, "rejected": Example(side.input_ids[1:], side.labels[1:], side.row_id)},
        row.score,
    )


def alike(row: EncodedRow) -> EncodedRow:
    """The same answer twice."""
    return EncodedRow(row.kind, row.row_id, dict.fromkeys(row.sides, row.sides["chosen"]), row.score)


PAIRS["prompts that differ"] = [cut(row) for row in pairs(2)] + pairs(1, first_seed=5)
PAIRS["equal answers"] = [alike(row) for row in pairs(2)]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("rows", PAIRS)
def test_pairs_of_every_shape(rows: str, is_packed: bool) -> None:
    model = model_of("gpt2")
    plain, sharing = (PreferenceModule(model, reference="cached", share_prompts=on) for on in (False, True))
    assert_same(plain, sharing, feedback_batch(PAIRS[rows], packed=is_packed), **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_pairs_of_every_architecture(name: str) -> None:
    model = model_of(name)
    plain, sharing = (PreferenceModule(model, reference="cached", share_prompts=on) for on in (False, True))
    assert_same(
        plain,
        sharing,
        feedback_batch(PAIRS["gold"] + PAIRS["long prompts"], packed=True),
        **(EXACT if name in ("gpt2", "phi") else ROUNDED),
    )


@pytest.mark.parametrize("loss", ["rpo", "wpo", "simpo", "tpo"])
def test_pair_losses_that_look_at_more_than_sums(loss: str) -> None:
    options: dict[str, Any] = {"loss": "dpo", "options": {"wpo": {}}} if loss == "wpo" else {"loss": loss}
    needs = PairLoss(options["loss"])
    options |= {"reference": "cached"} if needs.needs_reference else {}
    model = model_of("gpt2")
    plain, sharing = (PreferenceModule(model, share_prompts=on, **options) for on in (False, True))
    assert_same(plain, sharing, feedback_batch(pairs(4, gold=needs.needs_gold)), **EXACT)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_chosen_answers_that_are_read_with_predictions(name: str, is_packed: bool) -> None:
    model = model_of(name)
    options: dict[str, Any] = {"loss": "simpo", "input": "temporal_residual", "input_options": {"lam": 0.4}}
    plain, sharing = (PreferenceModule(model, share_prompts=on, **options) for on in (False, True))
    # Answers that begin alike are read with other predictions.
    rows = [*pairs(3), *(alike(row) for row in pairs(2, first_seed=7))]
    assert_same(plain, sharing, feedback_batch(rows, packed=is_packed), **(EXACT if name == "gpt2" else ROUNDED))


def test_rows_with_one_answer_and_with_two() -> None:
    rows = [*pairs(2), encoded_row("instruction", "answer", seed=7), encoded_row("scored", "answer", seed=8, score=0.3)]
    model = model_of("gpt2")
    plain, sharing = (UFTModule(model, reference="cached", share_prompts=on) for on in (False, True))
    assert_same(plain, sharing, feedback_batch(rows), **EXACT)


def test_a_second_model_shares_the_prompts_too() -> None:
    model = model_of()
    found = []
    for on in (False, True):
        module = PreferenceModule(model, loss="tdpo", reference="model", share_prompts=on)
        module.prepare()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        found.append(module.example_losses(feedback_batch(pairs(3)))[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.01)
    assert module.reference._second is not None
    assert module.reference._second.share_prompts
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_a_pair_costs_its_prompt_once() -> None:
    model = model_of(dtype=torch.float32, hidden_size=64, intermediate_size=256)
    rows = [encoded_row("preference", "chosen", "rejected", seed=i, prompt=40, longest=8) for i in range(4)]
    batch = feedback_batch(rows, packed=True, dtype=torch.float32)
    plain, sharing = (PreferenceModule(model, reference="cached", share_prompts=on) for on in (False, True))
    assert flops(sharing, batch) < 0.7 * flops(plain, batch)


def tokens_of(layout: Layout) -> tuple[int, int]:
    """Tokens that the pass over prompts and a pass over answers read, padding apart."""
    return int((layout.prompts.sequences >= 0).sum()), int((layout.answers.sequences >= 0).sum())


@pytest.mark.parametrize("collated", [padded, packed])
def test_nothing_is_read_that_predicts_no_target(collated: Any) -> None:
    layout = before_targets(collated(ROWS["mixed"][:1] + ROWS["mixed"][2:6]), 16)
    # Nothing predicts a first token, so that it is a prompt where it is trained.
    assert tokens_of(layout) == (7 + 11 + 1 + 5 + 3, 3 + 0 + 4 + 8 + 3)


def test_little_padding_where_lengths_differ() -> None:
    rows = [example(40, 5, 1), example(5, 40, 2), example(38, 6, 3), example(4, 41, 4)]
    layout = before_targets(padded(rows), 16)
    read, after = tokens_of(layout)
    assert layout.prompt_tokens.numel() <= 1.1 * read
    assert layout.answer_tokens.numel() <= 1.1 * after
    assert common_to_answers(feedback_batch(pairs(1)), 16).one_a_row


@pytest.mark.parametrize(
    ("module_class", "options"),
    [
        (SFTModule, {}),
        (SFTModule, {"input": "neftune"}),
        (SFTMixModule, {}),
        (PreferenceModule, {"loss": "simpo", "input": "neftune"}),
        (IFTModule, {"lam": 0.0}),
        (IFTModule, {"reuse_predictions": "initial"}),
    ],
)
def test_refuses_where_it_has_no_effect(module_class: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="share_prompts has no use"):
        module_class(model_of(), share_prompts=True, **options)


def test_refuses_rows_with_gaps() -> None:
    batch = padded(ROWS["one"])
    batch["attention_mask"][0, 3] = 0
    with pytest.raises(UserError, match="its attention_mask has a gap"):
        before_targets(batch, 16)


def test_the_model_is_proven_once_before_it_trains() -> None:
    module = ift(model_of(), gradient_checkpointing=True)[1]
    with pytest.raises(UserError, match="cannot share prompts: gradient checkpointing"):
        module.validation_step(padded(ROWS["one"]), 3)
