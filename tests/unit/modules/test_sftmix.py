"""SFTMix: which examples meet, what a row's loss is, where confidence comes from."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import tiny_batch, tiny_model
from torch.optim import SGD
from torch.utils.data import DataLoader

from lit_ift.callbacks import ConfidenceRecorder
from lit_ift.chat.example import Example
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.errors import RowError, UserError
from lit_ift.modules import CausalLMModule, IFTModule, SFTMixModule, SFTModule
from lit_ift.modules.optim import ConstantSchedule
from lit_ift.modules.sftmix import read_confidence

OPTIONS: dict[str, Any] = {
    "optimizer": lambda params: SGD(params, lr=0.02),
    "lr_scheduler": lambda optimizer: ConstantSchedule(optimizer, warmup=0),
}


def write(path: Path, confidence: dict[str, Any]) -> str:
    lines = [json.dumps({"row_id": row_id, "confidence": value}) for row_id, value in confidence.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def weights(module: CausalLMModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.model.parameters()])


def fit(module: CausalLMModule, *callbacks: Callback, val: Any = None, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"logger": False, "enable_checkpointing": False, "max_epochs": 2, **options},
    )
    trainer.fit(module, loader(), val)
    return trainer


def loader(batches: int = 3) -> DataLoader:
    return DataLoader([tiny_batch(4, first=4 * i) for i in range(batches)], batch_size=None)


def mixup_by_hand(module: CausalLMModule, batch: dict[str, Any], first: int, second: int, lam: float) -> torch.Tensor:
    """From the whole model's hidden states and head, one position at a time."""
    output = module.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    )
    hidden = output.hidden_states[-1]
    places = [(batch["labels"][b] != -100).nonzero().flatten().tolist() for b in (first, second)]
    losses = []
    for t, s in zip(*places, strict=False):
        z = lam * hidden[first, t - 1] + (1 - lam) * hidden[second, s - 1]
        logps = module.model.lm_head(z).log_softmax(-1)
        mixed = lam * logps[batch["labels"][first, t]] + (1 - lam) * logps[batch["labels"][second, s]]
        losses.append(-mixed)
    return torch.stack(losses).mean()


def test_losses_by_hand(tmp_path: Path) -> None:
    """Row 2 is surest, row 0 least sure; row 1 stands in the middle and has the loss of SFT."""
    batch = tiny_batch(3)
    path = write(tmp_path / "c.jsonl", {"row 0": -9.0, "row 1": -5.0, "row 2": -1.5})
    module = SFTMixModule(tiny_model(), confidence=path, mu=0.7)
    (lam,) = module._lam(1)
    assert 0.01 < lam < 0.99
    nll, _ = SFTModule(tiny_model()).example_losses(batch)
    mixup = mixup_by_hand(module, batch, 2, 0, lam)
    value = float(mixup.detach())
    losses, metrics = module.example_losses(batch)
    half = 0.7 * mixup / 2
    torch.testing.assert_close(losses, nll + torch.stack([half, torch.zeros_like(half), half]), rtol=1e-9, atol=1e-9)
    assert metrics["mixup_loss"].weights.tolist() == [1, 0, 1]
    assert metrics["mixup_loss"].values[[0, 2]].tolist() == pytest.approx([value] * 2, rel=1e-9)
    parameters = [p for p in module.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(losses.sum(), parameters)
    nll, _ = SFTModule(module.model).example_losses(batch)
    theirs = torch.autograd.grad(nll.sum() + 0.7 * mixup, parameters)
    ours, theirs = (torch.cat([g.flatten() for g in gradients]) for gradients in (ours, theirs))
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def test_online_ranks_by_the_present_loss(tmp_path: Path) -> None:
    batch = tiny_batch(5)
    nll, _ = SFTModule(tiny_model()).example_losses(batch)
    path = write(tmp_path / "c.jsonl", {f"row {i}": -float(value.exp()) for i, value in enumerate(nll)})
    online, _ = SFTMixModule(tiny_model()).example_losses(batch)
    recorded, _ = SFTMixModule(tiny_model(), confidence=path).example_losses(batch)
    assert torch.equal(online, recorded)
    assert not torch.equal(online, nll)


@pytest.mark.parametrize("one_row", [False, True])
def test_packed_equals_padded(one_row: bool) -> None:
    batch = tiny_batch(5)
    examples = [
        Example(ids[mask.bool()].tolist(), labels[mask.bool()].tolist(), row_id)
        for ids, labels, mask, row_id in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], batch["row_ids"], strict=True
        )
    ]
    examples = [*examples[:2], examples[0].as_dummy(), *examples[2:]]
    module = SFTMixModule(tiny_model(attn_implementation="sdpa"))
    parameters = [p for p in module.model.parameters() if p.requires_grad]
    found = []
    for rows in (collate_packed(examples, pad_token_id=2, one_row=one_row), collate(examples, pad_token_id=2)):
        losses, metrics = module.example_losses(dict(rows))
        assert module.check_batch(dict(rows)) is None
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), parameters)])
        found.append((losses, metrics["mixup_loss"].values, metrics["mixup_loss"].weights, gradient))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert found[0][0][2] == 0
    assert found[0][2].sum() == 4


def test_mu_0_is_sft_to_the_bit() -> None:
    modules = [SFTMixModule(tiny_model(), mu=0.0, **OPTIONS), SFTModule(tiny_model(), **OPTIONS)]
    mixed = SFTMixModule(tiny_model(), **OPTIONS)
    modules[1].one_sweep = False  # Its sums are in another order.
    for module in (*modules, mixed):
        trainer = fit(module)
    assert torch.equal(weights(modules[0]), weights(modules[1]))
    assert not torch.equal(weights(mixed), weights(modules[1]))
    assert trainer.callback_metrics["train/mixup_loss"] > 0
    assert "train/token_accuracy" in trainer.callback_metrics


def test_lam_depends_on_step_and_micro_batch_only() -> None:
    seen: list[list[float]] = []

    class Watched(SFTMixModule):
        def _lam(self, num_pairs: int) -> list[float]:
            torch.rand(3)  # The global generators have no say.
            seen.append(super()._lam(num_pairs))
            return seen[-1]

    for seed in (1, 2):
        torch.manual_seed(seed)
        fit(Watched(tiny_model(), **OPTIONS), accumulate_grad_batches=2)
    assert seen[:6] == seen[6:]
    assert len({tuple(lam) for lam in seen[:6]}) == 6
    assert len({value for lam in seen[:6] for value in lam}) == 12
    draws = SFTMixModule(tiny_model(), alpha=0.5)._lam(20_000)
    values = torch.tensor(draws)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)) = 1/8.
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.var()) == pytest.approx(1 / 8, abs=0.003)
    assert SFTMixModule(tiny_model(), mixup_seed=1)._lam(3) != draws[:3]


def test_validation_is_that_of_sft() -> None:
    results = []
    for module in (SFTMixModule(tiny_model()), SFTModule(tiny_model())):
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        results.append(trainer.validate(module, loader(), verbose=False)[0])
    assert results[0] == results[1]


def test_recorded_confidence_is_the_negative_mean_perplexity(tmp_path: Path) -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.seen: dict[str, list[float]] = {}

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            for row_id, value in zip(*module.latest_losses, strict=True):
                self.seen.setdefault(row_id, []).append(float(value))

    losses, path = Losses(), tmp_path / "out" / "confidence.jsonl"
    module = SFTModule(tiny_model(), **OPTIONS)
    fit(module, losses, ConfidenceRecorder(path=path))
    found = read_confidence(path)
    assert list(found) == [f"row {i}" for i in range(12)]
    for row_id, values in losses.seen.items():
        assert len(values) == 2
        assert found[row_id] == pytest.approx(-sum(torch.tensor(values).double().exp().tolist()) / 2, rel=1e-5)
    first = {i: v[0] for i, v in losses.seen.items()}
    expected, _ = SFTModule(tiny_model()).example_losses(tiny_batch(4))
    assert [first[f"row {i}"] for i in range(4)] == pytest.approx(expected.tolist())
    mixed = fit(SFTMixModule(tiny_model(), confidence=str(path), **OPTIONS))
    assert mixed.callback_metrics["train/mixup_loss"] > 0


def test_recorded_at_every_validation(tmp_path: Path) -> None:
    recorder = ConfidenceRecorder("val", path=tmp_path / "c.jsonl")
    module = SFTModule(tiny_model(), optimizer=lambda params: SGD(params, lr=1e-12))
    fit(module, recorder, val=loader(2), max_epochs=3)
    found = read_confidence(tmp_path / "c.jsonl")
    expected, _ = SFTModule(tiny_model()).example_losses(tiny_batch(4))
    assert len(found) == 8
    assert [found[f"row {i}"] for i in range(4)] == pytest.approx((-expected.exp()).tolist(), rel=1e-6)
    assert {count for _, count in recorder._passes.values()} == {3}


@pytest.mark.slow
def test_recorder_resumes(tmp_path: Path) -> None:
    def run(epochs: int, ckpt: str | None = None) -> tuple[ConfidenceRecorder, L.Trainer]:
        recorder = ConfidenceRecorder(path=tmp_path / f"{epochs}{ckpt is None}.jsonl")
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[recorder],
            max_epochs=epochs,
            default_root_dir=tmp_path,
        )
        trainer.fit(SFTModule(tiny_model(), **OPTIONS), loader(), ckpt_path=ckpt, weights_only=False)
        return recorder, trainer

    whole, _ = run(3)
    _, trainer = run(2)
    resumed, _ = run(3, trainer.checkpoint_callback.best_model_path)
    assert resumed.confidence() == whole.confidence()


def test_recorder_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage='test' must be one of 'train', 'val'"):
        ConfidenceRecorder("test")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"needs SFTModule.*IFTModule"):
        fit(IFTModule(tiny_model()), ConfidenceRecorder(path=tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mu": -0.1}, "mu=-0.1"), ({"mu": float("nan")}, "mu=nan"), ({"alpha": 0.0}, "alpha=0.0")],
)
def test_wrong_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SFTMixModule(tiny_model(), **options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not valid JSON"),
        ("[1]", ":2: .* is not an object"),
        ('{"confidence": 1}', ":2: field 'row_id': None"),
        ('{"row_id": "a", "confidence": NaN}', ":2: field 'confidence': nan"),
        ('{"row_id": "a", "confidence": true}', ":2: field 'confidence': True"),
        ('{"row_id": "row 0", "confidence": 2}', ":2: field 'row_id': 'row 0' stands in the file twice"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"row_id": "row 0", "confidence": -1.0}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(RowError, match=message):
        fit(SFTMixModule(tiny_model(), confidence=str(path)))


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl.*cannot be read"):
        read_confidence(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_confidence(tmp_path / "empty.jsonl")
    path = write(tmp_path / "c.jsonl", {"row 0": -1.0, "row 1": -2.0})
    module = SFTMixModule(tiny_model(), confidence=path)
    with pytest.raises(UserError, match="no confidence of row 'row 2'"):
        module.example_losses(tiny_batch(3))
    batch = tiny_batch(2)
    del batch["row_ids"]
    with pytest.raises(UserError, match="has no row_ids"):
        module.example_losses(batch)


def test_one_row_has_no_partner() -> None:
    module = SFTMixModule(tiny_model())
    batch = tiny_batch(1)
    with pytest.warns(UserWarning, match="fewer than 2 rows"):
        module.check_batch(batch)
    losses, metrics = module.example_losses(batch)
    assert torch.equal(losses, SFTModule(tiny_model()).example_losses(batch)[0])
    assert metrics["mixup_loss"].weights.tolist() == [0]
