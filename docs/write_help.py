"""Write what ``--help`` of each command prints, as its parser says it, and the schemas of configurations.

Run: python docs/write_help.py [FOLDER]
"""

import io
import json
import os
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path

import config_schema
from jsonargparse import ArgumentParser

from lit_ift.cli.command import COMMANDS, HELP_TEXTS, help_file
from lit_ift.cli.tree import tree
from lit_ift.recipes import schema_file

WIDTH = 120
"""Of the texts [characters]."""


def written(name: str) -> str:
    """The help of a command, of a group, or of ``lit-ift`` itself (an empty name), from its parser."""
    os.environ["COLUMNS"] = str(WIDTH)
    module = COMMANDS[name].module if name else None
    if module is None:
        parser = tree(ArgumentParser, {})
        for word in name.split():
            parser = parser._subcommands_action._name_parser_map[word]
        return parser.format_help()
    with redirect_stdout(io.StringIO()) as text, suppress(SystemExit):
        import_module(f"lit_ift.cli.{module}").run([*name.split(), "--help"])
    return text.getvalue()


if __name__ == "__main__":
    folder = Path(sys.argv.pop()) if len(sys.argv) > 1 else None
    for command in ("", *COMMANDS):
        ((folder or HELP_TEXTS) / help_file(command).name).write_text(written(command), encoding="utf-8")
    for command in config_schema.COMMANDS:
        file = schema_file(command)
        text = json.dumps(config_schema.written(command), indent=1, ensure_ascii=False) + "\n"
        ((folder or file.parent) / file.name).write_text(text, encoding="utf-8")
