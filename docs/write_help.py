"""Write what ``--help`` of each command prints, as its parser says it.

Run: python docs/write_help.py [FOLDER]
"""

import io
import os
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path

from jsonargparse import ArgumentParser

from lit_ift.cli.command import COMMANDS, HELP_TEXTS, help_file
from lit_ift.cli.tree import tree

WIDTH = 120
"""Of the texts [characters]."""


def written(name: str) -> str:
    """The help of a command, of a group, or of ``lit-ift`` itself (an empty name), from its parser."""
    os.environ["COLUMNS"] = str(WIDTH)
    module = COMMANDS[name].module if name else None
    if module is None:
        parser = tree(ArgumentParser)
        for word in name.split():
            parser = parser._subcommands_action._name_parser_map[word]
        return parser.format_help()
    with redirect_stdout(io.StringIO()) as text, suppress(SystemExit):
        import_module(f"lit_ift.cli.{module}").run([*name.split(), "--help"])
    return text.getvalue()


if __name__ == "__main__":
    folder = Path(sys.argv.pop()) if len(sys.argv) > 1 else HELP_TEXTS
    for command in ("", *COMMANDS):
        (folder / help_file(command).name).write_text(written(command), encoding="utf-8")
