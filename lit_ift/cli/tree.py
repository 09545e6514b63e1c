"""The tree of commands as one parser. A call makes the options of its own command alone, which is what takes time."""

from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, Final, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from lit_ift.cli.command import COMMANDS
from lit_ift.cli.explain import explained, nearest_options

P = TypeVar("P", bound=ArgumentParser)

DESCRIPTIONS: Final = {
    "": "Single-process alignment of language models in PyTorch Lightning.",
    "data": "Look at the data before it is trained on. No model is loaded.",
}
EXAMPLES: Final = {
    "": """\
examples:
  lit-ift fit --config configs/quickstart.yaml
  lit-ift fit --config configs/ift/smollm2-135m.yaml --model.init_args.lam 0.3
  lit-ift fit --config configs/ift/smollm2-135m.yaml --print_config
  lit-ift data check --config configs/ift/smollm2-135m.yaml
  lit-ift export checkpoints/runs/version_0/checkpoints/last.ckpt model
  lit-ift merge checkpoints/runs/version_0/model merged
  lit-ift chat checkpoints/runs/version_0
  lit-ift generate checkpoints/runs/version_0 questions.jsonl answers.jsonl
  lit-ift inspect HuggingFaceTB/SmolLM2-135M-Instruct my.jsonl
  lit-ift frozen-lake --config configs/frozen-lake/default.yaml
""",
    "data": """\
examples:
  lit-ift data check my.jsonl --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --max_skipped 0
  lit-ift data check --config configs/ift/smollm2-135m.yaml --html report.html
  lit-ift data preview --config configs/ift/smollm2-135m.yaml --batch
""",
}


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Shows types and defaults, and keeps the lines of examples."""


def tree(kind: type[P], name: str = "", parser: ArgumentParser | None = None) -> P:
    """All commands; the one of that name with the options of its parser, the others with a line of help."""
    root = kind(prog="lit-ift", formatter_class=HelpFormatter, exit_on_error=False, allow_abbrev=False)
    groups = {"": _group(root, "")}
    for path, command in COMMANDS.items():
        above, _, word = path.rpartition(" ")
        own = parser if path == name and parser is not None else ArgumentParser()
        groups[above].add_subcommand(word, own, help=command.text)
        own.prog = f"lit-ift {path}"
        if command.module is None:
            groups[path] = _group(own, path)
    return root


def _group(parser: ArgumentParser, path: str) -> Any:
    """Where the commands of a group are added."""
    program = f"lit-ift {path}".strip()
    parser.usage = f"{program} COMMAND [options]"
    parser.description, parser.epilog = DESCRIPTIONS[path], EXAMPLES[path]
    about = f"`{program} COMMAND --help` lists a command's options."
    return parser.add_subcommands(title="commands", description=about, metavar="COMMAND", help=" ")


def add_options(parser: ArgumentParser, source: Callable[..., object]) -> None:
    """Add the options of a function or class, explained by its docstring: positional if required, flags if False."""
    flags: set[str | int] = {option.name for option in signature(source).parameters.values() if option.default is False}
    add = parser.add_class_arguments if isinstance(source, type) else parser.add_function_arguments
    add(source, as_group=False, as_positional=True, skip=flags)
    for option in docstring_parser.parse(source.__doc__ or "").params:
        if option.arg_name in flags:
            parser.add_argument(f"--{option.arg_name}", action="store_true", help=option.description)


def function_parser(function: Callable[..., object]) -> ArgumentParser:
    """The options of a command that is a function."""
    parser = ArgumentParser(description=docstring_parser.parse(function.__doc__ or "").description)
    add_options(parser, function)
    return parser


def parse(words: Sequence[str], name: str, parser: ArgumentParser) -> Namespace:
    """The options of a command.

    Args:
        words: the command line from the command on.
        name: of the command.
        parser: of its options.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value; with the option that may have been meant.
    """
    try:
        parsed = tree(ArgumentParser, name, parser).parse_args(list(words))
    except ArgumentError as error:
        options = {option for action in parser._actions for option in action.option_strings}
        hints = partial(nearest_options, options=options)
        raise explained(error, name, hints, prints_config="--print_config" in options) from error
    for word in name.split():
        parsed = parsed[word]
    return parsed
