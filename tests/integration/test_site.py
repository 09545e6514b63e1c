"""The site builds without a warning, so that no link is broken, and the tutorial works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import run

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.docs
def test_every_page_is_in_the_site_and_in_llms_txt(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    told = re.findall(r"^- \[.+?\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted({"benchmarks.md", *map(str, pages)})
    for address in told:
        assert (site / address).is_file()
        assert (site / address.removesuffix("index.md").removesuffix(".md") / "index.html").is_file()


@pytest.mark.docs
def test_every_page_but_those_of_objectives_is_in_the_nav() -> None:
    def entries(part: object) -> list[str]:
        if isinstance(part, dict | list):
            return [name for inner in (part.values() if isinstance(part, dict) else part) for name in entries(inner)]
        return [str(part)]

    nav = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(nav) == sorted({"benchmarks.md", *(path.name for path in (ROOT / "docs").glob("*.md"))})


@pytest.mark.docs
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*src="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', html
        )
        assert [address for pair in loaded for address in pair if address.startswith(("http", "//"))] == [], page


@pytest.mark.docs
def test_the_api_page_has_the_docstrings(site: Path) -> None:
    html = (site / "api/index.html").read_text(encoding="utf-8")
    assert html.count("doc-heading") >= 18
    assert "Intuitive Fine-Tuning (arXiv:2405.11870): alignment from instruction data" in html


def test_the_tutorial_works(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows are read whole, and its run trains, on a tiny model for a step."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    exec(code, {})
    (config,) = re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.DOTALL)
    Path("town.yaml").write_text(config, encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in re.findall(r"^lit-ift .*$", TUTORIAL, re.MULTILINE)]
    small = ["--model.model", str(model_folder), "--data.max_length", "512", "--trainer.max_epochs", "1"]
    fits = [words for words in commands if words[0] == "fit"]
    assert len(fits) == 2
    assert run(*fits[0], *small) == 0
    assert Path("checkpoints/runs/version_0/samples.html").is_file()
    told = capsys.readouterr()
    assert "8 rows" in told.out + told.err
    with pytest.raises(SystemExit, match="0"):
        run(*fits[1], *small, "--print_config")
    for words in commands:
        if words[0] == "data":
            words[words.index("--tokenizer") + 1] = str(model_folder)
            assert run(*words, "--max_length", "512") == 0
