"""Runs of one and of two ranks, for all tests that compare them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rowfiles import write_feedback
from tiny import tiny_model, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parent))

SCRIPT = Path(__file__).parent / "two_ranks.py"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, data_file: Path) -> dict[str, list[dict[str, Any]]]:
    """What each rank of a single process and of two saw; all cases in one launch of each, which takes long to start."""
    folder = tmp_path_factory.mktemp("ranks")
    models = []
    for tied in (False, True):
        models.append(folder / ("tied" if tied else "untied"))
        tiny_model(tied=tied, dtype=torch.float32).save_pretrained(models[-1])
        tiny_tokenizer().save_pretrained(models[-1])
    (folder / "feedback").mkdir()
    write_feedback(folder / "feedback", instruction=7, preference=7, unpaired=7, scored=7)
    launched = {}
    for name, ranks in (("single", 1), ("double", 2)):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        words = [folder / name, *models, data_file, folder / "feedback"]
        command = [sys.executable, *launch, str(SCRIPT), *map(str, words)]
        log = (folder / f"{name}.log").open("w")
        launched[name] = (subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), ranks)
    for name, (process, _) in launched.items():
        assert process.wait(timeout=1800) == 0, (folder / f"{name}.log").read_text()[-6000:]
    return {
        name: [json.loads((folder / f"{name}.{rank}").read_text()) for rank in range(ranks)]
        for name, (_, ranks) in launched.items()
    }
