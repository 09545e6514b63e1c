"""Memory of a rank from that of one device, by hand."""

import pytest

from lit_ift.planning.dry_run import Work
from lit_ift.planning.dry_step import StepCost
from lit_ift.planning.plan import Run, rank_memory

STEP = StepCost(
    parameters=100, trained=100, layer_parameters=20, num_layers=4, memory={}, work=Work(), update=0.0, tokens=8
)
"""Four layers of 20 weights, and 20 outside of them."""
ALONE = {"weights": 400.0, "gradients": 400.0, "optimizer": 800.0, "activations": 300.0, "logits": 50.0}


def test_alone_it_is_what_was_counted() -> None:
    assert rank_memory(ALONE, STEP, Run()) == ALONE


def test_ddp_holds_gradients_twice() -> None:
    assert rank_memory(ALONE, STEP, Run(ranks=2)) == {**ALONE, "gradients": 800.0}


def test_fsdp2_holds_shards_the_root_and_two_layers() -> None:
    found = rank_memory(ALONE, STEP, Run(ranks=4, shards=4))
    assert found["weights"] == pytest.approx(100 + 80 + 2 * 80)
    assert found["gradients"] == pytest.approx(100 + 80 + 80)
    assert found["optimizer"] == pytest.approx(200)
    assert found["activations"] == 300
    gathered = rank_memory(ALONE, STEP, Run(ranks=4, shards=4, gathers_once=True))
    assert gathered["weights"] == pytest.approx(100 + 80 + 4 * 80)
    offloaded = rank_memory(ALONE, STEP, Run(ranks=4, shards=4, offloads=True))
    assert offloaded["optimizer"] == 0
    assert offloaded["weights"] == pytest.approx(80 + 2 * 80)


def test_fsdp2_computes_in_half_precision_without_casts() -> None:
    found = rank_memory(ALONE, STEP, Run(precision="bf16-mixed", ranks=4, shards=4))
    assert found["weights"] == pytest.approx(100 + 80 + 2 * 40)
    assert found["activations"] == pytest.approx(300 - 160)
