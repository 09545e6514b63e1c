"""``lit-ift plan``: what a run of a configuration takes, before it begins."""

from argparse import ArgumentError
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Final, Literal

from lit_ift.cli.console import table_console
from lit_ift.cli.tree import function_parser, parse
from lit_ift.errors import UserError, told_as

OWN: Final = ("--hardware", "--json")
TOO_LARGE: Final = (
    "Batches of more than four million tokens, padding included, are such. Lower data.batch_size or data.max_length."
)
FLAGS: Final = ("--fast", "-h", "--help")
Hardware = Literal[
    "here", "t4", "l4", "rtx3090", "rtx4090", "rtxa6000", "l40s", "a100-40", "a100-80", "h100-80", "h200"
]


def plan(*, hardware: Hardware = "here", json: Path | None = None, fast: bool = False) -> None:
    """Say what a configuration takes: parameters, steps, FLOPs, memory by part, time, what fits, what contradicts.

    No weights are read and nothing is trained. Takes all options of ``lit-ift fit``.

    Args:
        hardware: device of each rank; here is this machine, which is measured, and times on others are estimates.
        json: file to write the same to.
        fast: leave out what other ways to run would take.
    """


def run(words: Sequence[str]) -> int:
    """Plan a configuration, and return 0; 1 if ``fit`` would refuse it.

    Raises:
        argparse.ArgumentError: an option is unknown or has a wrong value.
        UserError: the model's configuration cannot be obtained.
    """
    own, of_fit = split_words(words[1:])
    parser = function_parser(plan)
    parser.usage = "lit-ift plan CONFIG [options] [options of fit]"
    options = parse(["plan", *own], "plan", parser)
    if not of_fit:
        raise ArgumentError(None, "name a configuration: lit-ift plan CONFIG")
    from lit_ift.cli.plan_configuration import planned
    from lit_ift.data.report.html import write_page
    from lit_ift.planning.dry_run import UnknownValueError
    from lit_ift.planning.plan import as_plain
    from lit_ift.planning.show import shown

    with told_as(UnknownValueError, lambda error: UserError(f"{error}. {TOO_LARGE}")):
        found = planned(of_fit, options.hardware, alternatives=not options.fast)
    table_console().print(shown(found))
    if options.json is not None:
        write_page(options.json, dumps(as_plain(found), indent=1, ensure_ascii=False) + "\n")
    return 1 if found.conflicts else 0


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and those of ``fit``. A first word that is no option names the configuration."""
    own: list[str] = []
    of_fit: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.partition("=")[0] in (*OWN, *FLAGS):
            value = [] if "=" in word or word in FLAGS else [text for text in [next(rest, None)] if text]
            own += [word, *value]
        elif not of_fit and not word.startswith("-"):
            of_fit += ["--config", word]
        else:
            of_fit.append(word)
    return own, of_fit
