"""The same global batch gives the same steps however it is split: every objective, 1, 2 and 4 ranks, DDP and FSDP2.

All of it is one launch, for the sake of its starting time. Models are float64, two of them float32, three under
bf16-mixed. The bound is a
number of units of rounding (eps) of their type: sums in another order differ by a few, and by how many depends on the
processor.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lit_ift.modules
from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES

sys.path.insert(0, str(Path(__file__).parent))

from invariance import CLIP, OBJECTIVES, Deviation, collect, deviations, drift

SCRIPT = Path(__file__).parent / "invariance.py"
TOLERANCE = {"float32": 100 * 2.0**-23, "float64": 1000 * 2.0**-52, "bf16-mixed": 2 * 2.0**-8}
EPOCHS = 2


def tolerance(name: str) -> float:
    """How far a split's steps may be from another's, as a share of them: some units of what is rounded to."""
    return TOLERANCE[OBJECTIVES[name].precision or OBJECTIVES[name].dtype]


Found = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the ranks of all launches saw."""
    folder = tmp_path_factory.mktemp("invariance")
    command = [sys.executable, str(SCRIPT), str(folder), "--epochs", str(EPOCHS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-6000:]
    return collect(folder)


@pytest.fixture(scope="module")
def compared(found: Found) -> dict[str, dict[str, list[Deviation]]]:
    """By objective and quantity."""
    table: dict[str, dict[str, list[Deviation]]] = {}
    for deviation in deviations(found):
        table.setdefault(deviation.objective, {}).setdefault(deviation.quantity, []).append(deviation)
    return table


def test_nothing_is_left_out(compared: dict[str, dict[str, list[Deviation]]]) -> None:
    modules = {getattr(lit_ift.modules, name) for name in lit_ift.modules.__all__ if name.endswith("Module")}
    bases = ("ExampleMeanModule", "CausalLMModule", "FeedbackModule")
    assert modules - {getattr(lit_ift.modules, name) for name in bases} == {
        objective.module for objective in OBJECTIVES.values()
    }
    quantities = {quantity for of_objective in compared.values() for quantity in of_objective}
    assert quantities == {"loss", "grad_norm", *(f"of/{name}" for name in [*PAIR_LOSSES, *TOKEN_LOSSES])}
    for name, of_objective in compared.items():
        for split_deviations in of_objective.values():
            assert len(split_deviations) >= 6, name
        objective = OBJECTIVES[name]
        assert {split.ranks for split in objective.splits} == {1, 2, 4}
        together = set(objective.strategies) - {"single"}
        found = {(split.ranks, split.strategy) for split in objective.splits}
        assert found >= {(ranks, strategy) for ranks in (2, 4) for strategy in together}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_has_the_same_rows(found: Found, name: str) -> None:
    steps = found[name][OBJECTIVES[name].splits[0].name]["rows"]
    sizes = OBJECTIVES[name].steps
    assert [len(step) for step in steps] == [*sizes] * EPOCHS
    assert steps[: len(sizes)] != steps[len(sizes) :]
    for split, seen in found[name].items():
        assert seen["rows"] == steps, split
    for split in OBJECTIVES[name].splits:
        if not split.packed or split.rows >= 4:  # Of few rows, there may be none that go together.
            assert found[name][split.name]["is_packed"] == split.packed


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_step_is_the_same(found: Found, compared: dict[str, dict[str, list[Deviation]]], name: str) -> None:
    for of_quantity in compared[name].values():
        for deviation in of_quantity:
            assert deviation.worst <= tolerance(name), deviation
    steps = found[name][OBJECTIVES[name].splits[0].name]["steps"]
    assert sum(step["grad_norm"] > CLIP for step in steps) >= len(steps) / 2  # So clipping had a say in it.
    assert len({step["loss"] for step in steps}) == len(steps)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_there_is_no_drift(compared: dict[str, dict[str, list[Deviation]]], name: str) -> None:
    """Mean deviations of the splits scatter around 0, rounding of the run that all are compared with apart."""
    for quantity, of_quantity in compared[name].items():
        mean, error = drift(of_quantity)
        assert abs(mean) <= 4 * error + tolerance(name) / 10, (quantity, of_quantity)
