"""The command in this process."""

import sys

from lit_ift.cli import main


def run(*words: object) -> int:
    """The exit code of ``lit-ift`` with these words; what Lightning makes of ``sys.argv`` is undone."""
    argv = sys.argv
    try:
        return main([str(word) for word in words])
    finally:
        sys.argv = argv
