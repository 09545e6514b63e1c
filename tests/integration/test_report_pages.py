"""`lit-ift inspect` and `lit-ift report`: pages of real commands, opened in a real browser."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run as lit_ift
from rowfiles import jsonl
from tiny import tiny_model

from lit_ift.cli.report import FUNCTIONS
from lit_ift.cli.tree import function_parser, parse

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
    assert not page.exists()
    page.write_text("mine")
    assert "exists: name another file, or say --overwrite" in fails(model_folder, rows)
    assert page.read_text() == "mine"
    assert lit_ift("inspect", model_folder, rows, "--output", page, *SHORT, "--overwrite", "--max_rows", 1) == 0
    assert "Tokens as the model sees them" in page.read_text(encoding="utf-8")
    assert lit_ift("inspect", model_folder, rows, "--output", tmp_path / "no" / "x.html", *SHORT) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", re.findall(r"^lit-ift (.*)$", PAGE, re.MULTILINE))
def test_the_commands_of_the_page_are_understood(command: str) -> None:
    words = shlex.split(command)
    assert parse(words, words[0], function_parser(FUNCTIONS[words[0]]))
