"""Configurations that come with the package, found by name: ``--config ift/smollm2-135m``."""

from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

from lit_ift.errors import UserError, did_you_mean, told_as

SUFFIX: Final = ".yaml"
CONFIG_OPTIONS: Final = ("--config", "-c")
SCHEMA_LINE: Final = "# yaml-language-server: $schema="
"""Begins the line by which an editor finds the schema of a file; a path after it is relative to the file."""


def folder() -> Path:
    """Where the files are: inside an installed package, beside it in a checkout and in an editable install of one."""
    inside = Path(__file__).with_name("configs")
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """All recipes: their paths in `folder` without the suffix."""
    return sorted(path.relative_to(folder()).as_posix().removesuffix(SUFFIX) for path in folder().rglob(f"*{SUFFIX}"))


def find(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: such as ``ift/smollm2-135m``; the suffix ``.yaml`` and ``configs/`` before it may stand there.

    Raises:
        UserError: there is no such recipe.
    """
    bare = name.removeprefix("./").removeprefix("configs/").removesuffix(SUFFIX)
    path = folder() / f"{bare}{SUFFIX}"
    if ".." in path.parts or not path.is_file():
        hint = did_you_mean(bare, names())
        raise UserError(f"There is neither a file nor a recipe '{name}'.{hint} `lit-ift recipes list` shows recipes.")
    return path


def schema_file(command: str) -> Path:
    """Where the JSON schema of a command's configurations is, which docs/write_help.py writes."""
    return folder() / "schema" / f"{command}.json"


def sentence(path: Path) -> str:
    """What a recipe does: the first sentence of its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    told = takewhile(lambda line: line.startswith("#") and not line.startswith("# Run:"), lines[1:])
    return " ".join(" ".join(line.lstrip("# ") for line in told).partition(". ")[0].rstrip(".").split())


def with_files(words: Sequence[str]) -> list[str]:
    """A command line with the file of each recipe in place of its name, and before it the files that it extends.

    A file that several extend is read once, at its first place, so that it undoes nothing of what came after it.

    Raises:
        argparse.ArgumentError: there is no such file or recipe, or files extend each other in a circle.
    """
    with told_as(UserError, lambda error: ArgumentError(None, str(error))):
        return list(_with_files(words))


def _with_files(words: Sequence[str]) -> Iterator[str]:
    read: set[Path] = set()
    rest = iter(words)
    for word in rest:
        option, has_value, value = word.partition("=")
        if option == "--extends":
            raise UserError("extends is for files. On the command line repeat --config: later files win.")
        if option not in CONFIG_OPTIONS:
            yield word
            continue
        value = value if has_value else next(rest, "")
        if not value or set(value) & set(":{\n"):  # Nothing, or the configuration itself, as the parser takes it too.
            yield from (word,) if has_value or not value else (word, value)
            continue
        path = Path(value) if Path(value).exists() else find(value)
        for part in [*(base for base in _bases(path, ()) if base not in read), path]:
            read.add(part)
            yield from ("--config", str(part))


def _bases(path: Path, above: tuple[Path, ...]) -> list[Path]:
    """The files that a file extends, those that they extend first."""
    import yaml

    if path in above:
        circle = " -> ".join(str(part) for part in (*above, path))
        raise UserError(f"{circle}: these files extend each other in a circle. Take one `extends` out.")
    if not path.is_file():
        return []
    with told_as(UnicodeDecodeError, lambda error: UserError(f"{path} is no text in UTF-8: {error}")):
        text = path.read_text(encoding="utf-8")
    if "extends" not in text:
        return []
    with told_as(yaml.YAMLError, lambda error: UserError(f"{path} is no YAML: {error}")):
        loaded = yaml.safe_load(text)
    given = loaded.get("extends") if isinstance(loaded, dict) else None
    listed = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{path}: extends must be a name or a list of names, not {given!r}.")
    found: list[Path] = []
    for name in listed:
        base = _named(name, path)
        found += [part for part in [*_bases(base, (*above, path)), base] if part not in found]
    return found


def _named(name: str, path: Path) -> Path:
    """The file that another one names: beside it, or a recipe."""
    beside = path.parent / name
    if beside.is_file():
        return beside
    with told_as(UserError, lambda error: UserError(f"{path}: extends: {error}")):
        return find(name)
