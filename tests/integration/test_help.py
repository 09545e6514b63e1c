"""What ``--help`` prints, and the schema of configurations, is what the parsers say, and costs no imports."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run

from lit_ift.cli.command import COMMANDS, help_file
from lit_ift.recipes import schema_file

WRITE = Path(__file__).parents[2] / "docs" / "write_help.py"


def in_any_python(text: str) -> str:
    """The text without the argument of a short option, which Python repeats up to 3.12 alone, and without breaks.

    Where ruamel.yaml happens to be there, ``--print_config`` has one flag more.
    """
    return re.sub(r"(-\w) [A-Z]+, ", r"\1, ", " ".join(text.split())).replace(
        " comments, skip_default", " skip_default"
    )


def test_help_is_that_of_the_parsers(tmp_path: Path) -> None:
    """In a process of its own: a parser names the classes that have been imported."""
    subprocess.run([sys.executable, WRITE, tmp_path], check=True)
    for name in ("", *COMMANDS):
        live = (tmp_path / help_file(name).name).read_text(encoding="utf-8")
        assert in_any_python(help_file(name).read_text(encoding="utf-8")) == in_any_python(live), f"run: python {WRITE}"
    schemas = list(schema_file("fit").parent.glob("*.json"))
    assert {path.name for path in schemas} == {path.name for path in tmp_path.glob("*.json")} > {"fit.json"}
    for shipped in schemas:
        schema, live = (json.loads((folder / shipped.name).read_text()) for folder in (shipped.parent, tmp_path))
        assert [schema["properties"], schema.get("$defs")] == [live["properties"], live.get("$defs")], (
            f"run: python {WRITE}"
        )


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_prints_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*name.split(), "--help") == 0
    assert capsys.readouterr().out == help_file(name).read_text(encoding="utf-8")
    assert run(*name.split(), "-h") == 0
    assert capsys.readouterr().out == help_file(name).read_text(encoding="utf-8")


def test_help_and_a_misspelt_command_import_nothing_heavy() -> None:
    code = (
        "import sys; from lit_ift.cli import main; from lit_ift.cli.command import COMMANDS\n"
        "assert all(main([*name.split(), '--help']) == 0 for name in COMMANDS)\n"
        "assert main([]) == main(['--version']) == 0 and main(['nope']) == main(['data', 'previw']) == 2\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unknown command 'nope'" in done.stderr
    assert "Did you mean 'preview'?" in done.stderr


def test_models_parsers_import_nothing_heavy() -> None:
    """A wrong call is told before torch is imported."""
    code = (
        "import sys; from lit_ift.cli import main\n"
        "assert main(['merge', 'a']) == main(['export', 'a', 'b', '--merg']) == 2\n"
        "heavy = {'torch', 'lightning', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Did you mean '--merge' for '--merg'?" in done.stderr
