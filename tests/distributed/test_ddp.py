"""Two processes on the same data take the same steps as one.

The data file has 21 rows: in steps of 8 the last one has 5, so that two ranks hold 3 and 2.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "ddp_script.py"


def train(out: Path, ranks: int, *words: object) -> list[dict[str, Any]]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launch, str(SCRIPT), *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize(("objective", "reduction"), [("ift", "sequence"), ("sft", "token")])
def test_two_ranks_equal_one(
    tmp_path: Path, model_folder: Path, data_file: Path, objective: str, reduction: str
) -> None:
    def run(name: str, ranks: int, batch_size: int, accumulate: int) -> list[dict[str, Any]]:
        out = tmp_path / name
        return train(out, ranks, model_folder, data_file, out, batch_size, accumulate, objective, reduction)

    (single,) = run("single", 1, 8, 1)
    ranks = run("double", 2, 4, 1)
    assert len(single["steps"]) == 2 * 3
    for rank in ranks:
        assert len(rank["steps"]) == len(single["steps"])
        for ours, expected in zip(rank["steps"], single["steps"], strict=True):
            assert ours == pytest.approx(expected, rel=1e-6)
        assert rank["validations"] == pytest.approx(single["validations"], rel=1e-6)
        assert rank["weights"] == pytest.approx(single["weights"], rel=1e-6)
    rows = [row for rank in ranks for row in rank["rows"] if row]
    assert sorted(rows) == sorted(single["rows"])


def test_a_rank_without_rows_and_accumulation(tmp_path: Path, model_folder: Path, data_file: Path) -> None:
    """Global batches of 4, two of them a step: the last holds one row, and a dummy on the other rank."""
    (single,) = train(tmp_path / "one", 1, model_folder, data_file, tmp_path / "one", 4, 2, "ift", "sequence")
    ranks = train(tmp_path / "two", 2, model_folder, data_file, tmp_path / "two", 2, 2, "ift", "sequence")
    assert "" in ranks[0]["rows"] + ranks[1]["rows"]
    for rank in ranks:
        for ours, expected in zip(rank["steps"], single["steps"], strict=True):
            assert ours == pytest.approx(expected, rel=1e-6)
        assert rank["weights"] == pytest.approx(single["weights"], rel=1e-6)
        assert rank["validations"] == pytest.approx(single["validations"], rel=1e-6)
