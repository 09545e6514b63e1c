"""What is wrong with a command line, and which option may have been meant."""

import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable
from typing import Final

from lit_ift.errors import nearest

_FRAME: Final = re.compile(
    r"\s*(Does not validate against any of the Union subtypes|Subtypes: \[.*|Errors:|- Expected a <class 'NoneType'>"
    r"|- Expected a path but .* either not accessible or invalid|Given value type: .*"
    r"|Given value: (Namespace|NestedArg)\(.*)"
)
_OPTION: Final = re.compile(r"(?:[Oo]ption|[Kk]ey) '([\w.+-]+)'|--([\w.+-]+)")


def essence(message: str) -> str:
    """What is wrong, without jsonargparse's account of the types that it tried and of the whole configuration."""
    lines = message.strip().splitlines()
    if not any("Union subtypes" in line for line in lines):
        return "\n".join(lines)
    # What is tried first is the type that is meant, the other one is that nothing is given.
    kept = [re.sub(r"^\s*(- )?", "", line) for line in lines if not _FRAME.fullmatch(line)]
    return "\n".join(kept or lines)


def explained(
    error: ArgumentError, command: str, hints: Callable[[str], list[str]], *, prints_config: bool = True
) -> ArgumentError:
    """The error with its message in one piece, and with what may have been meant.

    Args:
        error: the parser's.
        command: the command's name.
        hints: what the message leads to, such as the nearest option.
        prints_config: whether the command knows ``--print_config``.
    """
    # It would name arguments as it keeps them: eval.tasks.
    message = essence(str(error)).replace(f" {'.'.join(command.split())}.", " ")
    values = "; `--print_config` shows their values" if prints_config else ""
    last = f"`lit-ift {command} --help` lists the options{values}."
    return ArgumentError(None, "\n".join([message, *hints(message), last]))


def nearest_options(message: str, options: Iterable[str]) -> list[str]:
    """For each unknown option that a message names, the one of `options` that is most like it."""
    known = {option.lstrip("-") for option in options}
    close = {name: nearest(name, known) for name in unknown_options(message) if name not in known}
    return [f"Did you mean '--{option}' for '--{name}'?" for name, option in close.items() if option]


def unknown_options(message: str) -> list[str]:
    """Options that a message names, in the order of the alphabet."""
    return sorted({(key or flag).split("=")[0] for key, flag in _OPTION.findall(message)})
