"""The schema that editors use takes every shipped configuration, and refuses what the parser would refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from lit_ift.recipes import SCHEMA_LINE, folder, schema_file

PATHS = sorted(folder().rglob("*.yaml"))
VALIDATORS = {
    file.resolve(): Draft7Validator(json.loads(file.read_text(encoding="utf-8")))
    for file in schema_file("fit").parent.glob("*.json")
}


def validator_of(path: Path) -> Draft7Validator:
    """That of the schema which the first line of a file names."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    assert line.startswith(SCHEMA_LINE)
    return VALIDATORS[(path.parent / line.removeprefix(SCHEMA_LINE)).resolve()]


def misspelt(value: Any, where: str = "") -> list[tuple[str, Any]]:
    """Copies of a configuration with one key misspelt in each, where a class or a section names its keys."""
    found = []
    for key, part in value.items() if isinstance(value, dict) else ():
        if key in FREE:
            continue
        others = {name: other for name, other in value.items() if name != key}
        found.append((f"{where}.{key}", {**others, f"{key}x": part}))
        found += [(place, {**value, key: changed}) for place, changed in misspelt(part, f"{where}.{key}")]
    return found


FREE = ("options", "input_options", "tasks", "parts", "init_args", "lora", "map", "columns", "class_path")
"""Keys of which a function or another package says what is in them, and those that a class is known by."""


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(folder())))
def test_every_recipe_is_valid(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in validator_of(path).iter_errors(config)] == []


@pytest.mark.parametrize(
    "name", ["ift/smollm2-135m", "lora/lora", "strategy/fsdp2", "frozen-lake/default", "study/quickstart", "qwen3/8b"]
)
def test_a_typo_is_refused(name: str) -> None:
    path = folder() / f"{name}.yaml"
    cases = misspelt(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert cases
    for place, config in cases:
        assert not validator_of(path).is_valid(config), place


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("model", {"class_path": "IFTModule", "init_args": {"lamb": 0.2}}),
        ("model", {"class_path": "lit_ift.IFTModule", "init_args": {"lamb": 0.2}}),
        ("model", {"class_path": "SFTModule", "init_args": {"lam": 0.2}}),
        ("model", {"init_args": {"nonsense": 1}}),
        ("data", {"class_path": "InstructionDataModule", "init_args": {"max_lenght": 5}}),
        ("trainer", {"max_epochs": "three"}),
    ],
)
def test_an_option_that_a_class_has_not_is_refused(section: str, options: dict[str, Any]) -> None:
    assert not VALIDATORS[schema_file("fit").resolve()].is_valid({section: options})


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"class_path": "mine.FocalModule", "init_args": {"anything": 1}}},
        {"trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]}},
        {"trainer": {"logger": "WandbLogger"}},
        {"data": {"init_args": {"train": [{"path": "a.jsonl", "max_rows": 3}, "b.jsonl"]}}},
        {"extends": ["ift/smollm2-135m", "lora/lora"]},
    ],
)
def test_what_the_parser_takes_is_valid(config: dict[str, Any]) -> None:
    errors = VALIDATORS[schema_file("fit").resolve()].iter_errors(config)
    assert [error.message for error in errors] == []
