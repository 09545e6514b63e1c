"""`configs/sft/as-trl.yaml` is TRL's SFTTrainer: the same tokens, losses, gradients and learning rates."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from commands import run
from tiny import CHATML
from transformers import AutoTokenizer, TrainerCallback

from lit_ift import SFTModule
from lit_ift.constants import IGNORE_INDEX

CONFIGS = Path(__file__).parents[2] / "configs/sft"
NO_TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""As docs/coming-from.md has it."""
MARKED = CHATML.replace(
    "\n{{ message['content'] }}<|im_end|>\n",
    "\n{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\\n' }}",
)
STEPS = 5
ROWS_A_STEP = 8
NUM_ROWS = STEPS * ROWS_A_STEP - 3  # The last step is short.


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def talk(i: int) -> list[dict[str, str]]:
    turns = [user(f"Say {i} times b"), assistant("b" * (1 + i % 7))]
    return [*turns, user("and" + "?" * (i % 3)), assistant(f"c{i}" * (1 + i % 4))]


def completion(i: int) -> dict[str, Any]:
    return {"prompt": talk(i)[:3], "completion": talk(i)[3:]}


CASES: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    # A row, options of ours besides the overlay, fields of SFTConfig besides its defaults.
    "messages": (lambda i: {"messages": talk(i)}, {}, {}),
    "dft": (lambda i: {"messages": talk(i)}, {"model.init_args.loss": "dft"}, {"loss_type": "dft"}),
    "completions": (completion, {"train_on": "completion"}, {}),
    "assistant_only_loss": (
        lambda i: {"messages": talk(i)},
        {"train_on": "assistant", "chat_template": MARKED},
        {"assistant_only_loss": True},
    ),
    "completions as texts": (
        lambda i: {"prompt": f"Say {i} times b:", "completion": " " + "b" * (1 + i % 7)},
        {"train_on": "completion", "chat_template": NO_TEMPLATE},
        {},
    ),
    "texts": (lambda i: {"text": f"{i} mills " * (1 + i % 9)}, {"max_length": "50"}, {"max_length": 50}),
}


def ours(
    folder: Path, model: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], list[Any], list[dict[str, str]]]:
    """Numbers of the rows in the order of training, the rows as they were trained on, and a line of metrics a step."""
    order: list[str] = []
    rows: dict[str, Any] = {}

    def note(module: SFTModule, *_: Any) -> None:
        order.extend(module.latest_losses[0])
        data = module.trainer.datamodule  # type: ignore[attr-defined]
        rows.update({row.row_id: row.sides["answer"] for row in data.datasets["train"].rows})

    monkeypatch.setattr(SFTModule, "on_train_batch_end", note, raising=False)
    words = {name if "." in name else f"data.init_args.{name}": value for name, value in options.items()}
    words |= {"model.init_args.model": str(model), "data.init_args.train": "rows.jsonl"}
    words |= {"data.init_args.val_fraction": "0", "data.init_args.batch_size": "2"}
    words |= {"trainer.accumulate_grad_batches": str(ROWS_A_STEP // 2), "trainer.precision": "32-true"}
    words |= {"trainer.accelerator": "cpu", "trainer.default_root_dir": str(folder), "export.enabled": "false"}
    configs = ["--config", CONFIGS / "smollm2-135m.yaml", "--config", CONFIGS / "as-trl.yaml"]
    assert run("fit", *configs, *(word for name, value in words.items() for word in (f"--{name}", value))) == 0
    with (folder / "runs/version_0/metrics.csv").open() as file:
        metrics = [line for line in csv.DictReader(file) if line["train/loss"]]
    return [int(row_id.split(" ")[0].rpartition(":")[2]) - 1 for row_id in order], [rows[i] for i in order], metrics


def theirs(
    folder: Path, model: Path, rows: list[dict[str, Any]], fields: dict[str, Any], template: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """The rows as TRL trains on them in the order given, and what it logs of each step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    logged: list[dict[str, float]] = []

    class Logs(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            logged.append(dict(logs))

    # Defaults of SFTConfig, but for a CPU without bfloat16, for epochs and batches, and for what it writes.
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        num_train_epochs=1,
        per_device_train_batch_size=ROWS_A_STEP // 2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **fields,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template or tokenizer.chat_template
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(str(model), config, train_dataset=data, processing_class=tokenizer, callbacks=[Logs()])
    trainer.train()
    return list(trainer.train_dataset), [line for line in logged if "loss" in line]


@pytest.mark.parametrize("case", CASES)
def test_losses_of_five_steps(case: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In micro-batches of 2 here and of 4 there: both are one mean over all tokens of a step."""
    make, options, fields = CASES[case]
    monkeypatch.chdir(tmp_path)
    rows = [make(i) for i in range(NUM_ROWS)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    order, trained, metrics = ours(tmp_path, model_folder, options, monkeypatch)
    template = options["chat_template"] if case == "assistant_only_loss" else None
    given, logged = theirs(tmp_path, model_folder, [rows[i] for i in order], fields, template)
    assert len(given) == len(trained) == NUM_ROWS
    for mine, other in zip(trained, given, strict=True):
        assert mine.input_ids == other["input_ids"]
        # Theirs name the first token too, which no position predicts, and which does not count.
        assert [IGNORE_INDEX, *other["labels"][1:]] == mine.labels
    assert len(metrics) == len(logged) == STEPS
    for mine, other in zip(metrics, logged, strict=True):
        assert float(mine["train/loss"]) == pytest.approx(other["loss"], abs=1e-6)
        assert float(mine["train/grad_norm"]) == pytest.approx(other["grad_norm"], rel=1e-5)
        assert float(mine["train/lr"]) == pytest.approx(other["learning_rate"], rel=1e-6)


def test_the_newline_after_an_answer_is_what_train_on_assistant_leaves_out(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's completion is all that comes after the prompt, and ChatML writes a newline after ``<|im_end|>``."""
    from lit_ift import InstructionDataModule

    rows = "".join(json.dumps(completion(i)) + "\n" for i in range(3))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    counts = {}
    for train_on in ("assistant", "completion"):
        data = InstructionDataModule(
            train=str(tmp_path / "rows.jsonl"), tokenizer=str(model_folder), train_on=train_on, cache=False
        )
        data.setup("fit")
        counts[train_on] = data.reports["train"].target_tokens
    assert counts["completion"] - counts["assistant"] == 3
