"""``--model.help`` shows the class that the configuration names."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

SECTIONS = ("model", "data")


def name_class_of_help(words: Sequence[str]) -> list[str]:
    """Put the configured class after a ``--model.help`` or ``--data.help`` that names none.

    Args:
        words: the command and its options.

    Returns:
        The words; as they were where no class is configured, for the parser to show the base class.
    """
    named = list(words)
    for section in SECTIONS:
        flag = f"--{section}.help"
        if flag in named:
            at = named.index(flag)
            names_none = at + 1 == len(named) or named[at + 1].startswith("-")
            classes = list(_classes(section, named))
            if names_none and classes:
                named[at] = f"{flag}={classes[-1]}"
    return named


def _classes(section: str, words: Sequence[str]) -> Iterator[str]:
    """Classes of a section in the order in which options name them; the last one counts."""
    for i, word in enumerate(words):
        option, has_value, value = word.partition("=")
        value = value if has_value else "".join(words[i + 1 : i + 2])
        if option in ("--config", "-c") and Path(value).is_file():
            loaded = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            configured = loaded.get(section) if isinstance(loaded, dict) else None
            found: Any = configured.get("class_path") if isinstance(configured, dict) else configured
            if isinstance(found, str):
                yield found
        elif option in (f"--{section}", f"--{section}.class_path"):
            yield value
