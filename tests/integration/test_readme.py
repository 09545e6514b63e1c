"""The commands of README and docs/runs.md, and README's example, run as written, on a tiny model and tiny data."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rowfiles import feedback_rows, jsonl

from lit_ift.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL) for line in block.splitlines() if line.strip()
]


def test_every_command_is_covered() -> None:
    # A block of another kind would not be run.
    assert set(re.findall(r"^```(\w+)$", PAGES, re.MULTILINE)) == {"bash", "python", "yaml"}
    assert {shlex.split(command)[0] for command in COMMANDS} == {"make", "lit-ift"}


@pytest.fixture
def here(tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository to a command: configs, and the user's data and own loss."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my.jsonl").write_bytes(data_file.read_bytes())
    (tmp_path / "pairs.jsonl").write_bytes(jsonl(feedback_rows("preference", 12)))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow asks for it, unless a server is named.
    monkeypatch.setenv("WANDB_MODE", "offline")  # W&B asks for an account, unless it was offline before in the process.
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(command: str, model_folder: Path) -> list[str]:
    """Options that make a command small; they come last, so they win."""
    if command.startswith("lit-ift data") and "--config" not in command:
        return ["--tokenizer", str(model_folder), "--max_length", "512"]
    options = {
        "model.init_args.model": model_folder,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 2,
        "trainer.val_check_interval": 1.0,
        "data.init_args.max_length": 512,  # The tiny tokenizer has one token a byte.
    }
    if "quickstart" in command:
        options |= {"samples.items_per_task": 2, "data.init_args.train_size": 16, "data.init_args.val_size": 4}
    else:
        options |= {"data.init_args.batch_size": 4, "data.init_args.val_fraction": 0.3}
        if "--data.train " not in command:
            options["data.init_args.train"] = "my.jsonl"
    if "predict" in command:
        options["model.init_args.generation"] = "{max_new_tokens: 4}"
    if "MLFlowLogger" in command:  # MLflow keeps a store of a relative path open for the whole process.
        options["trainer.logger.tracking_uri"] = f"file:{Path.cwd() / 'mlruns'}"
    if "--trainer.devices" in command:
        options["trainer.devices"] = 2
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("lit-ift")])
def test_lit_ift_commands(
    command: str, here: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = [*shlex.split(command)[1:], *tiny(command, model_folder)]
    monkeypatch.setattr(sys, "argv", ["lit-ift"])
    if words[0] == "data":
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert {"check": "rows read", "preview": "Say 1 times b", "build": "cached in"}[words[1]] in shown
        assert (here / "report.html").is_file() is ("--html" in command)
        return
    if words[0] == "frozen-lake":
        budget = ("updates", "tuning_seeds", "seeds", "points")
        small = [word for name in budget for word in (f"--protocol.{name}", "2")]
        small += ["--protocol.learning_rates", "[0.01]", "--start.updates", "2", "--reinforce.games", "2"]
        # tests/configs runs it with all methods. Drawing one game takes as long as everything else.
        assert main([*shlex.split(command)[1:], *small, "--ppo.games", "2", "--methods", "[sft, ift]"]) == 0
        assert (here / "checkpoints/frozen-lake/summary.png").is_file()
        games = {path.name for path in (here / "checkpoints/frozen-lake").glob("play-*.gif")}
        assert games == {"play-sft.gif", "play-ift.gif"}
        return
    if words[0] in ("recipes", "schema"):
        assert main(shlex.split(command)[1:]) == 0  # What they print: tests/integration/test_recipes_cli.py.
        return
    if words[0] == "completion":
        return  # tests/integration/test_recipes_cli.py: it takes long.
    if words[0] == "export":
        assert main(["fit", "--config", "ift/smollm2-135m", *tiny("fit", model_folder)]) == 0
        assert main(shlex.split(command)[1:]) == 0
        ours = (here / "exported/model.safetensors").read_bytes()
        assert ours == (here / "checkpoints/runs/version_0/model/model.safetensors").read_bytes()
        return
    if words[0] == "merge":
        training = next(c for c in COMMANDS if "uft/" in c)
        assert main([*shlex.split(training)[1:], *tiny(training, model_folder)]) == 0
        assert main(shlex.split(command)[1:]) == 0
        assert (here / "merged/model.safetensors").is_file()
        return
    if "--ckpt_path" in command:
        assert main(["fit", "--config", "ift/smollm2-135m", *tiny("fit", model_folder)]) == 0
    if "--print_config" in command:
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert "class_path: lit_ift.IFTModule" in capsys.readouterr().out
    elif "--trainer.devices" in command:
        # The launcher starts further processes of the command itself.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "lit_ift", *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (here / "checkpoints/runs/version_0/model/model.safetensors").is_file()
    else:
        assert main(words) == 0
        expected = "predictions.jsonl" if "predict" in command else "config.yaml"
        assert list((here / "checkpoints" / "runs").glob(f"*_*/{expected}"))


def stand_in(folder: Path) -> Path:
    """An environment folder that holds this interpreter's commands and counts as installed."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "lit-ift", "ruff", "mypy"):
        (binaries / name).symlink_to(Path(sys.executable).parent / name)
    for extra in ("quickstart", "dev"):
        (folder / f".installed-{extra}").touch()
    return folder


def test_make_quickstart(tmp_path: Path, model_folder: Path) -> None:
    assert "make quickstart" in COMMANDS
    environment = stand_in(tmp_path / "env")
    options = shlex.join([*tiny("quickstart", model_folder), "--trainer.default_root_dir", str(tmp_path / "out")])
    done = subprocess.run(
        ["make", "quickstart", f"VENV={environment}", f"ARGS={options}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Accuracy on held-out tasks" in done.stdout
    folder = tmp_path / "out" / "runs" / "version_0"
    for name in ("curves.png", "answers.json", "metrics.csv", "model/model.safetensors"):
        assert (folder / name).is_file()


def test_make_test_runs_everything(tmp_path: Path) -> None:
    """Not run from inside itself, but what it would run is looked at."""
    assert "`make test`" in README
    command = ["make", "--dry-run", "test", f"VENV={stand_in(tmp_path / 'env')}"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for step in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert step in planned
    assert "make test" in (ROOT / ".ci" / "run").read_text()
