"""Every shipped configuration parses and instantiates, as the command in its own header runs it."""

import re
import shlex
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from feedback import encoded_row, feedback_batch, pairs
from lightning.pytorch.strategies import DDPStrategy
from tiny import tiny_batch, tiny_model

from lit_ift.cli.training import LitIFTCLI
from lit_ift.data import InstructionDataModule, Record, to_row
from lit_ift.distributed import FSDP2Strategy
from lit_ift.losses import PAIR_LOSSES
from lit_ift.models.source import ModelSource
from lit_ift.recipes import with_files

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name not in ("frozen-lake", "study")
]
"""All but those of studies, which have no trainer: test_lake_configs.py."""
SMALL = {
    "lora" if path.stem.endswith("-lora") else path.parent: path for path in CONFIGS if "\nextends:" in path.read_text()
}
"""Of recipes that say little more than which model: the last one of each family, and one with an adapter."""
RUN = [path for path in CONFIGS if "\nextends:" not in path.read_text() or path in SMALL.values()]
HERE = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"),
    *("--trainer.strategy", "auto", "--trainer.precision", "32-true"),
]

SIDES = ("chosen", "rejected")


def objective_of(words: list[str]) -> str:
    """The class that the last file that names one names; an overlay may leave it to those before."""
    files = [yaml.safe_load((ROOT / word).read_text()) for word in words if word.endswith(".yaml")]
    named = [file["model"]["class_path"] for file in files if "class_path" in file.get("model", {})]
    assert named
    return str(named[-1])


def batch_for(module: Any) -> tuple[dict[str, Any], int]:
    """Rows that a module takes, with their number."""
    rows = {
        "preference": pairs(2, gold=module.needs_gold),
        "unpaired": [encoded_row("unpaired", "answer", "mismatched", score=1.0, seed=i) for i in range(2)],
        "scored": [encoded_row("scored", "answer", score=0.3)],
        "instruction": [encoded_row("instruction", "answer")],
    }
    if module.kinds == {"instruction"}:
        return tiny_batch(), 4
    chosen = {kind: rows[kind] for kind in sorted(module.kinds)}
    if hasattr(module, "parts"):
        nested = {name: feedback_batch(chosen[name], dtype=torch.float32) for name in module.parts}
        return nested, sum(map(len, chosen.values()))
    together = [row for of_kind in chosen.values() for row in of_kind]
    return feedback_batch(together, dtype=torch.float32), len(together)


class DryCLI(LitIFTCLI):
    """Instantiates everything and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        assert subcommand == "fit"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "loss").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_overlay_for_a_loss_says_more_than_its_name(path: Path) -> None:
    """A name alone is said by ``--model.init_args.loss``, its defaults by nothing."""
    given = yaml.safe_load(path.read_text())["model"]["init_args"]
    loss = given.pop("loss")
    if isinstance(loss, list):
        assert len(loss) > 1
        return
    defaults = {name: p.default for name, p in signature(PAIR_LOSSES[loss]).parameters.items()}
    options = given.pop("options")
    assert given or any(defaults[name] != value for name, value in options.items())


def test_the_four_cells_differ_in_input_and_loss_alone() -> None:
    """Fusion and propagation can be told apart only if all else is equal, the embeddings' gradient too."""
    cells = {}
    for path in (ROOT / "configs" / "cells").glob("*.yaml"):
        options = yaml.safe_load(path.read_text())["model"]["init_args"]
        cells[options.pop("input"), options.pop("loss")] = options
    assert set(cells) == {(i, loss) for i in ("true_tokens", "temporal_residual") for loss in ("nll", "propagation")}
    assert all(options == {"detach_input_embeddings": True} for options in cells.values())


@pytest.mark.parametrize("path", RUN, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_instantiates(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (command,) = re.findall(r"^# Run: .*?(lit-ift fit .*?)\)?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = with_files(shlex.split(command))
    assert str(path) in words
    if "lit-ift[quantization]" in path.read_text(encoding="utf-8"):
        pytest.importorskip("bitsandbytes", reason="the configuration needs bitsandbytes")
    monkeypatch.chdir(ROOT)
    root = ["--trainer.default_root_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, *HERE, *root])
    loaded: list[Any] = []

    def stub(model: str, **options: Any) -> Any:
        loaded.append(model)
        return tiny_model(dtype=torch.float32)

    monkeypatch.setattr("lit_ift.modules.language_model.load_model", stub)
    monkeypatch.setattr("lit_ift.modules.language_model.obtain_model", lambda spec, **_: ModelSource(spec, None, spec))
    cli = DryCLI.run()
    assert type(cli.model).__name__ == objective_of(words)
    cli.model.configure_model()
    assert loaded
    batch, num_rows = batch_for(cli.model)
    cli.model.check_batch(batch)
    losses, _ = cli.model.example_losses(batch)
    assert losses.shape == (num_rows,)
    assert losses.isfinite().all()
    monkeypatch.setattr(type(cli.trainer), "estimated_stepping_batches", 100)
    cli.model.trainer = cli.trainer
    configured = cli.model.configure_optimizers()
    assert configured["optimizer"].param_groups[0]["lr"] > 0
    assert configured["lr_scheduler"]["scheduler"].total_steps == 100


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "strategy").glob("*.yaml")), ids=lambda p: p.stem)
def test_strategies(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The overlays are what chooses the strategy, whatever configuration they are laid over."""
    given = yaml.safe_load(path.read_text())["trainer"]
    described = given["strategy"]
    kind = FSDP2Strategy if isinstance(described, dict) else {"ddp": DDPStrategy}[described]
    defaults = {name: p.default for name, p in signature(FSDP2Strategy).parameters.items()}
    options = defaults | described["init_args"] if isinstance(described, dict) else {}
    monkeypatch.chdir(ROOT)
    for base in ("ift/qwen2.5-0.5b", "preference/mistral-7b"):
        words = ["--config", f"configs/{base}.yaml", "--config", str(path)]
        # Eight processes are not started before anything runs, and GPUs are looked for at once.
        rest = ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["lit-ift", "fit", *words, *rest])
        trainer = DryCLI.run().trainer
        assert type(trainer.strategy) is kind
        kept = {name: value for name, value in options.items() if hasattr(trainer.strategy, name)}
        assert {name: getattr(trainer.strategy, name) for name in kept} == kept
        assert (trainer.num_devices, trainer.precision) == (given["devices"], given["precision"])
        assert not isinstance(described, dict) or kept.keys() >= described["init_args"].keys()


def test_the_papers_recipe() -> None:
    """arXiv:2405.11870, Table 4 and section 5: what must not drift."""
    for objective in ("ift", "sft"):
        config = yaml.safe_load((ROOT / f"configs/{objective}/mistral-7b-paper.yaml").read_text())
        model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
        assert model["optimizer"] == {"class_path": "torch.optim.RMSprop", "init_args": {"lr": 5.0e-7}}
        assert model["lr_scheduler"]["class_path"].endswith("CosineSchedule")
        assert model["lr_scheduler"]["init_args"] == {"warmup": 0.1}
        assert data["batch_size"] * trainer["accumulate_grad_batches"] * trainer["devices"] == 512
        assert (data["max_length"], trainer["max_epochs"]) == (1024, 3)
        assert data["train"] == [
            {"path": "HuggingFaceH4/ultrafeedback_binarized", "layout": "chosen", "max_rows": 60000},
            {"path": "HuggingFaceH4/ultrachat_200k", "max_rows": 60000},
        ]


def test_the_papers_sources_are_read_as_meant() -> None:
    """The pairs' own split, which the hub id decides, and of a pair the chosen answer alone."""
    config = yaml.safe_load((ROOT / "configs/ift/mistral-7b-paper.yaml").read_text())
    data = InstructionDataModule(**config["data"]["init_args"])
    pairs, chats = data.sources_of("train")
    assert [pairs.layout, chats.layout] == ["chosen", "messages"]
    assert [source.place[-1] for source in (pairs, chats) if source.place] == ["train_prefs", "train_sft"]
    turns = {side: [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": side}] for side in SIDES}
    columns = {"prompt": "Why?", "prompt_id": "0", **turns, "messages": turns["chosen"], "score_chosen": 8.0}
    row = to_row(Record(columns, "pairs#0"), layout=pairs.layout)
    assert (row.kind, row.sides["answer"].messages) == ("instruction", turns["chosen"])


def test_objectives_differ_in_nothing_else() -> None:
    """One line chooses the objective: the pairs of files agree but for it and its own options."""
    for path in (ROOT / "configs" / "ift").glob("*.yaml"):
        ift = yaml.safe_load(path.read_text())
        sft = yaml.safe_load((ROOT / "configs" / "sft" / path.name).read_text())
        assert ift["model"].pop("class_path") == "IFTModule"
        assert sft["model"].pop("class_path") == "SFTModule"
        assert (ift["model"]["init_args"].pop("lam"), ift["model"]["init_args"].pop("gamma")) == (0.2, 0.95)
        assert ift == sft
