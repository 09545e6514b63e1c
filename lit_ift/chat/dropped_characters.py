"""Characters that a tokenizer drops because its vocabulary lacks them, as BPE without an unknown token does."""

import unicodedata
from typing import TYPE_CHECKING, Final

from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UTF8_BYTES: Final = (*range(0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5))
"""Bytes that occur in UTF-8."""


class DroppedCharacters:
    """Finds the first visible character of a text that gets no token.

    Control characters, white space and combining marks do not count: normalizers drop them on purpose.

    Args:
        backend: the tokenizer.
    """

    def __init__(self, backend: "Tokenizer") -> None:
        self._normalizer = None if "ByteLevel" in repr(backend.normalizer) else backend.normalizer
        is_lossy = isinstance(backend.model, BPE) and backend.model.unk_token is None
        by_bytes = "ByteLevel" in repr(backend.pre_tokenizer) + repr(backend.normalizer)
        names = bytes_to_unicode()
        missing = [byte for byte in UTF8_BYTES if backend.token_to_id(names[byte]) is None] if is_lossy else []
        self._missing_bytes = bytes(missing) if by_bytes else b""
        has_bytes = is_lossy and backend.model.byte_fallback
        falls_back = has_bytes and all(backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in UTF8_BYTES)
        self.needs_offsets: bool = is_lossy and not by_bytes and not falls_back
        """Whether a lost character shows in the offsets only."""

    def lost_byte(self, text: str) -> str:
        """The first visible character of which a byte has no token; empty if there is none."""
        if not self._missing_bytes:
            return ""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        data = text.encode()
        if len(data.translate(None, self._missing_bytes)) == len(data):
            return ""
        return next(
            (c for c in text if _is_visible(c) and c.encode().translate(None, self._missing_bytes) != c.encode()), ""
        )

    def lost_between(self, text: str, offsets: list[tuple[int, int]]) -> str:
        """The first visible character between the tokens; empty if there is none."""
        position = 0
        for start, end in [*offsets, (len(text), len(text))]:
            lost = next(filter(_is_visible, text[position:start]), "") if start > position else ""
            if lost:
                return lost
            position = max(position, end)
        return ""


def _is_visible(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] in "LNPS" or category == "Co"
