"""`lit-ift recipes`, `schema` and `completion`, and runs of recipes by name from another folder."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import run

from lit_ift.cli import whole_tree
from lit_ift.cli.command import COMMANDS
from lit_ift.recipes import find, names

TINY = [
    *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.precision", "32-true"),
    *("--trainer.accumulate_grad_batches", "1", "--data.batch_size", "2", "--data.val_fraction", "0"),
    *("--trainer.accelerator", "cpu", "--checkpoint.save_top_k", "0", "--checkpoint.save_last", "false"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_list_show_and_copy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == names()
    assert run("recipes", "show", "qwen3/8b-lora") == 0
    assert capsys.readouterr().out == find("qwen3/8b-lora").read_text(encoding="utf-8")
    assert run("recipes", "copy", "qwen3/8b-lora", "deep/mine.yaml") == 0
    copied = Path("deep/mine.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(copied) == yaml.safe_load(find("qwen3/8b-lora").read_text(encoding="utf-8"))
    schema = Path(copied.partition("$schema=")[2].splitlines()[0])
    assert schema.is_absolute()
    assert json.loads(schema.read_text(encoding="utf-8"))["title"] == "Configuration of lit-ift fit"
    assert run("recipes", "copy", "qwen3/8b", "deep/mine.yaml") == 1
    assert "deep/mine.yaml exists already" in capsys.readouterr().err
    assert Path("deep/mine.yaml").read_text(encoding="utf-8") == copied
    Path("file").touch()
    assert run("recipes", "copy", "qwen3/8b", "file/mine.yaml") == 1
    assert "file/mine.yaml cannot be written" in capsys.readouterr().err
    assert run("recipes", "show", "qwen3/8c") == 1
    assert "Did you mean 'qwen3/8b'?" in capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    for words, title in (((), "fit"), (("--command", "frozen-lake"), "frozen-lake")):
        assert run("schema", *words) == 0
        assert json.loads(capsys.readouterr().out)["title"] == f"Configuration of lit-ift {title}"


def test_a_recipe_that_extends_others_trains_by_name(here: Path, data_file: Path, model_folder: Path) -> None:
    options = ["--model.model", str(model_folder), "--data.train", str(data_file), "--data.max_length", "512"]
    Path("mine.yaml").write_text("extends: [smollm2/360m]\nmodel: {init_args: {lam: 0.125}}\n", encoding="utf-8")
    assert run("fit", "--config", "mine.yaml", "--model", "SFTModule", *options, *TINY) == 0
    saved = yaml.safe_load(Path("checkpoints/runs/version_0/config.yaml").read_text(encoding="utf-8"))
    assert "extends" not in saved
    assert saved["model"]["class_path"] == "lit_ift.SFTModule"
    assert saved["model"]["init_args"]["model"] == str(model_folder)
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2.0e-5
    assert saved["data"]["init_args"]["train"] == str(data_file)
    # What was saved is whole, and runs again.
    assert run("fit", "--config", "checkpoints/runs/version_0/config.yaml", "--trainer.max_steps", "2") == 0


def test_an_unknown_recipe_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", "ift/smollm2") == 2
    assert "neither a file nor a recipe 'ift/smollm2'. Did you mean 'ift/smollm2-135m'?" in capsys.readouterr().err


@pytest.fixture
def few_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("merge", "export", "recipes", "recipes list", "recipes show")
    few = {name: COMMANDS[name] for name in kept}
    monkeypatch.setattr(whole_tree, "COMMANDS", few)
    monkeypatch.setattr("lit_ift.cli.tree.COMMANDS", few)


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")
@pytest.mark.usefixtures("few_commands")
def test_bash_completes_commands_and_options(here: Path) -> None:
    pytest.importorskip("shtab", reason="the command needs shtab")
    Path("script.sh").write_text(whole_tree.completion_script("bash"), encoding="utf-8")

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = (
            f"source ./script.sh; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_lit_ift lit-ift; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert completed("lit-ift", "m") == {"merge"}
    assert completed("lit-ift", "recipes", "s") == {"show"}
    assert {"--model", "--merge", "--max_shard_size"} <= completed("lit-ift", "export", "--m")


def test_the_parser_of_every_command_is_found() -> None:
    """Of Lightning's four, which take long, one."""
    for name, command in COMMANDS.items():
        if command.module is not None and name not in ("validate", "test", "predict"):
            assert whole_tree.parser_of(name).format_usage()
