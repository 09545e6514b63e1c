"""A test that is skipped in CI for want of something that could be there makes the run fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = """
import pytest

def test_runs(): ...

def test_of_two_hosts():
    pytest.skip("there is no `ip` command")

@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""


def run(folder: Path, *words: str) -> tuple[int, str]:
    """Pytest on the files of a folder."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "guarded", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), path])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("-n", "1")])
def test_unexpected_skips_fail_the_run_and_are_listed(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "guarded.py").write_text(
        "from skips import SkipGuard\ndef pytest_configure(config): config.pluginmanager.register(SkipGuard())\n"
    )
    (tmp_path / "test_some.py").write_text(CASES)
    code, printed = run(tmp_path, *words)
    assert code == 0, printed
    (tmp_path / "test_more.py").write_text("import pytest\npytest.importorskip('no_such_module', reason='needs it')\n")
    (tmp_path / "test_some.py").write_text(CASES + "\ndef test_of_files(): pytest.skip('the files are not here')\n")
    code, printed = run(tmp_path, *words)
    assert code == 1, printed
    assert "test_some.py::test_of_files: the files are not here" in printed
    assert "test_more.py: needs it" in printed
    assert "`ip`" not in printed.partition("tests/skips.py")[2]
