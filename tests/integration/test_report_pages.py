"""`lit-ift inspect` and `lit-ift report`: pages of real commands, opened in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run as lit_ift
from rowfiles import jsonl
from tiny import tiny_model

from lit_ift.evaluation.results import TaskResult, write_results

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
SHORT = ("--device", "cpu")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \u202e \u0007 é"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(jsonl([{"prompt": HOSTILE, "completion": HOSTILE}, {"prompt": "Say b", "completion": "bb"}]))
    return path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("there is no chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1300,1000"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def colour(browser: Any, span: Any) -> str:
    return str(browser.execute_script("return getComputedStyle(arguments[0]).backgroundColor", span))


def check_page(browser: Any, page: Path) -> list[Any]:
    """Open a page; nothing is loaded or complained of, and every token has numbers. Returns the tokens."""
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded == []
    assert browser.title.startswith("Tokens") or browser.title.startswith("Report")
    assert browser.execute_script("return document.scripts.length + document.images.length") == 0
    tokens = browser.find_elements("css selector", ".t")
    for token in tokens:
        title = token.get_attribute("title")
        assert re.search(r"log p -\d+\.\d{3} ", title), title
        assert "the model says: " in title
    return list(tokens)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, rows: Path) -> list[Path]:
    """Two runs of IFT with an adapter that differ in their seed."""
    root = tmp_path_factory.mktemp("trained")
    words = ["fit", "--model", "IFTModule", "--model.init_args.model", model_folder, "--model.init_args.lora.r", 4]
    words += ["--data", "InstructionDataModule", "--data.init_args.train", rows, "--data.init_args.val", rows]
    words += ["--trainer.max_steps", 3, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", root]
    words += ["--model.init_args.optimizer", "torch.optim.AdamW", "--model.init_args.optimizer.init_args.lr", 0.1]
    words += ["--trainer.max_epochs", 3, "--samples.prompts", json.dumps([HOSTILE]), "--data.init_args.max_length", 250]
    for seed in (1, 2):
        assert lit_ift(*words, "--seed_everything", seed) == 0
    return sorted((root / "runs").iterdir())


@pytest.mark.browser
def test_a_report_in_a_browser(trained: list[Path], browser: Any) -> None:
    result = TaskResult("run", "<b>sums</b>", "acc", 0.5, 0.1, 25, left_out={"too long": 2})
    write_results(trained[0] / "results.json", [result])
    assert lit_ift("report", *trained, *SHORT) == 0
    tokens = check_page(browser, trained[0] / "report.html")
    assert all("propagation weight" in token.get_attribute("title") for token in tokens)
    assert len({colour(browser, token) for token in tokens}) > 3
    shown = {section.get_attribute("id"): section.text for section in browser.find_elements("tag name", "section")}
    assert list(shown) == ["configuration", "data", "curves", "evaluation", "answers", "tokens"]
    assert "IFTModule" in shown["configuration"]
    assert "seed_everything 1 2" in " ".join(shown["configuration"].split())
    assert "train: 2 rows read, 2 kept" in shown["data"]
    browser.find_element("css selector", "#data summary").click()
    assert "trained turns end in" in browser.find_element("css selector", "#data pre").text
    assert "Mean of 2 runs" in shown["curves"]
    assert browser.find_element("css selector", "#curves svg").size["width"] > 500
    assert "<b>sums</b> acc run 0.5000 ± 0.1000 25 left out: 2 (too long)" in shown["evaluation"]
    assert "<script>" in shown["answers"]
    assert "The first 2 held-out rows (val)." in shown["tokens"]


def test_what_a_run_lacks_is_said(trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    config = yaml.safe_load((trained[0] / "config.yaml").read_text())
    config["data"]["init_args"]["train"] = str(tmp_path / "gone.jsonl")
    (cut / "config.yaml").write_text(yaml.safe_dump(config))
    assert lit_ift("report", cut, *SHORT) == 0
    told = capsys.readouterr().err
    page = (cut / "report.html").read_text(encoding="utf-8")
    for missing in ("gone.jsonl", "the folder holds neither a model nor checkpoints"):
        assert missing in told
        assert missing in page
    assert "curves.csv: its run ended before" in page
    assert lit_ift("report", trained[0], *SHORT, "--rows", tmp_path / "gone.jsonl") == 0
    assert "missing in the report: " in capsys.readouterr().err


def test_bad_calls_of_report(trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*words: Any, code: int = 1) -> str:
        assert lit_ift("report", *words, *SHORT) == code
        return capsys.readouterr().err

    assert "is no folder: name the folder of a run" in fails(tmp_path / "none")
    assert "has no config.yaml" in fails(tmp_path)
    assert "is named twice" in fails(trained[0], trained[0] / ".." / trained[0].name)
    assert "--max_length says nothing of held-out rows" in fails(trained[0], "--max_length", 7)
    assert "required: runs" in fails(code=2)
    assert "Did you mean '--output'" in fails(trained[0], "--ouput", "x", code=2)
    (tmp_path / "mine.html").touch()
    assert "exists" in fails(trained[0], "--output", tmp_path / "mine.html")
    (tmp_path / "results.json").write_text("[]")
    assert "is no file of results" in fails(trained[0], "--results", f"[{tmp_path / 'results.json'}]")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_bytes((trained[0] / "config.yaml").read_bytes())
    (damaged / "answers.json").write_text('{"before": [')
    assert "answers.json cannot be read" in fails(damaged)
    (damaged / "config.yaml").write_text("just text")
    assert "it is no configuration of a run" in fails(damaged)


@pytest.mark.browser
def test_a_page_in_a_browser(rows: Path, model_folder: Path, tmp_path: Path, browser: Any) -> None:
    page = tmp_path / "page.html"
    assert lit_ift("inspect", model_folder, rows, "--output", page, *SHORT) == 0
    tokens = check_page(browser, page)
    assert all("propagation weight" in token.get_attribute("title") for token in tokens)
    colours = [colour(browser, token) for token in tokens]
    assert len(set(colours)) > 3
    shown = "".join(token.get_attribute("textContent") for token in tokens)
    assert shown == HOSTILE.replace("\u202e", "\\u202e").replace("\u0007", "\\x07") + "<|im_end|>bb<|im_end|>"
    browser.find_element("id", "by-surprise").click()
    assert [colour(browser, token) for token in tokens] != colours
    said = browser.find_element("css selector", "rt")
    assert said.is_displayed()
    browser.find_element("id", "says").click()
    assert not said.is_displayed()


@pytest.mark.browser
def test_a_pair_in_a_browser(model_folder: Path, tmp_path: Path, browser: Any) -> None:
    pair = {"prompt": "Which?", "chosen": "this one", "rejected": "that one"}
    (tmp_path / "pairs.jsonl").write_bytes(jsonl([pair]))
    other = tmp_path / "other"
    tiny_model(seed=1).save_pretrained(other)
    words = ("inspect", model_folder, tmp_path / "pairs.jsonl", "--output", tmp_path / "page.html", *SHORT)
    assert lit_ift(*words, "--model", other) == 0
    tokens = check_page(browser, tmp_path / "page.html")
    chosen, rejected = (
        side.find_elements("css selector", ".t") for side in browser.find_elements("class name", "side")
    )
    assert len(chosen) + len(rejected) == len(tokens)
    assert all("share in the margin" in token.get_attribute("title") for token in rejected)
    before = [[colour(browser, token) for token in side] for side in (chosen, rejected)]
    browser.find_element("id", "by-margin").click()
    after = [[colour(browser, token) for token in side] for side in (chosen, rejected)]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_bad_calls_of_inspect(
    rows: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"

    def fails(*words: Any, code: int = 1) -> str:
        assert lit_ift("inspect", *words[:2], "--output", page, *SHORT, *words[2:]) == code
        return capsys.readouterr().err

    assert "there is no such file or folder" in fails(tmp_path / "none", rows)
    assert "none.jsonl" in fails(model_folder, tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl" in fails(model_folder, tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(jsonl([{"prompt": "a", "completion": "b"}, {"quest": "b"}]))
    assert "bad.jsonl:2" in fails(model_folder, tmp_path / "bad.jsonl")
    assert "Did you mean '--max_rows'" in fails(model_folder, rows, "--max_row", 1, code=2)
    assert "at most 1" in fails(model_folder, rows, "--lam", 2, code=2)
    assert "device=nope" in fails(model_folder, rows, "--device", "nope")
    assert "nowhere" in fails(model_folder, rows, "--model", tmp_path / "nowhere")
    assert "Leave one of the two out" in fails(model_folder, rows, "--model", model_folder, "--alone")
    assert not page.exists()
    page.write_text("mine")
    assert "exists: name another file, or say --overwrite" in fails(model_folder, rows)
    assert page.read_text() == "mine"
    assert lit_ift("inspect", model_folder, rows, "--output", page, *SHORT, "--overwrite", "--max_rows", 1) == 0
    assert "Tokens as the model sees them" in page.read_text(encoding="utf-8")
    assert lit_ift("inspect", model_folder, rows, "--output", tmp_path / "no" / "x.html", *SHORT) == 1
    assert "there is no folder" in capsys.readouterr().err
