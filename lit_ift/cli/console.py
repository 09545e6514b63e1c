"""Where commands print their tables."""

import sys

from rich.console import Console


def table_console(width: int = 120) -> Console:
    """A console on standard output, as wide as the terminal.

    Args:
        width: where that is a file or a pipe [characters].
    """
    return Console(highlight=False, width=None if sys.stdout.isatty() else width)
