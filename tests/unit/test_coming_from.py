"""docs/coming-from.md names options that there are: ours by the live signatures, others' by lists of their names."""

import json
import re
from dataclasses import fields
from fnmatch import filter as matching
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, Final

import lightning as L
import pytest
import torch
import yaml
from peft import LoraConfig

from lit_ift import data, modules
from lit_ift.callbacks import HuggingFaceExport, RunCheckpoint
from lit_ift.data.read.sources import Source
from lit_ift.distributed import FSDP2Strategy
from lit_ift.losses import PAIR_LOSSES, TOKEN_LOSSES
from lit_ift.losses.pair.changes import CHANGES
from lit_ift.modules.inputs import INPUT_KINDS
from lit_ift.modules.optim import CosineSchedule

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")
RECORDED: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("options_elsewhere.json").read_text())
TOOLS: Final = {"TRL": "TRL", "LLaMA-Factory": "LLaMA-Factory", "Axolotl": "Axolotl", "Intuitive-Fine-Tuning": "IFT"}
"""The head of a table's first column, and the list that its names are in."""


def options_of(*classes: Any) -> set[str]:
    """Keyword arguments of classes and of those that they hand the rest on to."""
    makers = [maker for cls in classes for maker in cls.__mro__ if "__init__" in vars(maker)]
    return {name for maker in makers for name in signature(maker).parameters} - {"self", "args", "kwargs"}


MODULES: Final = [getattr(modules, name) for name in modules.__all__ if name.endswith("Module")]
DATA: Final = [getattr(data, name) for name in data.__all__ if name.endswith("DataModule")]
LOSSES: Final = {**PAIR_LOSSES, **TOKEN_LOSSES}
OURS: Final[dict[str, set[str]]] = {
    "model.options": {name for loss in LOSSES.values() for name in signature(loss).parameters} | set(CHANGES),
    "model.input_options": options_of(*INPUT_KINDS.values()),
    "model.lora": {field.name for field in fields(LoraConfig)},
    "model.optimizer": set(signature(torch.optim.AdamW).parameters),
    "model.lr_scheduler": set(signature(CosineSchedule).parameters),
    "trainer.strategy": options_of(FSDP2Strategy),
    "model": options_of(*MODULES) | {"class_path"},
    "data": options_of(*DATA) | {"class_path"},
    "source": {field.name for field in fields(Source)},
    "trainer": set(signature(L.Trainer.__init__).parameters),
    "checkpoint": options_of(RunCheckpoint),
    "export": options_of(HuggingFaceExport),
}
"""What may follow each prefix; longer prefixes first."""


def code(text: str) -> list[str]:
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", without_blocks)


def rows() -> list[tuple[str, list[str]]]:
    """Head of the first column, and cells, of each row of a table."""
    found: list[tuple[str, list[str]]] = []
    head = ""
    for line, following in zip(PAGE.splitlines(), [*PAGE.splitlines()[1:], ""], strict=True):
        if not line.startswith("|"):
            head = ""
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if re.match(r"\| -+", following):
            head = cells[0]
        elif not set(line) <= set("|- :"):
            found.append((head, cells))
    return found


def test_our_options_are_there() -> None:
    prefixes = "|".join(re.escape(prefix) for prefix in OURS)
    named = [re.fullmatch(rf"({prefixes})\.(\w+)(: .*)?", word) for word in code(PAGE)]
    found = [(match[1], match[2]) for match in named if match]
    assert len(found) > 150
    strange = {f"{prefix}.{name}" for prefix, name in found if name not in OURS[prefix]}
    assert not sorted(strange - set(RECORDED["IFT"]["names"].split()))  # Theirs have the prefix `model.` too.


def test_every_word_with_a_prefix_of_ours_is_looked_up() -> None:
    """A misspelt prefix, as in `trainer.init_args.devices`, would otherwise go unseen."""
    words = [word for word in code(PAGE) if re.match(r"(model|data|source|trainer|checkpoint|export)\.[a-z]", word)]
    prefixes = "|".join(re.escape(prefix) for prefix in OURS)
    theirs = set(RECORDED["IFT"]["names"].split())
    assert not [w for w in words if not re.fullmatch(rf"({prefixes})\.(\w+(: .*)?|…)", w) and w not in theirs]


def test_losses_that_are_named_are_there() -> None:
    named = re.findall(r"`model\.loss: (\w+)`", PAGE)
    assert len(named) > 20
    assert set(named) <= set(LOSSES)
    assert set(re.findall(r"`model\.input: (\w+)`", PAGE)) <= set(INPUT_KINDS)


@pytest.mark.parametrize("tool", TOOLS)
def test_options_of_others_are_theirs(tool: str) -> None:
    values = {
        *("nll", "chunked_nll", "dft", "sigmoid", "hinge", "robust", "exo_pair", "nca_pair", "sppo_hard", "ipo", "aot"),
        *("aot_unpaired", "apo_zero", "apo_down", "bco_pair", "discopop", "sigmoid_norm", "sft"),
    }
    named = named_of(tool)
    assert len(named) > 30
    strange = {name for name in named if not matching(recorded(tool), name)}
    assert not sorted(strange - (values if tool == "TRL" else set()))


@pytest.mark.parametrize("tool", TOOLS)
def test_no_option_of_others_is_left_out(tool: str) -> None:
    named = {known for name in named_of(tool) for known in matching(recorded(tool), name)}
    assert not sorted(recorded(tool) - named - named_of("TRL"))


def named_of(tool: str) -> set[str]:
    """Names, and patterns of names, in the first column of its tables."""
    return {name for head, cells in rows() if head == tool for name in code(cells[0])}


def recorded(tool: str) -> set[str]:
    return set(RECORDED[TOOLS[tool]]["names"].split())


@pytest.mark.slow
def test_the_list_of_trl_is_that_of_its_dataclasses() -> None:
    """So that an option of a TRL that was put in place of this one is seen."""
    assert version("trl") == RECORDED["TRL"]["version"].split()[1].rstrip(",")
    trl: dict[str, list[str]] = {
        "trl": ["SFTConfig", "DPOConfig", "KTOConfig", "ModelConfig", "ScriptArguments"],
        **{f"trl.experimental.{name}": [f"{name.upper()}Config"] for name in ("cpo", "orpo", "tpo")},
    }
    classes = [getattr(import_module(module), name) for module, names in trl.items() for name in names]
    assert {field.name for cls in classes for field in fields(cls)} == set(RECORDED["TRL"]["names"].split())


def test_every_row_says_what_is_ours() -> None:
    """A place to look for, or that there is none."""
    empty = [cells[0] for head, cells in rows() if head in TOOLS and not (code(cells[1]) or cells[1] == "none")]
    assert not empty
    assert all(len(cells) == 3 for head, cells in rows() if head in TOOLS)


def test_files_that_are_named_are_there() -> None:
    named = {word for word in code(PAGE) if re.match(r"(configs|tests|docs)/", word)}
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_template_for_texts_is_the_one_that_is_compared_with_trl() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    given = yaml.safe_load(block)["data"]["init_args"]
    compared = (ROOT / "tests/integration/test_as_trl.py").read_text(encoding="utf-8")
    assert f'"{given["chat_template"]}"' in compared
    assert given["train_on"] == "completion"
