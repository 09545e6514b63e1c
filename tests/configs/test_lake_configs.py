"""The shipped studies of the lake run as the command in their header says, with a tiny budget."""

import re
import shlex
from pathlib import Path

import pytest

from lit_ift import cli
from lit_ift.frozen_lake.files import load_study
from lit_ift.frozen_lake.settings import LABELS
from lit_ift.recipes import with_files

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/frozen-lake").glob("*.yaml"))
TINY = [
    *("--protocol.updates", "3", "--protocol.tuning_seeds", "2", "--protocol.seeds", "2", "--protocol.points", "1"),
    *("--protocol.learning_rates", "[0.001, 0.01]", "--start.updates", "2", "--reinforce.games", "2"),
    *("--ppo.games", "2", "--figures", "false", "--animations", "false", "--progress", "false"),
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (command,) = re.findall(r"^# Run: +(lit-ift frozen-lake .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = shlex.split(command)
    assert str(path) in with_files(words)
    monkeypatch.chdir(ROOT)
    assert cli.main([*words[1:], *TINY, "--output", str(tmp_path)]) == 0
    study = load_study(tmp_path / "results.json")
    assert {outcome.name for outcome in study.outcomes} == set(LABELS)
    assert study.slippery == (path.stem == "slippery")
    assert study.shape == {"8x8": (8, 8), "fork": (5, 5)}.get(path.stem, (4, 4))
