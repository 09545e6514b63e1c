"""Two processes that share a sharded model take the same steps as one process with the whole model.

Instruction data has 21 rows: in steps of 8 the last one has 5; in micro-batches of 4 the last one has a row on one rank
only.
"""

import math
from pathlib import Path

import pytest
import torch
from comparing import Results, assert_alike
from rounding import CLOSE32, NEAR32
from safetensors.torch import load_file

EXACT = [
    *("ift", "ift tied", "ift ready-made", "ift packed", "ift held", "ift checkpointed", "ift lora", "ift replicas"),
    *("ift shared", "dpo shared"),
    *("sft token", "sft every second", "sft offload", "sft half", "sft bad steps"),
    *("dpo cached", "dpo model", "dpo lora", "dpo ready-made", "tdpo model", "tdpo lora", "kto", "uft", "mixed"),
]
"""In float64, where another order of summing is no excuse."""


@pytest.mark.parametrize("case", EXACT)
def test_sharded_equals_whole(runs: dict[str, list[Results]], case: str) -> None:
    single = runs["single"][0][case]
    for rank in runs["double"]:
        assert rank[case]["is_sharded"]
        assert not single["is_sharded"]
        assert_alike(single, rank[case], 1e-10)
        # Safetensors that each rank read in part, or a model that was whole on every rank, are the same model.
        assert rank[case]["digest"] == single["digest"]


def test_ranks_skip_the_same_steps(runs: dict[str, list[Results]]) -> None:
    """Those in which one rank alone has a bad row among them."""
    for rank in [*runs["single"], *runs["double"]]:
        assert [step["train/bad_steps"] for step in rank["sft bad steps"]["steps"]] == [0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("case", "rel"), [("ift float32", NEAR32), ("export", NEAR32), ("ift bf16-mixed", 1e-2), ("ift bf16-true", 3e-2)]
)
def test_other_precisions(runs: dict[str, list[Results]], case: str, rel: float) -> None:
    single = runs["single"][0][case]
    for rank in runs["double"]:
        for ours, expected in zip(rank[case]["steps"], single["steps"], strict=True):
            for metric in ("train/loss", "train/grad_norm"):
                assert ours[metric] == pytest.approx(expected[metric], rel=rel)
        assert rank[case]["validations"] == pytest.approx(single["validations"], rel=rel)


def test_sftmix_trains(runs: dict[str, list[Results]]) -> None:
    """Its pairs are made within a micro-batch, so that two ranks make other ones."""
    for rank in runs["double"]:
        assert rank["sftmix"]["is_sharded"]
        assert all(step["train/mixup_loss"] > 0 for step in rank["sftmix"]["steps"])


def test_options_change_memory_only(runs: dict[str, list[Results]]) -> None:
    (ift, *others) = (runs["double"][0][case]["steps"] for case in ("ift", "ift held", "ift checkpointed"))
    for other in others:
        for ours, expected in zip(other, ift, strict=False):
            assert ours == pytest.approx(expected, rel=1e-12)


def test_ranks_answer_together(runs: dict[str, list[Results]]) -> None:
    """Batches of 6 over 21 rows: ranks have unequal numbers of prompts, and one of them a batch less."""
    single, (first, second) = runs["single"][0]["predict"]["answers"], (r["predict"]["answers"] for r in runs["double"])
    assert not first.keys() & second.keys()
    assert {**first, **second} == single
    assert len(first) != len(second)


def test_ranks_share_the_questions_of_tasks(runs: dict[str, list[Results]]) -> None:
    single = runs["single"][0]["tasks"]
    assert len(single["answers"]) == 3 * (2 + 5)
    for rank in runs["double"]:
        assert rank["tasks"]["answers"] == single["answers"]
        for ours, theirs in zip(rank["tasks"]["steps"], single["steps"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-10)


def test_metrics_do_not_depend_on_how_rows_are_split(runs: dict[str, list[Results]]) -> None:
    single = runs["single"][0]["metrics"]["found"]
    assert single["val/Perplexity"] == pytest.approx(math.exp(single["val/loss"]), rel=1e-6)
    assert len(single) == 9
    assert single["val/CharErrorRate"] > 0.5
    for rank in runs["double"]:
        assert rank["metrics"]["found"] == pytest.approx(single, rel=1e-6)


@pytest.mark.parametrize(
    ("case", "file"), [("export", "model.safetensors"), ("export lora", "adapter_model.safetensors")]
)
def test_export(runs: dict[str, list[Results]], case: str, file: str) -> None:
    """The sharded run writes the folder of the single one."""
    folders = [Path(runs[name][0][case]["folder"]) for name in ("single", "double")]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    single, double = (load_file(folder / file) for folder in folders)
    assert single.keys() == double.keys()
    for name, tensor in single.items():
        torch.testing.assert_close(double[name], tensor, **CLOSE32)
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"):
        if (folders[0] / name).is_file():
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
