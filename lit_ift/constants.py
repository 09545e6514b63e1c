"""Constants that every layer of the package agrees on."""

from typing import Final

IGNORE_INDEX: Final = -100
"""Label of a token that is not trained on: prompt, padding, other speakers."""
