"""Answers that are kept while a model is trained."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tiny import QUIET_TRAINER, tiny_batch, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader

from lit_ift.callbacks import Samples
from lit_ift.callbacks.sample_records import Answer, log_samples, samples_page, write_samples
from lit_ift.errors import RowError, UserError
from lit_ift.modules import SFTModule

pytestmark = pytest.mark.slow

HOSTILE = "</td><script>alert(1)</script> | **b** [red]x[/red]\n# y\u202e\x1b[31m"


def answer(**changes: Any) -> Answer:
    values = {"step": 0, "task": "prompts", "row_id": "p[0]", "question": "Who?", "expected": None, "answer": "I"}
    return Answer(**{**values, "score": None, **changes})


def fit(folder: Path, samples: Samples | None, **options: Any) -> SFTModule:
    torch.manual_seed(0)
    module = SFTModule(tiny_model(dtype=torch.float32))
    module.tokenizer = tiny_tokenizer()
    logger = CSVLogger(folder, name=None, version="")
    callbacks = [] if samples is None else [samples]
    trainer = L.Trainer(**{**QUIET_TRAINER, "logger": logger}, callbacks=callbacks, **{"max_epochs": 1, **options})
    batches = [tiny_batch(2, first=2 * i) for i in range(6)]
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


def test_samples_are_taken_every_n_steps_and_change_no_weight(tmp_path: Path) -> None:
    rows: list[Any] = ["Who?", {"instruction": "What?", "output": "That."}]
    samples = Samples(rows, every_n_steps=2, max_new_tokens=3)
    module = fit(tmp_path, samples, accumulate_grad_batches=2)
    taken = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["question"], row["expected"]) for row in taken] == [
        (step, *asked) for step in (0, 2, 3) for asked in (("Who?", None), ("What?", "That."))
    ]
    assert not (tmp_path / "answers.json").exists()  # Nothing was scored.
    plain = fit(tmp_path / "plain", None, accumulate_grad_batches=2)
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_file_of_rows_is_asked_up_to_a_bound(tmp_path: Path, data_file: Path) -> None:
    samples = Samples(str(data_file), max_prompts=2, max_new_tokens=2)
    fit(tmp_path, samples)
    assert [(row.step, row.question, row.expected) for row in samples.shown] == [
        (step, f"Say {i} times b", "b" * (1 + i)) for step in (0, 6) for i in (0, 1)
    ]


def test_a_resumed_run_goes_on_with_its_samples(tmp_path: Path) -> None:
    first = Samples(["Who?"], every_n_steps=1, max_new_tokens=2)
    fit(tmp_path, first, max_steps=2)
    again = Samples(["Who?"], every_n_steps=1, max_new_tokens=2)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (again.before, again.shown) == (first.before, first.shown)
    assert [row.step for row in again.shown] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"every_n_steps": 2}, UserError, "samples.every_n_steps=2 has nothing to ask: give samples.prompts"),
        ({"prompts": "nowhere.jsonl"}, UserError, "nowhere.jsonl"),
        ({"prompts": ["Who?", ""]}, RowError, r"samples.prompts\[1\]"),
        ({"prompts": [{"inpt": "Who?"}]}, UserError, r"samples.prompts\[0\]"),
        ({"prompts": ["Who?"], "max_new_tokens": 256}, UserError, "leaves no room for a prompt"),
        ({"prompts": ["x" * 300]}, RowError, "tokens"),
    ],
)
def test_what_cannot_be_asked_is_told_before_training(
    tmp_path: Path, options: dict[str, Any], error: type, words: str
) -> None:
    samples = Samples(**options)
    with pytest.raises(error, match=words):
        fit(tmp_path, samples)
    assert samples.shown == []


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"samples.every_n_steps=0 must be at least 1"):
        Samples(every_n_steps=0)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    shown = [answer(question=HOSTILE, answer=HOSTILE, expected=HOSTILE, row_id=HOSTILE, score=0.5)]
    page = Tags()
    page.feed(samples_page(shown))
    assert "script" not in page.tags
    assert page.text.count("</td><script>alert(1)</script>") == 4
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    write_samples(tmp_path, shown)
    assert json.loads((tmp_path / "samples.jsonl").read_text())["answer"] == HOSTILE


def test_a_page_has_an_article_a_prompt_with_its_answers_in_order() -> None:
    shown = [answer(step=s, row_id=r, answer=f"{r} at {s}") for s in (0, 5) for r in ("a", "b")]
    page = samples_page(shown)
    assert page.count("<article>") == 2
    assert page.index("a at 0") < page.index("a at 5") < page.index("b at 0") < page.index("b at 5")


def test_tensorboard_gets_text_in_which_markup_is_text(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name=None, version="")
    shown = [answer(question=HOSTILE, answer="fine")]
    log_samples([logger], shown, shown, {"tasks/mean": 0.5}, 3, None)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("samples/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 3
    assert all(line.startswith("    ") for line in text.splitlines() if line and not line.startswith("**"))
    assert "    </td><script>alert(1)</script> | **b** [red]x[/red]\n    # y\\u202e" in text
    assert [scalar.value for scalar in events.Scalars("tasks/mean")] == [0.5]


def test_tables_go_to_loggers_that_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
    from mlflow.tracking import MlflowClient

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    shown = [answer(), answer(step=2, answer=HOSTILE)]
    tables = WandbLogger(project="lit", save_dir=tmp_path)
    pages = MLFlowLogger("lit", tracking_uri=f"file:{tmp_path / 'mlruns'}")
    log_samples([tables, pages], shown, shown[1:], {}, 2, "<p>page</p>")
    wandb.finish()
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    assert json.loads(table.read_text())["data"] == [
        [0, "prompts", "p[0]", "Who?", None, "I", None],
        [2, "prompts", "p[0]", "Who?", None, HOSTILE, None],
    ]
    artifacts = MlflowClient(f"file:{tmp_path / 'mlruns'}").list_artifacts(pages.run_id)
    assert [artifact.path for artifact in artifacts] == ["samples.html"]
