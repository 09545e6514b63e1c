"""The options of all commands at once, for scripts that complete them."""

import sys
from importlib import import_module

from jsonargparse import ArgumentParser

from lit_ift.cli.command import COMMANDS
from lit_ift.cli.tree import ParserMade, parser_alone, tree


def parser_of(name: str) -> ArgumentParser:
    """The parser of a command, as its module makes it; the command does nothing else."""
    argv = sys.argv
    with parser_alone():
        try:
            # --help, because a command may look at its words before it makes a parser, but never before this one.
            import_module(f"lit_ift.cli.{COMMANDS[name].module}").run([*name.split(), "--help"])
        except ParserMade as made:
            return made.parser
        finally:
            sys.argv = argv
    raise RuntimeError(f"{name} did not ask for the tree of commands")


def completion_script(shell: str) -> str:
    """What completes the whole command in a shell.

    Raises:
        ImportError: shtab is not installed.
    """
    import shtab  # noqa: F401

    parsers = {name: parser_of(name) for name, command in COMMANDS.items() if command.module is not None}
    for parser in parsers.values():
        for action in parser._actions:
            if action.dest.startswith("trainer."):
                vars(action)["complete"] = {}  # Not all that can be handed to each of Lightning's classes: a megabyte.
    return str(tree(ArgumentParser, parsers).get_completion_script(f"shtab-{shell}"))
