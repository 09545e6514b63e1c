"""The ``lit-ift`` command."""

from lit_ift.cli.command import main

__all__ = ["main"]
