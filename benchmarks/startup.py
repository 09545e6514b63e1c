"""How long light commands take, side by side with importing the libraries that heavy ones need.

Usage: python benchmarks/startup.py [--model ID] [--rounds 7] [--minutes 3] [--parts commands quickstart] [--again]

Every command runs in a process of its own, from its start to its end. The yardstick, `bare imports`, is
``python -c 'import lightning.pytorch, transformers'`` in the same round. The part `quickstart` goes from the command
``lit-ift fit --config configs/quickstart.yaml`` to the first optimizer step, with the model at hand: as the command is,
and without the answers of the untrained model, which it measures first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import MODEL, ROOT, options_of, save, short, take_turns, wanted

SCRIPT = "startup"
YARDSTICK = "bare imports"
LIT_IFT = (sys.executable, "-m", "lit_ift")


def seconds(command: list[str], folder: Path) -> float:
    """How long a command takes, which must end well."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    # Else the model would be looked for in the current folder.
    checkpoints = os.environ.get("LIT_IFT_CHECKPOINTS", str(ROOT / "checkpoints"))
    given = {**os.environ, "PYTHONPATH": path, "LIT_IFT_CHECKPOINTS": checkpoints}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=given)
    taken = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return taken


def run(command: list[str], folder: Path, number: int) -> float:
    """The seconds of a round, whatever its number."""
    del number
    return seconds(command, folder)


def commands(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Commands by what they are called in the table."""
    rows = folder / "rows.jsonl"
    lines = [{"prompt": f"How many are {i} and {i}?", "completion": f"They are {2 * i}."} for i in range(100)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = ["--config", str(ROOT / "configs" / "ift" / "smollm2-135m.yaml")]
    return {
        YARDSTICK: [sys.executable, "-c", "import lightning.pytorch, transformers"],
        "lit-ift --help": [*LIT_IFT, "--help"],
        "fit --help": [*LIT_IFT, "fit", "--help"],
        "data check --help": [*LIT_IFT, "data", "check", "--help"],
        "fit --model.help IFTModule": [*LIT_IFT, "fit", "--model.help", "IFTModule"],
        "fit --print_config": [*LIT_IFT, "fit", *config, "--print_config"],
        "data check, 100 rows": [*LIT_IFT, "data", "check", str(rows), "--tokenizer", options.model],
    }


def quickstart(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The quickstart up to its first step."""
    stop = ["--trainer.callbacks+=first_step.FirstStep", "--trainer.default_root_dir", str(folder)]
    words = ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--model.init_args.model", options.model]
    return {
        YARDSTICK: [sys.executable, "-c", "import lightning.pytorch, transformers"],
        "quickstart to its first step": [*LIT_IFT, *words, *stop],
        "the same without the answers before": [*LIT_IFT, *words, *stop, *options.without_answers],
    }


def main() -> None:
    """Measure each part and write its result."""
    parser = options_of(__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--without-answers", nargs="*", default=["--samples.enabled", "false"], help=argparse.SUPPRESS)
    parser.set_defaults(rounds=7)
    options = parser.parse_args()
    parts: dict[str, Callable[[Any, Path], dict[str, list[str]]]] = {"commands": commands, "quickstart": quickstart}
    for part, made_by in parts.items():
        if not wanted(options, SCRIPT, part):
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            calls = made_by(options, folder)
            runners = {label: partial(run, calls[label], folder) for label in calls}
            rounds = options.rounds if part == "commands" else min(3, options.rounds)
            found = take_turns(runners, rounds, minutes=options.minutes)
        save(options, SCRIPT, part, found, references=(YARDSTICK,), facts={"model": short(options.model)})


if __name__ == "__main__":
    main()
