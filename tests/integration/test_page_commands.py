"""Every command in the documentation is understood: its options exist, and its configurations are there."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lit_ift.cli import main

ROOT = Path(__file__).parents[2]
RUN_ELSEWHERE = ("data.md", "runs.md", "subclass.md")
"""Pages whose commands other tests run to the end."""
LINES = sorted(
    {
        line
        for page in (ROOT / "docs").glob("*.md")
        if page.name not in RUN_ELSEWHERE
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("lit-ift ")
    }
)


class Understood(BaseException):
    """Ends a command where its words have been understood."""


@pytest.fixture
def only_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with the configurations, a command ends once its words have been understood."""
    parse_args = ArgumentParser.parse_args

    def parse(parser: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse_args(parser, *args, **kwargs)
        raise Understood

    monkeypatch.setattr(ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", ["lit-ift"])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


def test_pages_have_commands() -> None:
    assert len(LINES) > 30


@pytest.mark.parametrize("line", LINES)
def test_is_understood(line: str, only_parsing: None) -> None:
    words = shlex.split(line)[1:]
    for word in words:
        if word.endswith(".yaml") and "/" not in word:  # The reader's own.
            Path(word).write_text("{}", encoding="utf-8")
    with pytest.raises(Understood):
        main(words)
