"""Recipes are found by name, and files that extend others bring these with them."""

from argparse import ArgumentError
from pathlib import Path

import pytest

from lit_ift.errors import UserError
from lit_ift.recipes import find, folder, names, sentence, with_files


def config(*paths: object) -> list[str]:
    return [word for path in paths for word in ("--config", str(path))]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["ift/smollm2-135m", "ift/smollm2-135m.yaml", "configs/ift/smollm2-135m.yaml"])
def test_a_recipe_is_found_from_any_folder(name: str, here: Path) -> None:
    path = folder() / "ift/smollm2-135m.yaml"
    assert path.is_file()
    assert find(name) == path
    assert with_files(["fit", "--config", name]) == ["fit", *config(path)]
    assert with_files(["fit", f"--config={name}"]) == ["fit", *config(path)]
    assert with_files(["fit", "-c", name, "--model.lam", "0"]) == ["fit", *config(path), "--model.lam", "0"]


def test_every_recipe_has_a_name_and_says_what_it_does() -> None:
    assert {find(name) for name in names()} == set(folder().rglob("*.yaml"))
    assert [name for name in names() if len(sentence(find(name))) < 20] == []


def test_a_file_of_ones_own_comes_before_a_recipe(here: Path) -> None:
    Path("ift").mkdir()
    own = Path("ift/smollm2-135m")
    own.write_text("model: {}")
    assert with_files(["fit", "--config", str(own)]) == ["fit", *config(own)]


def test_what_a_file_extends_comes_before_it_and_once(here: Path) -> None:
    Path("base.yaml").write_text("model: {}")
    Path("left.yaml").write_text("extends: base.yaml")
    Path("right.yaml").write_text("extends: [base.yaml, lora/lora]")
    Path("both.yaml").write_text("extends: [left.yaml, right.yaml]")
    lora = folder() / "lora/lora.yaml"
    assert with_files(config("both.yaml")) == config("base.yaml", "left.yaml", lora, "right.yaml", "both.yaml")
    # What the second one extends was read, and must not undo the first one.
    assert with_files(config("left.yaml", "right.yaml")) == config("base.yaml", "left.yaml", lora, "right.yaml")
    assert with_files(with_files(config("both.yaml"))) == with_files(config("both.yaml"))


def test_files_beside_the_one_that_names_them(here: Path) -> None:
    Path("deep").mkdir()
    Path("deep/base.yaml").write_text("model: {}")
    Path("deep/mine.yaml").write_text("extends: base.yaml")
    assert with_files(config("deep/mine.yaml")) == config("deep/base.yaml", "deep/mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: mine.yaml", r"mine\.yaml -> mine\.yaml: these files extend each other"),
        ("extends: ift/smolm2-135m", r"mine\.yaml: extends: .*Did you mean 'ift/smollm2-135m'"),
        ("extends: [", "mine.yaml is no YAML"),
        ("extends: {a: 1}", r"mine\.yaml: extends must be a name or a list of names"),
        ("extends: [{a: 1}]", r"mine\.yaml: extends must be a name or a list of names"),
    ],
)
def test_what_cannot_be_extended_is_told(text: str, message: str, here: Path) -> None:
    Path("mine.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=message):
        with_files(config("mine.yaml"))


def test_a_file_that_is_no_text_is_told(here: Path) -> None:
    Path("mine.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ArgumentError, match=r"mine\.yaml is no text in UTF-8"):
        with_files(config("mine.yaml"))


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"neither a file nor a recipe 'ift/smolm2'.*Did you mean 'ift/smollm2-135m'"):
        find("ift/smolm2")
    with pytest.raises(UserError, match="neither a file nor a recipe"):
        find("../pyproject")


def test_the_parser_s_own_forms_stay() -> None:
    inline = ["fit", "--config", "model: {}", "--config={trainer: {max_steps: 1}}", "--config"]
    assert with_files(inline) == inline
    with pytest.raises(ArgumentError, match="extends is for files"):
        with_files(["fit", "--extends", "ift/smollm2-135m"])
