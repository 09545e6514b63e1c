"""``lit-ift recipes``, ``lit-ift schema`` and ``lit-ift completion``: help with configurations and with the command."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from lit_ift import recipes
from lit_ift.cli.tree import function_parser, parse
from lit_ift.errors import UserError, needing, told_as


def list_recipes() -> None:
    """List the configurations that come with lit-ift; `--config` takes their names."""
    names = recipes.names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {recipes.sentence(recipes.find(name))}")


def show(name: str) -> None:
    """Print a recipe. `lit-ift fit --config NAME --print_config` prints what it extends too, and all defaults.

    Args:
        name: as `lit-ift recipes list` shows it.
    """
    print(recipes.find(name).read_text(encoding="utf-8"), end="")


def copy(name: str, output: Path) -> None:
    """Copy a recipe, to change it. The copy extends the recipes that the original does.

    Args:
        name: as `lit-ift recipes list` shows it.
        output: file to write; must not exist.
    """
    source = recipes.find(name)
    if output.exists():
        raise UserError(f"{output} exists already. Name another file.")
    first, line, rest = source.read_text(encoding="utf-8").partition(recipes.SCHEMA_LINE)
    schema, line_break, rest = rest.partition("\n")
    if line:
        rest = f"{line}{(source.parent / schema).resolve()}{line_break}{rest}"
    with told_as(OSError, lambda error: UserError(f"{output} cannot be written: {error}. Name another file.")):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(first + rest, encoding="utf-8")
    print(f"{output}: lit-ift fit --config {output}")


def schema(*, command: Literal["fit", "frozen-lake", "compare"] = "fit") -> None:
    """Print the JSON schema of configurations, with which an editor completes and checks them.

    Args:
        command: whose configurations.
    """
    print(recipes.schema_file(command).read_text(encoding="utf-8"), end="")


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print a script that completes commands and options in a shell.

    Args:
        shell: bash: `lit-ift completion bash > ~/.local/share/bash-completion/completions/lit-ift`; zsh: into the file
            _lit-ift of a folder of $fpath; fish: into ~/.config/fish/completions/lit-ift.fish.
    """
    from lit_ift.cli.whole_tree import completion_script

    with needing("shtab", "completion", "`lit-ift completion`"):
        print(completion_script(shell))


FUNCTIONS: Final[dict[str, Callable[..., None]]] = {
    "recipes list": list_recipes,
    "recipes show": show,
    "recipes copy": copy,
    "schema": schema,
    "completion": completion,
}


def run(words: Sequence[str]) -> int:
    """Run one of these commands, given from its name on, and return 0.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: there is no such recipe, or a file is there already.
    """
    name = next(name for name in FUNCTIONS if words[: len(name.split())] == name.split())
    function = FUNCTIONS[name]
    function(**vars(parse(words, name, function_parser(function))))
    return 0
