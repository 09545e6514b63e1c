"""Types as help shows them."""

from pathlib import Path
from typing import Any, Literal

import pytest

from lit_ift.cli.tree import type_in_words
from lit_ift.options import PositiveInt, Share


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "int"),
        (Path | None, "path | null"),
        (PositiveInt | None, "int at least 1 | null"),
        (Share, "float above 0 and at most 1"),
        (Literal["left", "right", None], "left | right | null"),
        (dict[str, Any] | str, "dict[str, Any] | str"),
    ],
)
def test_types(hint: Any, words: str) -> None:
    assert type_in_words(hint) == words
