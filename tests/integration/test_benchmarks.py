"""The benchmarks run with tiny sizes, contestants compute the same losses, and pages have the tables they wrote."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
LONG = ("--max-length", "4000")
"""The tiny tokenizer has one token a byte."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other as a command in their folder does; afterwards they are forgotten."""
    monkeypatch.syspath_prepend(str(FOLDER))
    known = set(sys.modules)
    yield
    for name in {path.stem for path in FOLDER.glob("*.py")} & (set(sys.modules) - known):
        del sys.modules[name]


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    """The shortest rows of the recorded ones, by file."""
    found = {}
    for path in (FOLDER / "rows").glob("*.jsonl"):
        lines = sorted(path.read_text(encoding="utf-8").splitlines(), key=len)[:6]
        (tmp_path / path.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        found[path.stem] = str(tmp_path / path.name)
    return found


def run_to_the_end(*words: str) -> Any:
    """The exit code of a command, which may leave by itself."""
    try:
        return run(*words)
    except SystemExit as end:
        return end.code


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def measured(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> list[dict[str, Any]]:
    """The results that a script writes when it is called with these words."""
    module = script(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--results", str(folder), *map(str, words)])
    module.main()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}.*.json"))]
    assert all(told["median"] > 0 for result in results for told in result["summary"].values())
    assert script("write_tables").all_tables(results).count("###") == len(results)
    return results


def test_all_compute_the_same_losses(model_folder: Path, rows: dict[str, str], tmp_path: Path) -> None:
    from lit_ift import PreferenceModule, SFTModule

    batches, peers, pairs_speed = script("batches"), script("peers"), script("pairs_speed")
    module = SFTModule(str(model_folder), reduction="token")
    module.configure_model()
    batch = batches.instruction_rows(rows["instruct"], module.tokenizer, max_length=4000, max_rows=6).batches(3, 1)[0]
    losses, weights = module.example_losses(batch)[0], module.example_weights(batch)
    mine = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(peers.plain_loss(module.model)(batch), mine)
    pytest.importorskip("trl")
    torch.testing.assert_close(peers.trl_sft_loss(module.model, module.tokenizer, tmp_path)[0](batch), mine)

    given, groups = batches.pair_rows(rows["pairs"], module.tokenizer, max_length=4000, max_rows=6).pairs(2, 1)
    dpo = PreferenceModule(module.model, reference="cached").example_losses(pairs_speed.with_reference(given[0]))[0]
    collate, theirs, _ = peers.trl_dpo_loss(module.model, module.tokenizer, tmp_path, max_length=4000)
    theirs_of_pairs = theirs(collate([pairs_speed.trl_example(row) for row in groups[0]]))
    # Differences of sums of thousands of nats, in float32.
    torch.testing.assert_close(theirs_of_pairs, dpo.mean(), rtol=2e-4, atol=0)


def test_step_time(model_folder: Path, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model", model_folder, "--batch", 2, "--rounds", 2, *LONG, "--rows", rows["instruct"]]
    low, whole = measured("step_time", tmp_path / "a", monkeypatch, *words, "--low", rows["low_share"])[::-1]
    assert {"SFT", "IFT", "IFT, predictions reused", "transformers"} <= set(whole["summary"])
    assert low["facts"]["response_share"] <= 0.25 < whole["facts"]["response_share"]
    share = whole["facts"]["response_share"]
    assert whole["facts"]["target_of_ift"] == pytest.approx(1.03 * (3 + share) / 3, abs=1e-3)
    assert str(tmp_path) not in json.dumps([low, whole])
    before = (tmp_path / "a").stat().st_mtime_ns
    measured("step_time", tmp_path / "a", monkeypatch, *words, "--low")  # Both are there: nothing is measured.
    assert (tmp_path / "a").stat().st_mtime_ns == before


def test_fit_and_pairs(
    model_folder: Path, rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", model_folder, "--batch", 2, "--rounds", 1, *LONG]
    (fit,) = measured("fit_speed", tmp_path, monkeypatch, *words, "--rows", rows["instruct"], "--fit-rows", 4)
    assert {"SFT", "IFT"} <= set(fit["summary"])
    files = ["--long", rows["pairs_long_prompts"], "--pairs", rows["pairs"]]
    assert len(measured("pairs_speed", tmp_path, monkeypatch, *words, *files)) == 2


def test_memory_growth_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = script("memory_step")
    monkeypatch.setattr(memory, "grown", memory.growth)  # Not in processes of their own.
    sizes = ["--vocabulary", 5000, "--lengths", 64, "--batches", 2, "--hidden", 64]
    measured("memory_step", tmp_path, monkeypatch, *sizes)
    picture = tmp_path / "growth.png"
    words = ["--hidden", 64, "--layers", 1, "--rounds", 1, "--sizes", 32, 64, "--parts", "length"]
    measured("growth", tmp_path, monkeypatch, *words, "--plot", picture)
    assert picture.stat().st_size > 1000
    results = measured("gpu", tmp_path, monkeypatch, "--tiny", "--seconds", 0, "--rounds", 1)
    assert [result["part"] for result in results] == ["135M", "1B, pairs", "1B", "7B"]


def test_flops_of_a_model_whose_weights_are_counted() -> None:
    """Without attention and with all tokens trained: 6 FLOPs a weight and token, 8 for IFT."""
    gpu = script("gpu")
    shape = gpu.TINY
    model = gpu.make_model(shape, "bf16-mixed", 64, "cpu")
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)  # The table is tied: it is counted as the head.
    assert gpu.flops_a_token(shape, 0, 1.0, 3) == 6 * weights
    assert gpu.flops_a_token(shape, 0, 1.0, 4) == 8 * weights


def test_commands_of_startup(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a right call; the quickstart, which ends its process, is only made up."""
    from argparse import Namespace

    startup = script("startup")
    monkeypatch.chdir(tmp_path)
    options = Namespace(model=str(model_folder), without_answers=["--samples.enabled", "false"])
    calls = [*startup.commands(options, tmp_path).values()]
    calls += [[*words, "--print_config"] for words in startup.quickstart(options, tmp_path).values()]
    own = [words[len(startup.LIT_IFT) :] for words in calls if "lit_ift" in words]
    assert len(own) == 8
    for words in own:
        ended = run_to_the_end(*words)
        assert ended in (0, None), words


def test_ratios_and_intervals() -> None:
    side_by_side = script("side_by_side")
    rounds = [{"a": 2.0 * n, "b": 1.0 * n} for n in range(1, 6)] + [{"a": 3.0}]
    assert side_by_side.paired_ratio(rounds, "a", "b") == (2.0, 2.0, 2.0)
    middle, low, high = side_by_side.median_interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (middle, low) == (3.0, 1.0)
    assert high in (4.0, 100.0)


def test_all_take_turns_and_some_seldom() -> None:
    side_by_side = script("side_by_side")
    order: list[str] = []

    def turn(name: str) -> Any:
        return lambda number: order.append(f"{name}{number}") or 1.0

    found = side_by_side.take_turns({n: turn(n) for n in "abc"}, 3, every={"c": 2}, cold=["c"])
    assert order == ["a0", "b0", "a0", "b0", "c0", "b1", "a1", "c2", "a2", "b2"]
    assert [set(one) for one in found] == [set("abc"), set("ab"), set("abc")]


def test_pages_have_the_tables_of_the_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run: python benchmarks/write_tables.py"""
    write_tables = script("write_tables")
    texts = {page: page.read_text(encoding="utf-8") for page in write_tables.PAGES}
    written: dict[Path, str] = {}
    monkeypatch.setattr(Path, "write_text", lambda page, text, **_: written.update({page: text}))
    monkeypatch.setattr(sys, "argv", ["write_tables.py"])
    write_tables.main()
    assert written == texts
