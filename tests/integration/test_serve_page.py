"""docs/serve.md: its example runs on an export, and lit-ift's and the hub's commands parse."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_example_answers(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "checkpoints/runs/version_0/model"
    place.parent.mkdir(parents=True)
    place.symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    assert (
        capsys.readouterr().out.strip()
        == str(
            scope["tokenizer"].decode(  # type: ignore[attr-defined]
                scope["output"][0, scope["inputs"]["input_ids"].shape[1] :],
                skip_special_tokens=True,  # type: ignore[index]
            )
        ).strip()
    )


def test_the_commands_of_this_package_parse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ours = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("lit-ift ")]
    assert ours
    for words in ours:
        # The run is not there, which is told after the words were understood.
        assert run(*[str(tmp_path / word) if "/" in word else word for word in words]) == 1
        assert str(tmp_path) in capsys.readouterr().err


def test_the_hub_s_command_knows_the_options() -> None:
    (upload,) = [shlex.split(line) for line in COMMANDS if line.startswith("hf upload")]
    shown = subprocess.run(
        [Path(sys.executable).with_name("hf"), "upload", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(word in shown for word in upload if word.startswith("--"))
