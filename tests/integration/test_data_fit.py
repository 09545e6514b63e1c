"""The data modules under a plain Trainer: what a training module sees of them."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from lit_ift.data import InstructionDataModule, TasksDataModule
from lit_ift.data.sampler import LengthGroupedBatchSampler
from lit_ift.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "instruct"


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


@pytest.mark.parametrize("name", ["alpaca", "dolly", "oasst", "codegen"])
def test_real_conversations(name: str) -> None:
    source = SHARED / f"{name}_val.jsonl.gz"
    if not source.exists():
        pytest.skip(f"needs the data folder next to the repository ({source} is missing)")
    tokenizer = build_tokenizer()
    module = InstructionDataModule(
        val=str(source), tokenizer=tokenizer, chat_template="chatml", max_length=100_000, max_rows=60
    )
    module.setup("validate")
    report = module.reports["val"]
    assert report.rows_kept == report.rows_read == report.rows_with_stop == 60
    for example, (conversation, _) in zip(
        module.datasets["val"].examples, module.parse_splits(["val"])["val"].rows, strict=True
    ):
        targets = [label for label in example.labels if label != -100]
        answers = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
        assert tokenizer.decode(targets) == "".join(f"{answer}<|im_end|>" for answer in answers)
