"""The reference policy: at first the policy itself, and unmoved by its training."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from rounding import CLOSE32
from tiny import tiny_batch, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader, Dataset

from lit_ift.chat.example import Example
from lit_ift.data.batch.collate import collate, collate_packed
from lit_ift.data.rows import EncodedRow
from lit_ift.errors import UserError
from lit_ift.modules import SFTModule
from lit_ift.modules.kept_arrays import KeptArray
from lit_ift.modules.reference import ReferencePolicy


def example(size: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 250, (size,), generator=generator).tolist()
    return Example(ids, [-100, -100, *ids[2:]], f"row {seed}")


def pairs(count: int, seed: int = 0) -> list[EncodedRow]:
    rows = []
    for i in range(count):
        sides = {
            side: example(4 + (7 * i + 3 * k) % 9, seed + 2 * i + k) for k, side in enumerate(("chosen", "rejected"))
        }
        rows.append(EncodedRow("preference", f"file:{i}", sides))
    rows.insert(1, EncodedRow("instruction", "file:odd", {"answer": example(6, seed + 999)}))
    return rows


class Rows(Dataset[Any]):
    """What the cache sees of an encoded data set."""

    def __init__(self, rows: list[EncodedRow], digest: str = "some rows") -> None:
        self.rows = rows
        self.reference_logps: Any = None
        counts = np.array([len(row.sides) for row in rows])
        self.answer_offsets = np.cumsum(counts) - counts
        self.num_answers = int(counts.sum())
        self.content_digest = digest

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> list[EncodedRow]:
        return [self.rows[i] for i in indices]

    def examples(self) -> list[Example]:
        return [side for row in self.rows for side in row.sides.values()]


class Data(L.LightningDataModule):
    def __init__(self, digest: str = "some rows", seed: int = 0, split: str = "train") -> None:
        super().__init__()
        self.datasets = {split: Rows(pairs(9, seed), digest)}
        self.tokenizer = tiny_tokenizer()

    def rows(self) -> Rows:
        return next(iter(self.datasets.values()))

    def _loader(self) -> Any:
        rows = self.rows()

        def batch(indices: list[int]) -> dict[str, Any]:
            columns = dict(collate([rows.examples()[i] for i in indices], pad_token_id=2))
            logps = rows.reference_logps
            return {**columns, **({} if logps is None else {"reference_logps": torch.from_numpy(logps[indices])})}

        return DataLoader(range(rows.num_answers), batch_size=4, collate_fn=batch)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = _loader


class WithReference(SFTModule):
    """SFT that compares with a reference, as preference objectives do."""

    def __init__(self, model: Any, *, reference: ReferencePolicy, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.reference = reference
        self.passes = 0
        self.gaps: list[torch.Tensor] = []

    def configure_model(self) -> None:
        super().configure_model()
        self.reference.prepare(self)

    def hidden_states(self, inputs_embeds: torch.Tensor, batch: Any) -> torch.Tensor:
        self.passes += 1
        return super().hidden_states(inputs_embeds, batch)

    def example_losses(self, batch: Any) -> Any:
        losses, metrics = super().example_losses(batch)
        self.gaps.append(own_logps(self, batch) - self.reference.logps(self, batch))
        return losses, metrics


def own_logps(module: SFTModule, batch: Any) -> torch.Tensor:
    """The slow twin: the whole model's logits."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    with torch.no_grad():
        logits = module.model(**inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0)
    if "sequence_ids" not in batch:
        return logps.sum(-1)
    owner = batch["sequence_ids"][:, 1:]
    return torch.stack([logps[owner == i].sum() for i in range(int(owner.max()) + 1)])


def fit(module: WithReference, data: Data | None = None, steps: int = 5, **options: Any) -> L.Trainer:
    options = {"accelerator": "cpu", "max_steps": steps, "logger": False, "enable_checkpointing": False, **options}
    trainer = L.Trainer(**options, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, datamodule=data or Data())
    return trainer


def policy(
    kind: Any = "auto", *, folder: Path | None = None, dtype: torch.dtype = torch.float64, **options: Any
) -> Any:
    reference = ReferencePolicy(kind, cache_dir=None if folder is None else str(folder))
    build = options.pop("build", lambda: tiny_model(dtype=dtype))
    module = WithReference(
        build(), reference=reference, lr_scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o), **options
    )
    module._build_optimizer = lambda params: torch.optim.SGD(params, lr=0.5)
    return module


def lora_model(dtype: torch.dtype = torch.float64) -> Any:
    from lit_ift.models.lora import add_lora

    return add_lora(tiny_model(dtype=dtype), {"r": 4})


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["cached", "adapter", "model"])
def test_it_is_the_policy_at_first_and_stays(kind: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    folder = tmp_path if kind == "cached" else None
    build = (lambda: lora_model(dtype)) if kind == "adapter" else (lambda: tiny_model(dtype=dtype))
    module, data = policy(kind, folder=folder, build=build), Data()
    rows = data.rows()
    before = own_logps(module, collate(rows.examples(), pad_token_id=2))
    trainer = fit(module, data)
    assert trainer.global_step == 5
    scale = before.abs().max()
    assert module.gaps[0].abs().max() <= tolerance * scale
    assert module.gaps[-1].abs().min() > 1e-3

    padded = dict(collate(rows.examples(), pad_token_id=2))
    packed = dict(collate_packed(rows.examples(), pad_token_id=2))
    for batch in (padded, packed):
        if kind == "cached":
            batch["reference_logps"] = torch.from_numpy(rows.reference_logps)
        ours = module.reference.logps(module, batch)
        assert not ours.requires_grad
        assert (ours - before).abs().max() <= tolerance * scale
        assert (own_logps(module, batch) - before).abs().min() > 1e-3


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_by_tokens_and_by_hidden_states(kind: str) -> None:
    build = lora_model if kind == "adapter" else tiny_model
    module = policy(kind, build=build)
    module.configure_model()
    expected = tiny_model()
    with torch.no_grad():
        for parameter in module.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    batch = tiny_batch()
    logits = expected(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with module.reference.hidden_and_head(module, batch) as (hidden, head):
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(head(hidden)[real], logits[real], rtol=1e-9, atol=1e-9)
        assert not head(hidden).requires_grad
        policy_hidden = module.hidden_states(module.embed(batch["input_ids"]), batch)
        assert policy_hidden.requires_grad
        assert not torch.allclose(policy_hidden, hidden)
    scores = module.reference.scores(module, batch)
    torch.testing.assert_close(-scores.nll.sum(-1), own_logps(SFTModule(expected), batch))
    assert scores.nll.shape == (4, 11)


def test_an_adapted_head_is_switched_off_too() -> None:
    from lit_ift.models.lora import add_lora

    module = policy("adapter", build=lambda: add_lora(tiny_model(), {"target_modules": ["lm_head"]}))
    module.configure_model()
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.01 if parameter.requires_grad else 0.0)
    batch = tiny_batch()
    with module.reference.hidden_and_head(module, batch) as (hidden, head):
        expected = tiny_model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(head(hidden)[real], expected[real], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(module.head(hidden), expected)
    assert any(parameter.requires_grad for parameter in module.model.parameters())


class TestCached:
    def test_it_is_read_again(self, tmp_path: Path) -> None:
        first, second = (policy("cached", folder=tmp_path) for _ in range(2))
        one, two = Data(), Data()
        fit(first, one, steps=1)
        fit(second, two, steps=1)
        assert second.passes == first.passes - 1  # All answers fit into one batch.
        np.testing.assert_array_equal(one.rows().reference_logps, two.rows().reference_logps)
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]

    def other_weights(self) -> Any:
        model = tiny_model()
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1e-6
        return policy("cached", folder=self.folder, build=lambda: model), Data()

    def other_configuration(self) -> Any:
        return policy("cached", folder=self.folder, build=lambda: tiny_model(rms_norm_eps=1e-3)), Data()

    def other_rows(self) -> Any:
        return policy("cached", folder=self.folder), Data("other rows", seed=5)

    def other_template(self) -> Any:
        data = Data()
        data.tokenizer.chat_template += " "
        return policy("cached", folder=self.folder), data

    @pytest.mark.slow
    @pytest.mark.parametrize("change", ["other_weights", "other_configuration", "other_rows", "other_template"])
    def test_it_is_computed_anew_for(self, change: str, tmp_path: Path) -> None:
        self.folder = tmp_path
        fit(policy("cached", folder=tmp_path), steps=1)
        module, data = getattr(self, change)()
        fit(module, data, steps=1)
        assert module.passes > 1
        assert len(list(tmp_path.glob("*.npy"))) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["values", "nan", "length", "longer", "key", "cut", "zip", "record"])
    def test_what_was_changed_is_computed_again(self, how: str, tmp_path: Path) -> None:
        module = policy("cached", folder=tmp_path)
        fit(module, steps=1)
        (numbers,), (record,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
        written = numbers.read_bytes(), record.read_bytes()
        values = np.load(numbers)
        if how == "values":
            values[3] += 1
        elif how == "nan":
            values[3] = np.nan
        elif how == "length":
            values = values[1:]
        if how == "key":
            record.write_text(record.read_text().replace('"32-true"', '"16-true"'))
        elif how == "longer":
            numbers.write_bytes(numbers.read_bytes() + b"x")
        elif how == "cut":
            numbers.write_bytes(numbers.read_bytes()[:20])
        elif how == "zip":
            numbers.write_bytes(b"PK\x03\x04 and so on")
        elif how == "record":
            record.write_text('{"key": null, "numbers": ""}')
        else:
            np.save(numbers, values)
        with pytest.warns(UserWarning, match=f"{numbers.name}: .* are damaged, so they are computed again"):
            fit(policy("cached", folder=tmp_path), steps=1)
        assert (numbers.read_bytes(), record.read_bytes()) == written

    @pytest.mark.filterwarnings("ignore:.*are damaged")
    def test_every_flipped_bit_is_found(self, tmp_path: Path) -> None:
        kept = KeptArray(tmp_path, "the numbers", {"rows": "x", "precision": "32-true"})
        logps = np.linspace(-3, -1, 9, dtype=np.float32)
        kept.write(logps)
        found, places = 0, 0
        for path in (kept.path, kept.record):
            data = path.read_bytes()
            for i in range(len(data)):
                path.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
                loaded = kept.load(logps.shape)
                # A flip in the header's blanks, or in the version of its format, changes no number.
                found += loaded is None or np.array_equal(loaded, logps)
                places += 1
            path.write_bytes(data)
        assert found == places
        np.testing.assert_array_equal(kept.load(logps.shape), logps)

    @pytest.mark.slow
    def test_a_trained_policy_does_not_speak_for_the_first(self, tmp_path: Path) -> None:
        module, data = policy("cached", folder=tmp_path), Data()
        fit(module, data)
        logps = data.rows().reference_logps.copy()
        fit(module, data)
        np.testing.assert_array_equal(data.rows().reference_logps, logps)
        other = Data("test rows", seed=5, split="test")
        with pytest.raises(UserError, match="test answers were not scored before training"):
            module.trainer.test(module, datamodule=other, verbose=False)

    def test_another_modules_numbers_are_not_taken(self, tmp_path: Path) -> None:
        data = Data()
        fit(policy("cached", folder=tmp_path), data, steps=1)
        other = policy("cached", folder=tmp_path, build=lambda: tiny_model(seed=3))
        fit(other, data, steps=1)
        assert other.gaps[0].abs().max() < 1e-9

    def test_it_needs_a_data_module(self, tmp_path: Path) -> None:
        trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
        with pytest.raises(UserError, match="loaders only"):
            trainer.fit(policy("cached", folder=tmp_path), DataLoader([1]))

    def test_a_batch_without_numbers(self, tmp_path: Path) -> None:
        module = policy("cached", folder=tmp_path)
        with pytest.raises(UserError, match="no reference_logps"):
            module.reference.logps(module, tiny_batch())
        with pytest.raises(UserError, match="not scored"):
            module.reference.logps(module, {**tiny_batch(), "reference_logps": torch.tensor([0, 0, torch.nan, 0])})
        with pytest.raises(UserError, match="reference=adapter"):
            module.reference.scores(module, tiny_batch())

    def test_dummies_need_no_numbers(self, tmp_path: Path) -> None:
        module, batch = policy("cached", folder=tmp_path), tiny_batch()
        batch["labels"][2] = -100
        batch["reference_logps"] = torch.tensor([1.0, 2.0, torch.nan, 3.0])
        assert module.reference.logps(module, batch).tolist() == [1.0, 2.0, 0.0, 3.0]

    def test_mixed_precision_is_that_of_training(self, tmp_path: Path) -> None:
        module = policy("cached", folder=tmp_path, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            data = Data()
            expected = own_logps(module, collate(data.rows().examples(), pad_token_id=2)).float()
        fit(module, data, steps=1, precision="bf16-mixed")
        assert data.rows().reference_logps == pytest.approx(expected.numpy(), rel=0.02)
        assert own_logps(SFTModule(tiny_model(dtype=torch.float32)), collate(data.rows().examples(), pad_token_id=2))[
            0
        ] != pytest.approx(float(data.rows().reference_logps[0]), rel=1e-6)


class TestModel:
    def test_it_is_neither_saved_nor_trained(self) -> None:
        module = policy("model")
        names = set(module.state_dict())
        fit(module)
        assert set(module.state_dict()) == names
        assert len(list(module.parameters())) == len(list(tiny_model().parameters()))
        second = module.reference._second
        assert not any(parameter.requires_grad for parameter in second.parameters())
        assert not second.model.training
        assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), tiny_model().parameters(), strict=True))

    def test_another_model(self, model_folder: Path) -> None:
        reference = ReferencePolicy(model=str(model_folder))
        module = WithReference(tiny_model(seed=4, dtype=torch.float32), reference=reference)
        module.configure_model()
        assert reference.kind == "model"
        theirs = SFTModule(tiny_model(dtype=torch.float32))
        torch.testing.assert_close(reference.logps(module, tiny_batch()), own_logps(theirs, tiny_batch()), **CLOSE32)

    def test_another_vocabulary(self, tmp_path: Path) -> None:
        tiny_model(vocab_size=300).save_pretrained(tmp_path)
        module = WithReference(tiny_model(), reference=ReferencePolicy("model", model=str(tmp_path)))
        with pytest.raises(UserError, match="300 tokens, the policy 259"):
            module.configure_model()


class TestAdapter:
    def test_a_policy_without_one(self) -> None:
        with pytest.raises(UserError, match="has none"):
            policy("adapter").configure_model()

    def test_one_that_is_off(self) -> None:
        model = lora_model()
        model.base_model.disable_adapter_layers()
        with pytest.raises(UserError, match="switched off"):
            policy("adapter", build=lambda: model).configure_model()

    def test_one_that_is_merged(self) -> None:
        model = lora_model()
        model.merge_adapter()
        with pytest.raises(UserError, match="merged"):
            policy("adapter", build=lambda: model).configure_model()

    def test_a_base_that_trains(self) -> None:
        model = lora_model()
        model.get_base_model().lm_head.weight.requires_grad_(True)
        with pytest.raises(UserError, match=r"training changes it: .*lm_head"):
            policy("adapter", build=lambda: model).configure_model()

    def test_what_was_frozen_stays_frozen(self) -> None:
        module = policy("adapter", build=lora_model)
        frozen = [p for n, p in module.model.named_parameters() if "layers.0" in n]
        for parameter in frozen:
            parameter.requires_grad_(False)
        module.configure_model()
        module.reference.logps(module, tiny_batch())
        assert not any(parameter.requires_grad for parameter in frozen)
        assert any(parameter.requires_grad for parameter in module.model.parameters())

    def test_one_that_was_trained_is_told_of(self) -> None:
        module = policy(build=lora_model)
        with torch.no_grad():
            for parameter in module.model.parameters():
                parameter.add_(0.01 if parameter.requires_grad else 0.0)
        with pytest.warns(UserWarning, match="does not start at zero"):
            fit(module, steps=1)


def test_what_auto_means(tmp_path: Path) -> None:
    kinds = {}
    for name, build, options in [
        ("plain", tiny_model, {}),
        ("lora", lora_model, {}),
        ("tokens", tiny_model, {"needs_tokens": True}),
        ("lora, tokens", lora_model, {"needs_tokens": True}),
    ]:
        module = WithReference(build(), reference=ReferencePolicy(**options))
        module.configure_model()
        kinds[name] = module.reference.kind
    assert kinds == {"plain": "cached", "lora": "adapter", "tokens": "model", "lora, tokens": "adapter"}


def test_a_cache_that_an_adapter_makes_useless_is_refused() -> None:
    with pytest.raises(UserError, match="cache_dir 'somewhere' has no effect: the policy has an adapter"):
        WithReference(lora_model(), reference=ReferencePolicy(cache_dir="somewhere")).configure_model()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "none"},
        {"kind": "cached", "needs_tokens": True},
        {"kind": "adapter", "model": "somewhere"},
        {"kind": "model", "cache_dir": "somewhere"},
        {"model": "elsewhere", "cache_dir": "somewhere"},
        {"needs_tokens": True, "cache_dir": "somewhere"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"reference|kind='none' must be one of 'auto', 'cached'"):
        ReferencePolicy(**options)


def test_the_policy_learns_after_the_reference_under_autocast() -> None:
    """Casts that were made without gradient must not be used by the pass that trains."""
    batch, gradients = tiny_batch(), []
    for with_reference in (True, False):
        module = policy("adapter", build=lambda: lora_model(torch.float32))
        module.configure_model()
        with torch.autocast("cpu", torch.bfloat16):
            if with_reference:
                module.reference.logps(module, batch)
            losses, _ = SFTModule.example_losses(module, batch)
        losses.sum().backward()
        gradients.append([p.grad for p in module.model.parameters() if p.requires_grad])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
    assert any(bool(gradient.any()) for gradient in gradients[0])
