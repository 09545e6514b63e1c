"""``lit-ift frozen-lake``: run a study of the Frozen Lake game, or draw that of another run again."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

from jsonargparse import ArgumentParser, Namespace

from lit_ift.cli.command import COMMANDS
from lit_ift.cli.console import table_console
from lit_ift.cli.tree import parse
from lit_ift.errors import UserError, told_as
from lit_ift.frozen_lake.figures import save_animations, save_figures
from lit_ift.frozen_lake.files import load_study, save_study, write_tables
from lit_ift.frozen_lake.report import report_lines, results_table
from lit_ift.frozen_lake.settings import Settings
from lit_ift.frozen_lake.study import run_study

T = TypeVar("T")

DEFAULTS: Final = Settings()
"""Of which kind each group of options is, can be seen from these."""


def run(words: Sequence[str]) -> int:
    """Run ``frozen-lake``, given from there on, and return 0.

    Raises:
        argparse.ArgumentError: the call is wrong.
        UserError: the configuration cannot be used.
    """
    settings, redraw = read(words[1:])
    folder = settings.output
    check_folder(folder)
    study = run_study(settings) if redraw is None else load_study(redraw)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if redraw is None:
        save_study(study, folder / "results.json")
        written = [folder / "results.json", *write_tables(study, folder)]
    console = table_console(160)
    console.print(results_table(study))
    for line in report_lines(study):
        console.print(line, soft_wrap=True)
    written += save_figures(study, folder) if settings.figures else []
    written += save_animations(study, folder) if settings.animations else []
    console.print(f"Training and judging took {study.seconds:.0f} s.")
    for path in written:
        console.print(str(path), soft_wrap=True)
    return 0


def read(words: Sequence[str]) -> tuple[Settings, Path | None]:
    """Settings, and the study to draw again, if any.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value.
        UserError: the options do not fit together.
    """
    usage = "lit-ift frozen-lake [--config FILE] [options]"
    parser = ArgumentParser(usage=usage, description=COMMANDS["frozen-lake"].sentence)
    parser.add_argument("--config", "-c", action="config", help="a YAML file of options; several overlay each other")
    parser.add_class_arguments(Settings)
    redraw_help = "results.json of an earlier run: draw its pictures again, into --output, and train nothing"
    parser.add_argument("--redraw", type=Path | None, default=None, help=redraw_help)
    options = parse(["frozen-lake", *words], "frozen-lake", parser)
    made = {}
    for field in fields(Settings):
        value = options[field.name]
        # A group is made on its own, so that the message can say which one is at fault: several have a beta.
        if isinstance(value, Namespace):
            value = _made(field.name + ".", type(getattr(DEFAULTS, field.name)), vars(value))
        made[field.name] = value
    return _made("", Settings, made), options["redraw"]


def _made(prefix: str, kind: Callable[..., T], values: dict[str, Any]) -> T:
    with told_as(ValueError, lambda error: UserError(f"The configuration cannot be used: {prefix}{error}")):
        return kind(**values)


def check_folder(folder: Path) -> None:
    """See to it before training that results can be written to a folder, which is not made yet.

    Raises:
        UserError: it or what is to hold it is no folder, or must not be written to.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "may not be written to" if nearest.is_dir() else "is no folder"
        raise UserError(f"output={folder}: {nearest} {what}. Name another folder.")
