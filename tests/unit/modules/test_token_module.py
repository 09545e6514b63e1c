"""Any token loss on any input, by SFTModule and IFTModule."""

from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch.optim import SGD

from lit_ift import IFTModule, SFTModule
from lit_ift.chat.example import Example
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.losses import TOKEN_LOSSES
from lit_ift.modules.optim import ConstantSchedule

OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: SGD(params, lr=0.02),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}
NEEDED: dict[str, dict[str, Any]] = {"deformed_log": {"alpha": 0.3}}
INPUTS: dict[str, dict[str, Any]] = {
    "true": {},
    "temporal_residual": {"lam": 0.4},
    "own_tokens": {"lam": 1.0},
}


def examples() -> list[Example]:
    rows = tiny_batch(4)
    made = []
    for ids, labels, mask in zip(rows["input_ids"], rows["labels"], rows["attention_mask"], strict=True):
        size = int(mask.sum())
        made.append(Example(ids[:size].tolist(), labels[:size].tolist(), f"row {len(made)}"))
    return made


def module_of(loss: str = "nll", input: str = "true", **options: Any) -> SFTModule:
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
    ("loss", "input"), [(loss, input) for loss in TOKEN_LOSSES for input in INPUTS if loss != "psft" or input == "true"]
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
        (lambda: SFTModule("never loaded", input="noise"), "input='noise' must be one of 'true'"),
        (lambda: SFTModule("never loaded", loss="psft", input="neftune"), "Use input='true'"),
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
