"""Any token loss on any input, by SFTModule and IFTModule."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch.optim import SGD
from torch.utils.data import DataLoader

from lit_ift import IFTModule, SFTModule
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.errors import UserError
from lit_ift.losses import TOKEN_LOSSES
from lit_ift.modules.optim import ConstantSchedule

OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: SGD(params, lr=0.02),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}
NEEDED: dict[str, dict[str, Any]] = {"deformed_log": {"alpha": 0.3}}
INPUTS: dict[str, dict[str, Any]] = {
    "true_tokens": {},
    "temporal_residual": {"lam": 0.4},
    "own_tokens": {"lam": 1.0},
}

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""transformers computes norms in float32, whatever the model's dtype."""


def examples() -> list[Example]:
    rows = tiny_batch(4)
    made = []
    for ids, labels, mask in zip(rows["input_ids"], rows["labels"], rows["attention_mask"], strict=True):
        size = int(mask.sum())
        made.append(Example(ids[:size].tolist(), labels[:size].tolist(), f"row {len(made)}"))
    return made


def module_of(loss: str = "nll", input: str = "true_tokens", **options: Any) -> SFTModule:
    model = tiny_model(attn_implementation="sdpa")
    module = SFTModule(
        model, loss=loss, options=NEEDED.get(loss), input=input, input_options=INPUTS[input], **OPTIONS, **options
    )
    module.configure_model()
    with torch.no_grad():  # The policy has moved away from its reference.
        for parameter in module.model.parameters():
            parameter.mul_(1.1)
    return module


def gradient(module: SFTModule, losses: torch.Tensor) -> torch.Tensor:
    parts = torch.autograd.grad(losses.sum(), list(module.model.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


@pytest.mark.parametrize(
    ("loss", "input"),
    [(loss, input) for loss in TOKEN_LOSSES for input in INPUTS if loss != "psft" or input == "true_tokens"],
)
def test_packed_rows_have_the_losses_of_padded_ones(loss: str, input: str) -> None:
    module = module_of(loss, input)
    padded, packed = dict(collate(examples(), pad_token_id=2)), dict(collate_packed(examples(), pad_token_id=2))
    losses, metrics = module.example_losses(padded)
    others, other_metrics = module.example_losses(packed)
    torch.testing.assert_close(others, losses, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient(module, others), gradient(module, losses), rtol=1e-5, atol=1e-8)
    assert other_metrics.keys() == metrics.keys() >= {"token_accuracy"}


def test_ift_is_temporal_residual_times_propagation() -> None:
    batch = tiny_batch()
    ours = IFTModule(tiny_model(), lam=0.4, gamma=0.8, norm="l2")
    twin = SFTModule(
        tiny_model(),
        input="temporal_residual",
        input_options={"lam": 0.4},
        loss="propagation",
        options={"gamma": 0.8, "norm": "l2"},
        detach_input_embeddings=True,
    )
    (losses, metrics), (others, other_metrics) = ours.example_losses(batch), twin.example_losses(batch)
    assert torch.equal(losses, others)
    assert torch.equal(gradient(ours, losses), gradient(twin, others))
    assert metrics.keys() == other_metrics.keys() == {"lam", "sft_loss", "fused_loss", "token_accuracy"}


@pytest.mark.parametrize("input", ["temporal_residual", "own_tokens"])
def test_an_input_with_lambda_0_is_the_true_tokens(input: str) -> None:
    batch = tiny_batch()
    ours = SFTModule(tiny_model(), input=input, input_options={"lam": 0.0}, detach_input_embeddings=False)
    twin = SFTModule(tiny_model(), detach_input_embeddings=False)
    losses, expected = ours.example_losses(batch)[0], twin.example_losses(batch)[0]
    assert torch.equal(losses, expected)
    torch.testing.assert_close(gradient(ours, losses), gradient(twin, expected))


def test_own_tokens_read_predictions_in_the_place_of_trained_tokens() -> None:
    module, batch = module_of(input="own_tokens"), tiny_batch()
    with torch.no_grad():
        logits = module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        trained = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORE_INDEX, (1, 0))
        predicted = torch.nn.functional.pad(logits.argmax(-1)[:, :-1], (1, 0))
        read = torch.where(trained, predicted, batch["input_ids"])
        plain = module_of()
        hidden = plain.hidden_states(plain.embed(read), batch)
        expected = plain.score(hidden, batch).nll.sum(-1) / trained.sum(-1)
    losses, metrics = module.example_losses(batch)
    torch.testing.assert_close(losses, expected)
    assert metrics["lam"].tolist() == [1.0] * 4
    module.eval()
    torch.testing.assert_close(module.example_losses(batch)[0], metrics["sft_loss"])


@pytest.mark.parametrize("length", ["row", "padded"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_neftune_noise_is_bounded_by_the_length_of_its_row(length: str, is_packed: bool) -> None:
    module = SFTModule(tiny_model(), input="neftune", input_options={"alpha": 3.0, "length": length})
    collated = collate_packed if is_packed else collate
    batch = dict(collated(examples(), pad_token_id=2))
    torch.manual_seed(0)
    noise = module.token_input(module, batch).embeddings - module.embed(batch["input_ids"])
    sizes = [len(one.input_ids) for one in examples()]
    owners = batch["sequence_ids"] if is_packed else torch.arange(4)[:, None].where(batch["attention_mask"] > 0, -1)
    assert (noise[owners < 0] == 0).all()
    for row, size in enumerate(sizes):
        counted = size if length == "row" else noise.shape[1]
        bound = 3.0 / (counted * noise.shape[-1]) ** 0.5
        of_row = noise[owners == row]
        assert of_row.shape == (size, noise.shape[-1])
        assert 0.95 * bound < of_row.detach().abs().max().item() <= bound
    module.eval()
    assert torch.equal(module.token_input(module, batch).embeddings, module.embed(batch["input_ids"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SFTModule("never loaded", loss="dft", options={"beta": 1}), "has no option 'beta'"),
        (lambda: SFTModule("never loaded", input="neftune", input_options={"alhpa": 1}), "Did you mean 'alpha'?"),
        (lambda: SFTModule("never loaded", input="neftune", input_options={"alpha": 0}), "alpha=0 must be above 0"),
        (lambda: SFTModule("never loaded", input_options={"lam": 0.1}), "has no option 'lam'; it takes none"),
        (lambda: SFTModule("never loaded", input="neftun"), "must be one of 'true_tokens'.* Did you mean 'neftune'?"),
        (lambda: SFTModule("never loaded", input="torch.nn.Linear"), "is no subclass of lit_ift.modules.inputs.TrueT"),
        (lambda: SFTModule("never loaded", input="torch.no_such"), "cannot be imported"),
        (lambda: SFTModule("never loaded", loss="psft", input="neftune"), "Use input='true_tokens'"),
        (lambda: SFTModule("never loaded", reference="model"), "reference has no effect"),
        (lambda: SFTModule("never loaded", loss="anchored", reference="cached"), "reference='cached' holds sums"),
        (lambda: IFTModule("never loaded", loss="dft", gamma=0.5), "gamma=0.5 has no effect with loss='dft'"),
        (lambda: IFTModule("never loaded", options={"gamma": 0.5}), "has no effect with loss='propagation'"),
        (lambda: IFTModule("never loaded", loss="nope"), "loss='nope' is none of nll"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def batches(steps: int) -> list[dict[str, Any]]:
    return [tiny_batch(2, first=2 * step) for step in range(steps)]


class Rows:
    """Eight batches of two rows. A resumed run gets the later ones."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(batches(8)[self.start :])


def trained(loss: str, steps: int, ckpt_path: Path | None = None, folder: Path | None = None, **options: Any) -> Any:
    """A module after some steps of SGD; with a folder, the checkpoint of its last step is ``last.ckpt`` there."""
    module = SFTModule(
        tiny_model(),
        loss=loss,
        options=options or None,
        reduction="token",
        optimizer=lambda params: SGD(params, lr=0.3),
        lr_scheduler=lambda optimizer: ConstantSchedule(optimizer, warmup=0),
    )
    start = 0 if ckpt_path is None else torch.load(ckpt_path, weights_only=True)["global_step"]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, Rows(start), ckpt_path=ckpt_path)
    if folder is not None:
        trainer.save_checkpoint(folder / "last.ckpt")
    return module


def weights(module: SFTModule) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()])


def test_psft_equals_a_literal_loop() -> None:
    """k = 4: before steps 0 and 4 the old policy scores the rows of the four steps that follow."""
    model = tiny_model()
    optimizer = SGD(model.parameters(), lr=0.3)

    def logps(batch: dict[str, Any]) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        return logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0][targets != IGNORE_INDEX]

    clipped = 0
    for start in (0, 4):
        window = batches(8)[start : start + 4]
        with torch.no_grad():
            old = [logps(batch) for batch in window]
        for batch, before in zip(window, old, strict=True):
            ratio = (logps(batch) - before).exp()
            clipped += int((ratio > 1.28).sum())
            optimizer.zero_grad()
            (-torch.minimum(ratio, ratio.clamp(0.8, 1.28))).mean().backward()
            optimizer.step()
    assert clipped
    expected = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    ours = trained("psft", 8, old_policy_steps=4)
    torch.testing.assert_close(weights(ours), expected, **CLOSE)
    each_step = trained("psft", 8, old_policy_steps=1)
    torch.testing.assert_close(weights(each_step), weights(trained("nll", 8)), **CLOSE)
    assert (weights(each_step) - weights(ours)).abs().max() > 1e-4


@pytest.mark.parametrize("steps", [2, 4])
def test_psft_goes_on_exactly_from_inside_its_windows(steps: int, tmp_path: Path) -> None:
    whole = trained("psft", 8, old_policy_steps=4)
    trained("psft", steps, folder=tmp_path, old_policy_steps=4)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["old_policy"]
    assert (len(saved["weights"]) > 0) is (steps == 2)  # At the end of a window there is nothing to keep.
    resumed = trained("psft", 8, tmp_path / "last.ckpt", old_policy_steps=4)
    assert torch.equal(weights(resumed), weights(whole))
    trained("nll", 2, folder=tmp_path)
    with pytest.raises(UserError, match="no old policy of old_policy_steps=4"):
        trained("psft", 8, tmp_path / "last.ckpt", old_policy_steps=4)


def test_an_adapter_switched_off_is_the_reference() -> None:
    pytest.importorskip("peft")
    module = SFTModule(tiny_model(), loss="anchored", options={"kappa": 0.5}, lora={"r": 2})
    module.configure_model()
    losses, metrics = module.example_losses(tiny_batch())
    torch.testing.assert_close(metrics["kl"], torch.zeros_like(losses), rtol=0, atol=1e-12)
    with torch.no_grad():
        for name, parameter in module.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    _, metrics = module.example_losses(tiny_batch())
    assert module.reference.kind == "adapter"
    assert (metrics["kl"] > 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("loss", TOKEN_LOSSES)
def test_a_step_is_the_same_however_it_is_split(loss: str) -> None:
    """Three steps of 8 rows as 1 and 4 micro-batches; of a loss with the in-batch mark they differ."""
    found = []
    for size in (8, 2):
        module = SFTModule(tiny_model(), loss=loss, options=NEEDED.get(loss), reduction="token", **OPTIONS)
        rows = [tiny_batch(size, first=first) for first in range(0, 24, size)]
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            max_epochs=1,
            accumulate_grad_batches=8 // size,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(rows, batch_size=None))
        assert trainer.global_step == 3
        found.append(weights(module))
    assert torch.allclose(*found, rtol=1e-5, atol=1e-7) is not module.token_loss.in_batch
