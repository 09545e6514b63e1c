"""What the file of a study may say, and what is refused before any run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_ift.errors import UserError
from lit_ift.study.plan import Plan
from lit_ift.study.study_file import Study, Variant, read_study

GOOD: dict[str, Any] = {"variants": [{"name": "a"}, {"name": "b"}], "rates": [1e-4, 1e-3], "seeds": [0]}


def read(folder: Path, **changes: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return read_study(path)


def test_numbers_as_yaml_has_them(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("variants: [{name: a, rates: [1e-5]}]\nrates: [1e-4]\nseeds: [3]\n")
    study = read_study(tmp_path / "s.yaml")
    assert (study.rates, study.variants[0].rates, study.seeds) == ([1e-4], [1e-5], [3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "there is no 'seed'. Did you mean 'seeds'?"),
        ({"variants": [{"name": "a", "option": {}}]}, r"there is no 'variants\[0\].option'. Did you mean 'options'?"),
        ({"variants": []}, "'variants' must be a list of at least one"),
        ({"variants": ["sft"]}, r"variants\[0\] must be a mapping with a name"),
        ({"variants": [{"config": []}]}, r"variants\[0\] must be a mapping with a name"),
        ({"variants": [{"name": "a"}, {"name": "A"}]}, "variants: a occurs more than once"),
        ({"variants": [{"name": "../a"}]}, "a name has letters"),
        ({"variants": [{"name": "a", "rates": [1.0]}]}, "has 1 rates and the study 2: each variant gets the same"),
        ({"rates": []}, "'rates' must be a list"),
        ({"rates": ["fast"]}, "rates="),
        ({"rates": [0.0, 1.0]}, "must be above 0"),
        ({"rates": [1.0, 1.0]}, "rates: 1.0 occurs more than once"),
        ({"seeds": [1, 1]}, "seeds: 1 occurs more than once"),
        ({"seeds": [0.5]}, "seeds="),
        ({"rate_seeds": []}, "leaves nothing to choose"),
        ({"seed_options": []}, "would make all seeds alike"),
        ({"options": ["lr"]}, "options=.* must be a mapping"),
        ({"contrasts": {"c": {"a": 1, "c": -1}}}, "contrasts.c: there is no variant 'c'"),
        ({"contrasts": {"c": {"a": 1, "b": 1}}}, "its weights add up to 2"),
        ({"contrasts": {"c": {"a": float("nan"), "b": 1}}}, "its weights add up to nan"),
        ({"contrasts": {"c": [1]}}, "must be a weight for each variant"),
        ({"task_options": {"max_rows": 3}}, "say nothing without tasks"),
        ({"keep": "all"}, "keep='all' must be one of 'results', 'models'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds NoneType"), ("- a", "holds list"), ("a: [", "is no YAML"), ("a: \x00", "is no YAML")],
)
def test_what_is_no_study_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_study(tmp_path / "s.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path / "none.yaml")


def compose(words: Sequence[str]) -> dict[str, Any]:
    return {"model": {}, "data": {}, **dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)}


def test_equal_variants_and_bad_evaluations_are_refused(tmp_path: Path) -> None:
    study = Study([Variant("a"), Variant("b", rates=[0.5])], rates=[0.1], seeds=[0])
    with pytest.raises(UserError, match="The variants 'a' and 'b' are the same"):
        Plan(study, tmp_path, lambda words: {"model": {"init_args": {}}})
    for path in ("os.nothing", "nowhere.at_all", "builtins.dict"):
        with pytest.raises(UserError, match="evaluations"):
            Plan(Study([Variant("a")], rates=[0.1], seeds=[0], evaluations=[path]), tmp_path, compose)


def test_a_key_changes_with_all_that_decides_a_result(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    config: dict[str, Any] = {
        "model": {"lam": 0.2},
        "trainer": {"max_steps": 2},
        "data": {"init_args": {"train": str(rows), "num_workers": 0}},
    }

    def keys(**changes: Any) -> set[str]:
        study = Study(**{"variants": [Variant("a")], "rates": [0.1, 0.2], "seeds": [0, 1], **changes})
        return {run.key for run in Plan(study, tmp_path, lambda words: json.loads(json.dumps(config))).runs_for_rates()}

    before = keys()
    assert len(before) == 4
    assert keys(variants=[Variant("renamed")], output="elsewhere") == before
    assert before < keys(seeds=[0, 1, 2], rates=[0.1, 0.2, 0.3])
    assert not before & keys(evaluations=["shutil.which"])
    config["data"]["init_args"]["num_workers"] = 3
    config["trainer"] |= {"logger": True, "callbacks": None}
    assert keys() == before
    config["model"]["lam"] = 0.3
    changed = keys()
    assert not changed & before
    rows.write_text("{} ")
    assert not keys() & changed


def test_a_key_changes_with_the_files_of_the_model_and_of_each_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / f"start-{seed}").mkdir()
        for name in ("config.json", "model.safetensors", "README.md"):
            (tmp_path / f"start-{seed}" / name).write_text("a")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("{}")
    config = {
        "model": {"init_args": {"model": str(tmp_path / "start-{seed}")}},
        "data": {"init_args": {"train": str(tmp_path / "rows"), "val": str(tmp_path / "val-*.jsonl")}},
    }

    def keys() -> list[str]:
        study = Study([Variant("a")], rates=[0.1, 0.2], rate_seeds=[0, 1], seeds=[0])
        runs = Plan(study, tmp_path, lambda words: json.loads(json.dumps(config))).runs_for_rates()
        return [run.key for run in runs if run.rate == 0.1]

    before = keys()
    (tmp_path / "start-1" / "README.md").write_text("b")
    assert keys() == before
    (tmp_path / "start-1" / "model.safetensors").write_text("b")
    after = keys()
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    (tmp_path / "val-1.jsonl").write_text("{}")
    with_more_rows = keys()
    (tmp_path / "rows" / "b.jsonl").write_text("{}")
    assert len({*after, *with_more_rows, *keys()}) == 6
