"""The data modules under a plain Trainer: what a training module sees of them."""

import json
import logging
import warnings
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from rowfiles import REAL_ROWS
from tiny import CHATML, answers, tiny_model, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from lit_ift.data import InstructionDataModule, TasksDataModule
from lit_ift.data.batch.sampler import LengthGroupedBatchSampler
from lit_ift.errors import UserError
from lit_ift.modules import SFTModule


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and no chat template of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


class Recorder(L.LightningModule):
    """Trains one number and remembers which rows came in which epoch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.given = tokenizer
        self.seen: dict[str, list[list[str]]] = {}

    @property
    def knows_tokenizer(self) -> bool:
        return self.given is not None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        if self.given is None:
            raise UserError("no tokenizer here")
        return self.given

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.given = tokenizer

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.seen.setdefault(f"train {self.current_epoch}", []).append(batch["row_ids"])
        return self.weight * (batch["labels"] != -100).sum()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.seen.setdefault("val", []).append(batch["row_ids"])

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self.seen.setdefault("test", []).append(batch["row_ids"])

    def predict_step(self, batch: dict, batch_idx: int) -> list[str]:
        return batch["row_ids"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def write(path: Path, count: int) -> str:
    rows = [{"instruction": f"question {i}", "input": "x" * (i % 7), "output": f"answer {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trainer(tmp_path: Path, **kwargs) -> L.Trainer:
    return L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, "num_sanity_val_steps": 0, **kwargs},
    )


def data(tmp_path: Path, **kwargs) -> InstructionDataModule:
    arguments = {"tokenizer": build_tokenizer(), "chat_template": "chatml", "batch_size": 4, **kwargs}
    return InstructionDataModule(write(tmp_path / "train.jsonl", 18), **arguments)


def test_fit_visits_every_row_once_an_epoch_in_a_new_order(tmp_path: Path) -> None:
    module = Recorder()
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, datamodule=data(tmp_path))
    assert isinstance(run.train_dataloader.sampler, LengthGroupedBatchSampler)
    epochs = [module.seen["train 0"], module.seen["train 1"]]
    for batches in epochs:
        assert [len(rows) for rows in batches] == [4, 4, 4, 4, 2]
        assert len({row for rows in batches for row in rows}) == 18
    assert epochs[0] != epochs[1]
    assert "val" not in module.seen
    again = Recorder()
    torch.manual_seed(99)  # the order hangs on the data module's seed alone
    trainer(tmp_path, max_epochs=2).fit(again, datamodule=data(tmp_path))
    assert again.seen == module.seen


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_at_an_epochs_end_continues_with_the_next_epochs_order(tmp_path: Path, num_workers: int) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(tmp_path, max_epochs=2).fit(whole, datamodule=data(tmp_path))
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=True)
    run.fit(first, datamodule=data(tmp_path, num_workers=num_workers))
    checkpoint = run.checkpoint_callback.best_model_path
    resumed = trainer(tmp_path, max_epochs=2)
    resumed.fit(second, datamodule=data(tmp_path, num_workers=num_workers), ckpt_path=checkpoint, weights_only=True)
    assert first.seen["train 0"] == whole.seen["train 0"]
    assert second.seen == {"train 1": whole.seen["train 1"]}


def test_validation_rows_from_a_file_or_a_fraction(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data(tmp_path, val=write(tmp_path / "val.jsonl", 5)))
    assert sorted(row.rpartition("/")[2] for rows in module.seen["val"] for row in rows) == [
        f"val.jsonl:{i}" for i in range(1, 6)
    ]
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data(tmp_path, val_fraction=0.3))
    train = {row for rows in module.seen["train 0"] for row in rows}
    val = {row for rows in module.seen["val"] for row in rows}
    assert val
    assert not train & val
    assert len(train | val) == 18


def test_test_and_predict_and_what_is_missing(tmp_path: Path) -> None:
    source = write(tmp_path / "other.jsonl", 6)
    module, run = Recorder(), trainer(tmp_path)
    everything = data(tmp_path, test=source, predict=source)
    run.test(module, datamodule=everything, verbose=False)
    assert sorted(row for rows in module.seen["test"] for row in rows) == [f"{source}:{i}" for i in range(1, 7)]
    predictions = run.predict(module, datamodule=everything)
    assert predictions == [[f"{source}:{i}" for i in range(1, 5)], [f"{source}:5", f"{source}:6"]]
    for command in (run.validate, run.test, run.predict):
        with pytest.raises(UserError, match=r"There is no \w+ data. Set data."):
            command(module, datamodule=data(tmp_path))
    with pytest.raises(UserError, match=r"There is no train data. Set data.train"):
        run.fit(
            module, datamodule=InstructionDataModule(test=source, tokenizer=build_tokenizer(), chat_template="chatml")
        )


def test_overfit_batches_repeats_the_same_batches(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(module, datamodule=data(tmp_path))
    assert module.seen["train 0"] == module.seen["train 1"]
    assert [len(rows) for rows in module.seen["train 0"]] == [4, 4]


def test_tokenizer_comes_from_the_module_or_goes_to_it(tmp_path: Path) -> None:
    own = build_tokenizer()
    module = Recorder(own)
    datamodule = data(tmp_path, tokenizer=None)
    trainer(tmp_path, max_steps=1).fit(module, datamodule=datamodule)
    assert datamodule.tokenizer is own
    assert "<|im_start|>" in own.chat_template  # set on the one that will be exported

    module = Recorder(None)
    datamodule = data(tmp_path)
    trainer(tmp_path, max_steps=1).fit(module, datamodule=datamodule)
    assert module.tokenizer is datamodule.tokenizer

    stranger = build_tokenizer()
    stranger.add_tokens(["<new>"])
    with pytest.raises(UserError, match=r"another vocabulary than the model's tokenizer"):
        trainer(tmp_path, max_steps=1).fit(Recorder(stranger), datamodule=data(tmp_path))

    stranger = build_tokenizer()
    stranger.chat_template = "{{ messages }}"
    own.chat_template = "{{ messages[0] }}"
    with pytest.raises(UserError, match=r"another chat template than the model's tokenizer"):
        trainer(tmp_path, max_steps=1).fit(
            Recorder(stranger), datamodule=data(tmp_path, tokenizer=own, chat_template=None)
        )


def test_tasks_under_a_trainer(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra 'tasks'")
    module = Recorder()
    datamodule = TasksDataModule(
        {"letter_counting": {"min_words": 1, "max_words": 3}},
        train_size=10,
        val_size=4,
        tokenizer=build_tokenizer(),
        chat_template="chatml",
    )
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=datamodule)
    assert sorted(row for rows in module.seen["val"] for row in rows) == [f"letter_counting/val#{i}" for i in range(4)]
    checkpoint = datamodule.hparams
    assert checkpoint["tasks"] == {"letter_counting": {"min_words": 1, "max_words": 3}}


@pytest.mark.parametrize("name", ["oasst", "codegen"])
def test_real_conversations(name: str) -> None:
    source = REAL_ROWS / "instruct" / f"{name}.jsonl"
    tokenizer = build_tokenizer()
    module = InstructionDataModule(
        val=str(source), tokenizer=tokenizer, chat_template="chatml", max_length=100_000, max_rows=8
    )
    module.setup("validate")
    report = module.reports["val"]
    assert report.rows_kept == report.rows_read == report.rows_with_stop == 8
    records = module.records("val")
    for example, record in zip(answers(module.datasets["val"]), records, strict=True):
        targets = [label for label in example.labels if label != -100]
        texts = [message["content"] for message in record.data["messages"] if message["role"] == "assistant"]
        assert tokenizer.decode(targets) == "".join(f"{text}<|im_end|>" for text in texts)


class CrashError(Exception):
    pass


class SaveAt(L.Callback):
    """Writes a checkpoint where it is told to, and then ends the run as a crash would."""

    def __init__(self, path: Path, hook: str, batches: int) -> None:
        self.path, self.batches = path, batches
        setattr(self, hook, self.save)

    def save(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.processed == self.batches and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            raise CrashError


def lines(module: Recorder) -> list[list[str]]:
    """All training batches of a run in their order, whatever Lightning counted as an epoch."""
    return [rows for key, batches in module.seen.items() if key.startswith("train") for rows in batches]


class LoadsLate(SingleDeviceStrategy):
    """Restores the checkpoint after the loaders were made, as sharding strategies do."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


class Scheduled(Recorder):
    """Asks for the length of the run, for which Lightning makes the training loader early."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


CUTS = [
    ("on_train_batch_end", 2),
    ("on_train_batch_end", 5),
    ("on_train_epoch_end", 5),
    ("on_validation_end", 2),
    ("on_validation_end", 5),
    ("on_train_batch_end", 8),
    ("on_validation_end", 9),
    ("on_train_epoch_start", 5),
]
# Worker processes take long to start, so they get the cases that differ for them.
CASES = [(*cut, late, 0) for cut in CUTS for late in (False, True)]
CASES += [("on_train_batch_end", 2, True, 1), ("on_train_epoch_end", 5, True, 1), ("on_train_batch_end", 8, False, 1)]


@pytest.mark.parametrize(("hook", "batches", "late", "num_workers"), CASES)
def test_a_resumed_run_sees_the_batches_that_an_unbroken_one_would(
    tmp_path: Path, hook: str, batches: int, late: bool, num_workers: int
) -> None:
    path = tmp_path / "cut.ckpt"

    def fit(module: Recorder, callback: L.Callback | None = None, ckpt_path: Path | None = None) -> list[list[str]]:
        strategy = LoadsLate(device=torch.device("cpu")) if late else "auto"
        validates = {
            "val_check_interval": 1.0 if batches == 5 else 0.5,
            "callbacks": [callback] if callback else [],
            "strategy": strategy,
        }
        source = data(tmp_path, num_workers=num_workers, val=write(tmp_path / "val.jsonl", 5))
        try:
            trainer(tmp_path, max_epochs=3, **validates).fit(
                module, datamodule=source, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None
            )
        except CrashError:
            assert callback is not None
        return lines(module)

    with warnings.catch_warnings():
        warnings.simplefilter("error", PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*(num_workers|persistent_workers|logging interval)")
        whole = fit(Scheduled())
        assert len(whole) == 15
        first = fit(Scheduled(), SaveAt(path, hook, batches))
        second = fit(Scheduled(), ckpt_path=path)
    assert first == whole[:batches]
    assert second == whole[batches:]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_twice_and_after_max_steps_ended_an_epoch_early(tmp_path: Path, accumulate: int) -> None:
    whole = Recorder()
    trainer(tmp_path, max_epochs=4, accumulate_grad_batches=accumulate).fit(whole, datamodule=data(tmp_path))
    seen, path = [], None
    for max_steps in (3, 4, 7):  # epochs of 5 batches, and of 3 steps with accumulation
        module = Recorder()
        run = trainer(tmp_path, max_steps=max_steps, max_epochs=99, accumulate_grad_batches=accumulate)
        run.fit(module, datamodule=data(tmp_path), ckpt_path=path, weights_only=True if path else None)
        path = tmp_path / f"{max_steps}.ckpt"
        run.save_checkpoint(path)
        seen += lines(module)
    assert seen == lines(whole)[: len(seen)]
    assert len(seen) == {1: 7, 2: 12}[accumulate]


def test_resuming_inside_an_epoch_needs_the_same_order(tmp_path: Path) -> None:
    inside, end = tmp_path / "inside.ckpt", tmp_path / "end.ckpt"
    for path, batches in ((inside, 2), (end, 5)):
        run = trainer(tmp_path, max_epochs=2, callbacks=[SaveAt(path, "on_train_batch_end", batches)])
        with pytest.raises(CrashError):
            run.fit(Recorder(), datamodule=data(tmp_path))
    state = torch.load(inside, weights_only=True)["InstructionDataModule"]
    assert (state["epoch"], state["batches_done"], state["world_size"], state["rows"]) == (0, 2, 1, 18)
    for changes, named in (
        ({"batch_size": 3}, r"data.batch_size 4 \(now 3\)"),
        ({"seed": 1}, r"data.seed or data.order_seed 0 \(now 1\)"),
        ({"max_rows": 17}, r"number of training rows 18 \(now 17\), checksum of the lengths"),
        ({"group_by_length": False}, r"data.group_by_length True \(now False\)"),
    ):
        with pytest.raises(UserError, match=rf"inside epoch 0, after 2 batches of a run with {named}"):
            trainer(tmp_path, max_epochs=2).fit(
                Recorder(), datamodule=data(tmp_path, **changes), ckpt_path=inside, weights_only=True
            )
    other = data(tmp_path)
    other.setup("fit")
    other.load_state_dict({**state, "world_size": 2})
    with pytest.raises(UserError, match=r"number of processes 2 \(now 1\)"):
        other.train_dataloader()
    # Two processes of 2 rows a batch had the same batches as one of 4.
    other = data(tmp_path)
    other.setup("fit")
    other.load_state_dict({**state, "world_size": 2, "batch_size": 2})
    rest = [batch["row_ids"] for batch in other.train_dataloader()]
    assert len(rest) == 3
    fresh = data(tmp_path)
    fresh.setup("fit")
    assert rest == [batch["row_ids"] for batch in fresh.train_dataloader()][2:]
    # At an epoch's end another batch size is nothing to refuse, and evaluation never minds.
    module = Recorder()
    trainer(tmp_path, max_epochs=2).fit(
        module, datamodule=data(tmp_path, batch_size=9), ckpt_path=end, weights_only=True
    )
    assert [len(rows) for rows in lines(module)] == [9, 9]
    validated = data(tmp_path, batch_size=3, val=write(tmp_path / "val.jsonl", 5))
    trainer(tmp_path).validate(module, datamodule=validated, ckpt_path=inside, weights_only=True, verbose=False)


def test_a_second_model_gets_its_own_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = build_tokenizer(), build_tokenizer()
    second.add_tokens(["question"])
    source = data(tmp_path, tokenizer=None)
    trainer(tmp_path, max_steps=1).fit(Recorder(first), datamodule=source)
    dataset = source.datasets["train"]
    with caplog.at_level(logging.INFO, logger="lit_ift"):
        trainer(tmp_path, max_steps=1).fit(Recorder(build_tokenizer()), datamodule=source)
        assert source.datasets["train"] is dataset
        assert "encoded again" not in caplog.text
        trainer(tmp_path, max_steps=1).fit(Recorder(second), datamodule=source)
    assert "encoded again" in caplog.text
    assert source.tokenizer is second
    assert second.convert_tokens_to_ids("question") in answers(source.datasets["train"])[0].input_ids
    assert source.reports["train"].rows_kept == 18

    source = data(tmp_path, tokenizer=None, chat_template=None)
    for end in ("<|im_end|>\n", "<|im_end|> \n"):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = CHATML.replace("<|im_end|>\n", end)
        trainer(tmp_path, max_steps=1).fit(Recorder(tokenizer), datamodule=source)
        assert tokenizer.decode(answers(source.datasets["train"])[0].input_ids).endswith(end)


def test_predict_answers_rows_without_answers(tmp_path: Path) -> None:
    files = {
        "a.jsonl": [{"prompt": "hello"}, {"prompt": "hello", "completion": "world"}],
        "b.jsonl": [{"messages": [{"role": "user", "content": "what is this"}]}],
        "c.jsonl": [{"instruction": "say", "input": "x"}],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [str(tmp_path / row_id) for row_id in ("a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "c.jsonl:1")]
    module = SFTModule(tiny_model("llama"), generation={"max_new_tokens": 4})
    source = InstructionDataModule(
        predict=[str(tmp_path / name) for name in files],
        tokenizer=tiny_tokenizer(),
        chat_template="chatml",
        batch_size=3,
        max_length=80,
    )
    given = [answer for batch in trainer(tmp_path).predict(module, datamodule=source) for answer in batch]
    assert [answer["row_id"] for answer in given] == ids
    header = "<|im_end|>\n<|im_start|>assistant\n"
    assert [answer["prompt"] for answer in given] == [
        f"<|im_start|>user\n{text}{header}" for text in ("hello", "hello", "what is this", "say\n\nx")
    ]
    assert [answer["expected"] for answer in given] == ["", "world", "", ""]
    assert given[0]["answer"] == given[1]["answer"]  # one prompt, one answer, whichever way it came
    # A dummy row has neither targets nor a row id.
    batch = next(iter(source.predict_dataloader()))
    batch["row_ids"][2] = ""
    assert [answer["row_id"] for answer in module.predict_step(batch, 0)] == ids[:2]


def batch_shapes(loader: object) -> list[tuple[int, ...]]:
    return [tuple(batch["input_ids"].shape) for batch in loader]  # type: ignore[attr-defined]


def test_packing_changes_neither_batches_nor_steps(tmp_path: Path) -> None:
    """The same examples in every batch, the same losses and gradient norms, fewer positions."""

    train = tmp_path / "rows.jsonl"
    pairs = [{"prompt": "x" * (1 + 37 * i % 180), "completion": "y" * (1 + i % 7)} for i in range(18)]
    train.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def fit(**options) -> tuple[list[list[str]], list[tuple[float, ...]], int]:
        rows: list[list[str]] = []
        steps: list[tuple[float, ...]] = []
        positions = 0

        class Listener(L.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
                nonlocal positions
                rows.append(batch["row_ids"])
                positions += batch["input_ids"].numel()
                assert ("sequence_ids" in batch) == bool(options)
                if trainer.global_step > len(steps):
                    names = ("train/loss", "train/grad_norm")
                    steps.append(tuple(float(trainer.callback_metrics[name]) for name in names))

        source = InstructionDataModule(
            str(train), val=str(train), tokenizer=tiny_tokenizer(), batch_size=4, group_by_length=False, **options
        )
        model = tiny_model("llama")
        run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[Listener()])
        run.fit(SFTModule(model), datamodule=source)
        steps.append((float(run.callback_metrics["val/loss"]),))
        return rows, steps, positions

    rows, steps, positions = fit()
    packed_rows, packed_steps, packed_positions = fit(packing=True)
    assert packed_rows == rows
    assert len(steps) == 7
    for ours, expected in zip(packed_steps, steps, strict=True):
        assert ours == pytest.approx(expected, rel=1e-6)
    assert packed_positions < 0.9 * positions


def test_packed_loaders(tmp_path: Path) -> None:
    source = write(tmp_path / "other.jsonl", 6)
    module = data(tmp_path, packing=True, padding_free=True, val=source, predict=source, batch_size=9)
    module.setup()
    assert [rows for rows, _ in batch_shapes(module.train_dataloader())] == [1, 1]
    assert [rows for rows, _ in batch_shapes(module.val_dataloader())] == [1]
    assert [rows for rows, _ in batch_shapes(module.predict_dataloader())] == [6]  # each has its own answer


def test_flash_attention_gets_one_row(tmp_path: Path) -> None:
    class Holder(Recorder):
        def configure_model(self) -> None:
            self.model = tiny_model("llama")
            self.model.config._attn_implementation_internal = "flash_attention_2"

        def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
            assert len(batch["input_ids"]) == 1
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, max_epochs=1).fit(Holder(), datamodule=data(tmp_path, packing=True))
    with pytest.raises(UserError, match=r"data.padding_free=false: the model's flash attention"):
        trainer(tmp_path, max_epochs=1).fit(Holder(), datamodule=data(tmp_path, packing=True, padding_free=False))


@pytest.mark.parametrize("packing", [False, True])
def test_batches_by_token_budget(tmp_path: Path, packing: bool) -> None:
    options = {"batch_size": None, "tokens_per_batch": 150, "packing": packing, "num_workers": 1}
    whole, first, second = Recorder(), Recorder(), Recorder()
    source = data(tmp_path, val=write(tmp_path / "val.jsonl", 5), **options)
    run = trainer(tmp_path, max_epochs=3)
    run.fit(whole, datamodule=source)
    lengths = dict(
        zip((row.row_id for row in source.datasets["train"].rows), source.datasets["train"].lengths, strict=True)
    )
    for epoch in range(3):
        batches = whole.seen[f"train {epoch}"]
        assert len(batches) == run.num_training_batches
        assert sorted(row for rows in batches for row in rows) == sorted(lengths)
        assert all(
            (sum(lengths[r] for r in rows) if packing else max(lengths[r] for r in rows) * len(rows)) <= 150
            for rows in batches
        )
    assert len(whole.seen["train 0"]) > 3
    assert whole.seen["train 0"] != whole.seen["train 1"]

    path = tmp_path / "inside.ckpt"
    stop = run.num_training_batches + 2
    with pytest.raises(CrashError):
        trainer(tmp_path, max_epochs=3, callbacks=[SaveAt(path, "on_train_batch_end", stop)]).fit(
            first, datamodule=data(tmp_path, **options)
        )
    trainer(tmp_path, max_epochs=3).fit(second, datamodule=data(tmp_path, **options), ckpt_path=path, weights_only=True)
    assert lines(first) + lines(second) == lines(whole)
    for changes, named in (
        ({"tokens_per_batch": 170}, r"data.tokens_per_batch 150 \(now 170\)"),
        ({"packing": not packing}, rf"data.packing {packing} \(now {not packing}\)"),
        ({"tokens_per_batch": None, "batch_size": 4}, r"data.batch_size None \(now 4\), data.tokens_per_batch 150"),
    ):
        with pytest.raises(UserError, match=named):
            trainer(tmp_path, max_epochs=3).fit(
                Recorder(), datamodule=data(tmp_path, **options | changes), ckpt_path=path, weights_only=True
            )

    same = Recorder()
    trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(same, datamodule=data(tmp_path, **options))
    assert same.seen["train 0"] == same.seen["train 1"]
    assert len(same.seen["train 0"]) == 2


def test_weighted_sources(tmp_path: Path) -> None:
    class Weighted(InstructionDataModule):
        def train_groups(self) -> list[tuple[int, float]]:
            return [(6, 2.0), (12, 0.5)]

    source = Weighted(write(tmp_path / "train.jsonl", 18), tokenizer=build_tokenizer(), chat_template="chatml")
    module = Recorder()
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=source)
    epochs = [Counter(row for rows in module.seen[f"train {epoch}"] for row in rows) for epoch in range(2)]
    names = [row.row_id for row in source.datasets["train"].rows]
    assert [epochs[0][name] for name in names[:6]] == [2] * 6
    assert [epochs[0][name] + epochs[1][name] for name in names[6:]] == [1] * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_per_batch": 100}, r"data.batch_size=4 and data.tokens_per_batch=100 both say"),
        ({"batch_size": None, "tokens_per_batch": 0}, r"data.tokens_per_batch=0 must be at least 1"),
        ({"padding_free": True}, r"data.padding_free=True has no effect without data.packing"),
        (
            {"batch_size": None, "tokens_per_batch": 99, "group_by_length": False},
            r"data.group_by_length=False has no effect: data.tokens_per_batch without data.packing always groups",
        ),
        (
            {"batch_size": None, "tokens_per_batch": 99, "packing": True, "group_by_length": True},
            r"data.group_by_length=True has no effect: data.packing samples all lengths",
        ),
    ],
)
def test_options_of_batches_that_contradict(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(tmp_path, **options)
