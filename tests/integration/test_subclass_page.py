"""The examples of docs/subclass.md run as written, on a tiny model."""

import re
import runpy
import shlex
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tiny import QUIET_TRAINER

from lit_ift.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "subclass.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def here(tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, rows and a table."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my.jsonl").write_bytes(data_file.read_bytes())
    with closing(sqlite3.connect(tmp_path / "faq.db")) as connection:
        connection.execute("CREATE TABLE faq (question TEXT, answer TEXT)")
        connection.executemany("INSERT INTO faq VALUES (?, ?)", [(f"Say {i}.", "b" * i) for i in range(1, 9)])
        connection.commit()
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-ift"])
    return tmp_path


def test_every_block_is_run() -> None:
    assert set(FILES) == {"my_loss.py", "my_input.py", "my_data.py", "train.py"}
    assert len(FILES) == PAGE.count("```python")
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, here: Path, model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = shlex.split(command)[1:]
    small = {"data.init_args.max_length": 512, "data.init_args.tokenizer": model_folder}
    if words[0] == "fit":
        small |= {
            "model.init_args.model": model_folder,
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",
            "trainer.max_steps": 2,
            "trainer.limit_val_batches": 2,
            "trainer.val_check_interval": 1.0,
        }
    assert main([*words, *(word for name, value in small.items() for word in (f"--{name}", str(value)))]) == 0
    if words[0] == "data":
        assert re.search(r"rows read +8 ", capsys.readouterr().out)
        return
    metrics = (here / "checkpoints/runs/version_0/metrics.csv").read_text()
    assert "train/loss" in metrics
    assert ("train/mean_weight" in metrics) is ("my_loss" in command)


def test_a_plain_trainer(here: Path, model_folder: Path) -> None:
    code = FILES["train.py"].replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model_folder))
    small = ", ".join(f"{name}={value!r}" for name, value in {**QUIET_TRAINER, "max_steps": 2}.items())
    (here / "train.py").write_text(code.replace("L.Trainer(max_steps=100)", f"L.Trainer({small})"))
    runpy.run_path(str(here / "train.py"))
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in (here / "tuned").iterdir()}


def test_the_input_hides_answers_in_training_alone(here: Path, model_folder: Path) -> None:
    from my_input import TokenDropout
    from tiny import tiny_batch, tiny_model

    from lit_ift import SFTModule

    module, batch = SFTModule(tiny_model()), tiny_batch()
    dropout, answers = TokenDropout(rate=1.0), batch["labels"] != -100
    hidden = dropout(module.train(), batch).embeddings
    assert (hidden[answers] == 0).all()
    assert (hidden[~answers] == module.embed(batch["input_ids"])[~answers]).all()
    assert (dropout(module.eval(), batch).embeddings == module.embed(batch["input_ids"])).all()
